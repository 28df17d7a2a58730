"""LiteLLM's proxy in front of the gateway and behind it, and Harbor's Terminus 2, for real.

Each runs where a variable names what it needs, in an environment of its own:

- `CONCUR_TEST_LITELLM_PROXY`: the command of LiteLLM's proxy (`pip install "litellm[proxy]"`);
- `CONCUR_TEST_HARBOR`: the Python of an environment with Harbor (`pip install harbor`).
"""

import asyncio
import json
import os
import signal
import socket
from contextlib import asynccontextmanager, suppress

import openai
import pytest

pytest.importorskip("uvicorn")

from concur_agents.gateway.holding import Times
from concur_agents.sim.server import EmbeddedServer

LITELLM = os.environ.get("CONCUR_TEST_LITELLM_PROXY", "")
HARBOR = os.environ.get("CONCUR_TEST_HARBOR", "")
START_S, HELD_S = 300.0, 6.0
AGENTS, CALLS = 8, 3

needs_litellm = pytest.mark.skipif(not LITELLM, reason="CONCUR_TEST_LITELLM_PROXY names no command")
needs_harbor = pytest.mark.skipif(not HARBOR, reason="CONCUR_TEST_HARBOR names no Python")

TERMINUS = """
import asyncio, pathlib, sys
from harbor.agents.terminus_2.terminus_2 import Terminus2

url, folder = sys.argv[1:]
info = {"max_input_tokens": 40000, "max_output_tokens": 4000}
info |= {"input_cost_per_token": 0, "output_cost_per_token": 0}
for n in range(3):
    agent = Terminus2(
        logs_dir=pathlib.Path(folder), model_name="hosted_vllm/m", api_base=f"{url}/v1",
        session_id=f"trial-{n}", session_id_headers=["x-session-id"], model_info=info,
        llm_kwargs={"api_key": "-"},
    )
    assert asyncio.run(agent._llm.call("say hello")).content
"""


@pytest.fixture
def server():
    with EmbeddedServer("h100-qwen3-8b", time_scale=300, model="m") as running:
        yield running


@asynccontextmanager
async def litellm_before(url, folder):
    """LiteLLM's proxy before an address; yields its own."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    parameters = {"model": "hosted_vllm/m", "api_base": f"{url}/v1", "api_key": "-"}
    config = folder / "config.yaml"
    options = {
        "model_list": [{"model_name": "m", "litellm_params": parameters}],
        "general_settings": {"forward_client_headers_to_llm_api": True},
        "litellm_settings": {"request_timeout": 3600},
    }
    config.write_text(json.dumps(options))  # which is YAML
    environ = os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    environ["LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY"] = "true"  # on loopback
    words = [LITELLM, "--config", str(config), "--port", str(port), "--host", "127.0.0.1"]
    process = await asyncio.create_subprocess_exec(
        *words, env=environ,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        async with asyncio.timeout(START_S):
            while True:
                assert process.returncode is None, "it has ended"
                with suppress(OSError):
                    (await asyncio.open_connection("127.0.0.1", port))[1].close()
                    break
                await asyncio.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def say(url, *, stream, headers=None):
    """What the model said."""
    async with openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key="-", max_retries=0, timeout=120, default_headers=headers
    ) as client:
        messages = [{"role": "user", "content": "hi"}]
        options = {"model": "m", "messages": messages, "max_tokens": 8}
        if not stream:
            answer = await client.chat.completions.create(**options)
            return answer.choices[0].message.content
        chunks = [c async for c in await client.chat.completions.create(**options, stream=True)]
        return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


async def live(front, name, url, headers=None):
    """One agent, which says its end to the gateway."""
    for call in range(CALLS):
        assert await say(url, stream=call == 1, headers=headers)
    async with front.client.delete(f"{front.url}/agent/{name}") as answer:
        assert answer.status == 204


def check(front, server):
    assert server.stats.max_in_flight <= 2
    assert server.stats.calls == len(front.ended) == AGENTS * CALLS
    assert {event.agent for event in front.ended} == {f"agent-{n}" for n in range(AGENTS)}
    assert all(event.usage for event in front.ended)


@needs_litellm
@pytest.mark.timeout(600)
async def test_litellms_proxy_in_front(server, before, tmp_path):
    """It forwards the headers that name agents, and waits for held calls."""
    async with (
        before(limit=2, engines=server.url, times=Times()) as front,
        litellm_before(front.url, tmp_path) as proxy,
    ):
        names = [f"agent-{n}" for n in range(AGENTS)]
        await asyncio.gather(*(live(front, n, proxy, {"x-session-id": n}) for n in names))
        check(front, server)
        agent = front.governor.agent
        async with agent("one"), agent("two", detached=True):  # no child of the first
            asks = [
                asyncio.create_task(say(proxy, stream=s, headers={"x-session-id": f"held-{s}"}))
                for s in (True, False)
            ]
            await front.waiting(2)
            await asyncio.sleep(HELD_S)
        assert all(await asyncio.gather(*asks))


@needs_litellm
@pytest.mark.timeout(600)
async def test_litellms_proxy_behind(server, before, tmp_path):
    async with (
        litellm_before(server.url, tmp_path) as proxy,
        before(limit=2, engines=proxy, times=Times()) as front,
    ):
        names = [f"agent-{n}" for n in range(AGENTS)]
        await asyncio.gather(*(live(front, n, f"{front.url}/agent/{n}") for n in names))
        check(front, server)


@needs_harbor
@pytest.mark.timeout(300)
async def test_harbors_terminus_names_its_trial(server, before, tmp_path):
    """Its model client, made with the options of the recipe; no container runs."""
    async with before(limit=1, engines=server.url, times=Times(), may_guess=False) as front:
        process = await asyncio.create_subprocess_exec(
            HARBOR, "-c", TERMINUS, front.url, str(tmp_path), cwd=tmp_path,
            env=os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        )  # fmt: skip
        for n in range(3):
            await front.until(lambda n=n: len(front.ended) > n or process.returncode is not None)
            async with front.client.delete(f"{front.url}/agent/trial-{n}"):
                pass
        assert await process.wait() == 0
        assert [event.agent for event in front.ended] == [f"trial-{n}" for n in range(3)]
