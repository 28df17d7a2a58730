// Node's fetch and the official clients, each with a timeout of 2 s, against a gateway that holds.
// Prints one JSON object: client -> what it said, or the error.
import { createRequire } from "node:module";

const [url, folder] = process.argv.slice(2);
const require = createRequire(`${folder}/package.json`);
const OpenAI = require("openai");
const Anthropic = require("@anthropic-ai/sdk");

const say = { model: "m", messages: [{ role: "user", content: "hi" }] };
const options = (name, path = "") => ({
  baseURL: `${url}/agent/${name}${path}`, apiKey: "-", timeout: 2000, maxRetries: 0,
});

const clients = {
  async fetch_stream(name) {
    const answer = await fetch(`${url}/agent/${name}/v1/chat/completions`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ ...say, stream: true }),
    });
    const lines = (await answer.text()).split("\n").filter((line) => line.startsWith("data: {"));
    return lines.map((line) => JSON.parse(line.slice(6)).choices[0].delta.content).join("");
  },
  async openai_stream(name) {
    const client = new OpenAI(options(name, "/v1"));
    let text = "";
    for await (const chunk of await client.chat.completions.create({ ...say, stream: true }))
      text += chunk.choices[0].delta.content ?? "";
    return text;
  },
  async openai_plain(name) {
    const client = new OpenAI(options(name, "/v1"));
    await client.models.list();  // a busy machine takes a second to load and connect
    // It says how long it waits only if the call says it, and not if the client does.
    const answer = await client.chat.completions.create(say, { timeout: 2000 });
    return answer.choices[0].message.content;
  },
  async anthropic_stream(name) {
    const stream = new Anthropic(options(name)).messages.stream({ ...say, max_tokens: 9 });
    return (await stream.finalMessage()).content[0].text;
  },
  async anthropic_plain(name) {
    const client = new Anthropic(options(name));
    await client.models.list();
    const answer = await client.messages.create({ ...say, max_tokens: 9 });
    return answer.content[0].text;
  },
};

const said = {};
await Promise.all(Object.entries(clients).map(async ([name, ask]) => {
  said[name] = await ask(name).catch((error) => `failed: ${error}`);
  await fetch(`${url}/agent/${name}`, { method: "DELETE" });
}));
console.log(JSON.stringify(said));
