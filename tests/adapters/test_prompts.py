"""How large a prompt is taken to be, beside what the server then counts."""

import base64
import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat import ChatCompletionMessage

from concur_agents.adapters import payload, prompts
from concur_agents.adapters.prompts import of_body, of_messages
from concur_agents.core import Usage
from concur_agents.governor import Governor
from concur_agents.openai import OpenAI

IMAGE = base64.b64encode(random.Random(1).randbytes(300_000)).decode()
URI = f"data:image/png;base64,{IMAGE}"
ENGLISH = "The agent reads a file, runs the tests and looks at what has failed. "
CHINESE = "代理读取一个文件，运行测试，然后查看失败的内容。"
RUSSIAN = "Агент читает файл, запускает тесты и смотрит, что не прошло. "


def announced(gov: Governor) -> list[int | None]:
    said: list[int | None] = []
    gov.on_event(lambda e: said.append(e.prompt_tokens) if e.kind == "step_began" else None)
    return said


class Server:
    """Counts prompts as a model with these rates would; what it holds is kept between turns."""

    def __init__(self, gov: Governor) -> None:
        self.agent = gov.agent("a")

    def turn(self, prompt: Any, tokens: int, completion: int = 100) -> int:
        """What is estimated for a prompt that then takes so many tokens."""
        prompts.estimate(self.agent, prompt)
        prompts.learn(self.agent, prompt, Usage(tokens, completion))
        return prompt.tokens  # type: ignore[no-any-return]


def body(**fields: Any) -> Any:
    return of_body(json.dumps({"model": "m", **fields}, ensure_ascii=False).encode())


def chat(*contents: Any) -> list[dict[str, Any]]:
    return [
        {"role": "user" if at % 2 == 0 else "assistant", "content": content}
        for at, content in enumerate(contents)
    ]


def image(uri: str = URI) -> list[dict[str, Any]]:
    return [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": uri}}]


def is_near(estimate: int, tokens: int) -> bool:
    return tokens / 2 <= estimate <= tokens * 2


@pytest.mark.parametrize(
    ("text", "bytes_per_token"), [(ENGLISH, 4.5), (CHINESE, 4.0), (RUSSIAN, 5.0)]
)
@pytest.mark.parametrize("escaped", [False, True])
def test_text_of_any_script_is_within_a_factor_of_two(
    text: str, bytes_per_token: float, escaped: bool, gov: Governor
) -> None:
    server = Server(gov)
    said: list[str] = []
    for turn in range(6):
        said.append(text * (20 + 40 * (turn % 3)))
        data = json.dumps({"messages": chat(*said)}, ensure_ascii=escaped).encode()
        tokens = round(len("".join(said).encode()) / bytes_per_token) + 5 * len(said)
        assert is_near(server.turn(of_body(data), tokens), tokens)


def test_what_the_server_holds_counts_from_the_last_usage(gov: Governor) -> None:
    """The gate was told 639,048 tokens of a prompt of 22,000."""
    server = Server(gov)
    server.turn(body(input="y" * 200, previous_response_id="resp_1"), 20_000, completion=0)
    estimate = server.turn(body(input="y" * 8000, previous_response_id="resp_2"), 22_000)
    assert 20_000 <= estimate <= 23_000
    estimate = server.turn(body(input="y" * 8000, previous_response_id="resp_3"), 24_100)
    assert is_near(estimate, 24_100)


def test_it_is_announced_to_the_gate(gov: Governor, endpoint: Any) -> None:
    said = announced(gov)
    client = OpenAI(
        governor=gov, base_url="http://e/v1", api_key="-", http_client=endpoint.http("sync")
    )
    with gov.agent("a"):
        client.responses.create(model="m", input="y" * 200, previous_response_id="resp_1")
        client.responses.create(model="m", input="y" * 8000, previous_response_id="resp_2")
    assert said[1] is not None
    assert 2_000 <= said[1] <= 2_400  # 107 that the server holds, and the new input


@pytest.mark.parametrize("per_image", [200, 1000, 2000])
def test_screenshots_every_other_turn_are_within_a_factor_of_two(
    per_image: int, gov: Governor
) -> None:
    """The gate was told 100,162, then 3, then 1,381,538 tokens."""
    server = Server(gov)
    said: list[Any] = [ENGLISH * 100]
    tokens = 1600
    server.turn(body(messages=chat(*said)), tokens)
    for turn in range(8):
        if turn % 2 == 0:
            said.append(image())
            tokens += per_image
        else:
            said.append(ENGLISH * 20)
            tokens += 320
        assert is_near(server.turn(body(messages=chat(*said)), tokens), tokens)


PAYLOADS = [
    {"type": "image_url", "image_url": {"url": URI}},
    {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}},
    {"type": "input_image", "image_url": URI},
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": IMAGE}},
    {"type": "image", "source": {"type": "base64", "data": "A" * 100_000}},
    {"type": "image", "source": {"type": "url", "url": "https://a/b.png"}},
    {"type": "input_audio", "input_audio": {"data": IMAGE, "format": "wav"}},
    {"type": "file", "file": {"file_data": "data:application/pdf;base64," + IMAGE}},
    {"type": "image_url", "image_url": {"url": "https://a/b.png"}},
    {"inlineData": {"mimeType": "image/png", "data": IMAGE}},
]


@pytest.mark.parametrize("part", PAYLOADS, ids=range(len(PAYLOADS)))
@pytest.mark.parametrize("gap", [None, (",", ":")])
def test_payloads_are_no_text(part: dict[str, Any], gap: Any) -> None:
    data = json.dumps({"messages": [{"role": "user", "content": [part]}]}, separators=gap)
    size, tokens = payload.text_size(data.encode())
    assert tokens == 1000
    assert size < 300
    assert payload.measure([{"role": "user", "content": [part]}])[1] == 1000
    assert payload.measure([{"role": "user", "content": [part]}])[0] < 300


@pytest.mark.parametrize(
    "text",
    ["x" * 10_000, "a1" * 5_000, ENGLISH * 100, CHINESE * 100, "/usr/lib/" * 1000, "=" * 5000],
    ids=["x", "hex", "English", "Chinese", "paths", "rule"],
)
def test_text_is_no_payload(text: str) -> None:
    data = json.dumps({"messages": chat(text)}, ensure_ascii=False).encode()
    digits = text.count("1")
    size, tokens = payload.text_size(data)
    assert tokens == 0
    assert size == pytest.approx(len(data) + 2 * digits, abs=20 if digits else 0)
    size, tokens = payload.measure(text)
    assert tokens == 0
    assert size == pytest.approx(len(text.encode()) + 2 * digits, abs=20 if digits else 0)


def test_a_digit_counts_as_three_bytes_of_text_escaped_or_not() -> None:
    """Tokenisers take them one by one, or up to three; a log was taken for a third of itself."""
    plain = payload.text_size((ENGLISH * 1000).encode())[0]
    assert plain == len(ENGLISH) * 1000
    random_ = random.Random(3)
    digits = "".join(random_.choice("0123456789") for _ in range(70_000))
    assert payload.text_size(digits.encode()) == (3 * 70_000, 0)
    assert payload.measure(digits) == (3 * 70_000, 0)
    for text in (CHINESE, RUSSIAN):  # whose escapes hold digits
        raw = json.dumps(text * 1000, ensure_ascii=False).encode()
        escaped = json.dumps(text * 1000).encode()
        size = payload.text_size(escaped)[0]
        assert size == pytest.approx(payload.text_size(raw)[0], rel=0.01)


def test_digits_of_payloads_are_no_text() -> None:
    data = json.dumps({"messages": chat("12 " * 9000, image(), "34 " * 9000)}).encode()
    alone = json.dumps({"messages": chat("12 " * 9000, image("x"), "34 " * 9000)}).encode()
    size, tokens = payload.text_size(data)
    assert tokens == 1000
    assert size == pytest.approx(payload.text_size(alone)[0], abs=100)


COUNTED = json.loads(
    (Path(__file__).parents[1] / "fixtures" / "prompts" / "counted.json").read_text("utf-8")
)


@pytest.mark.parametrize("tokenizer", list(COUNTED["tokenizers"]))
@pytest.mark.parametrize("told", COUNTED["chats"], ids=lambda told: told["name"])
@pytest.mark.parametrize("escaped", [False, True])
def test_what_real_tokenizers_count_is_within_a_factor_of_two(
    told: Any, tokenizer: str, escaped: bool, gov: Governor
) -> None:
    """Each turn, the first one too; a table of numbers was taken for a quarter of its tokens."""
    server = Server(gov)
    said: list[Any] = []
    for turn, tokens in zip(told["turns"], told["tokens"][tokenizer], strict=True):
        said += turn
        data = json.dumps({"model": "m", "messages": said}, ensure_ascii=escaped).encode()
        assert is_near(server.turn(of_body(data), tokens), tokens)


def test_tool_calls_count(gov: Governor) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "edit", "arguments": ENGLISH * 50}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    assert payload.measure([message])[0] >= len(ENGLISH) * 50
    server = Server(gov)
    server.turn(body(messages=chat(ENGLISH * 50)), 800)
    grown = [*chat(ENGLISH * 50), message, {"role": "tool", "content": ENGLISH * 50}]
    assert is_near(server.turn(body(messages=grown), 2400), 2400)


def test_a_hidden_prompt_does_not_become_a_ratio(gov: Governor) -> None:
    """A short question under a system prompt that the server adds: 20,000 tokens of 200 bytes."""
    server = Server(gov)
    server.turn(body(messages=chat("y" * 200)), 20_000)
    assert is_near(server.turn(body(messages=chat("y" * 200, "z" * 8000)), 22_000), 22_000)
    assert is_near(server.turn(body(messages=chat("y" * 200, "z" * 40_000)), 30_000), 30_000)


def test_estimates_are_bounded_whatever_the_server_says(gov: Governor) -> None:
    random_ = random.Random(2)
    server = Server(gov)
    last = 0
    for _ in range(500):
        size = random_.choice((0, 10, 1000, 100_000))
        more = random_.choice(({}, {"previous_response_id": "resp_1"}))
        content = random_.choice(("y" * size, image()))
        prompt = body(input=chat(content), **more)
        tokens = random_.choice((1, 100, 10_000, 1_000_000))
        estimate = server.turn(prompt, tokens, completion=0)
        assert estimate <= last + prompt.size + 16 * prompt.payloads + 1
        last = tokens


def test_messages_of_frameworks_are_measured_the_same() -> None:
    messages = pytest.importorskip("langchain_core.messages")
    tool_call = {"name": "edit", "args": {"text": ENGLISH}, "id": "c"}
    said = [
        [
            messages.HumanMessage(image()),
            messages.AIMessage("", tool_calls=[tool_call]),
            messages.HumanMessage(CHINESE),
        ]
    ]
    prompt = of_messages("messages", said)
    assert prompt is not None
    assert prompt.payloads == 1000
    least = len(ENGLISH) + len(CHINESE.encode())
    assert least <= prompt.size <= least + 100
    assert of_messages("litellm", "hi", continues=True).continues  # type: ignore[union-attr]
    assert of_messages("litellm", []) is None


def test_message_objects_of_openai_are_measured_with_their_tool_calls() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "edit", "arguments": ENGLISH * 9}}
    message = ChatCompletionMessage.model_validate(
        {"role": "assistant", "content": ENGLISH, "tool_calls": [call]}
    )
    assert payload.measure([message]) == (len(ENGLISH) * 10 + len("edit"), 0)


def test_text_full_of_long_words_is_measured_in_linear_time() -> None:
    data = json.dumps(("a" * 300 + " ") * 20_000).encode()
    began = time.thread_time()
    assert payload.text_size(data) == (len(data), 0)
    assert time.thread_time() - began < 1.0


def test_megabytes_of_images_are_measured_at_once() -> None:
    """The measure is taken before each call, on the event loop."""
    uri = "data:image/png;base64," + base64.b64encode(os.urandom(7_500_000)).decode()
    data = json.dumps({"messages": chat(*[image(uri)] * 2, ENGLISH * 10_000)}).encode()
    began = time.thread_time()
    _, tokens = payload.text_size(data)
    assert tokens == 2000
    assert time.thread_time() - began < 0.5


def test_what_the_last_body_held_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt of 400 KB cost 350 us on each call, also when one line was new."""
    read: list[int] = []
    real = payload._read

    def noted(body: bytes, at: int, end: int) -> tuple[int, int]:
        read.append(at)
        return real(body, at, end)

    monkeypatch.setattr(payload, "_read", noted)
    seen = payload.Seen()
    link = {"type": "image_url", "image_url": {"url": "https://a/b.png"}}
    said: list[Any] = [ENGLISH * 4000, [link], CHINESE]
    for turn in range(5):
        data = json.dumps({"messages": chat(*said)}).encode()
        read.clear()
        size, tokens = payload.text_size(data, seen)
        assert len(read) <= 2 or turn == 0
        assert (size, tokens) == payload.text_size(data)
        assert tokens == 1000 * (1 + turn)
        said += [CHINESE * 20, [link]]


def test_images_of_a_growing_chat_count_as_if_each_body_was_new() -> None:
    """A payload ends beyond the block that it begins in, and goes when the chat is compacted."""
    seen = payload.Seen()
    said: list[Any] = [ENGLISH * 300]
    for turn in range(8):
        drawn = random.Random(turn).randbytes(7000 * turn + 1000)
        uri = "data:image/png;base64," + base64.b64encode(drawn).decode()
        said += [[image(uri)], ENGLISH * 20]
        if turn == 5:
            del said[1:8]
        data = json.dumps({"messages": chat(*said)}).encode()
        assert payload.text_size(data, seen) == payload.text_size(data)
