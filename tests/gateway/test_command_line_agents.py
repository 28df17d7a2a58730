"""Claude Code and Codex themselves, behind an agent that keeps the only place for a while.

Runs where `CONCUR_TEST_NODE` names a folder with the packages: `npm install
@anthropic-ai/claude-code @openai/codex` there. They need no model and no network: the engine is a
script on this machine.
"""

import asyncio
import json
import os
import shutil
from pathlib import Path

import pytest
from aiohttp import web

from concur_agents.gateway.holding import Times

FOLDER = Path(os.environ.get("CONCUR_TEST_NODE", ""), "node_modules", ".bin")
HELD_S = 3.0
LIMIT_S = 100.0

CLAUDE = {
    "ANTHROPIC_API_KEY": "-",
    "ANTHROPIC_MODEL": "my-model",
    "ANTHROPIC_SMALL_FAST_MODEL": "my-model",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_TELEMETRY": "1",
}
CODEX = [
    "-c", 'model="my-model"',
    "-c", 'model_provider="concur"',
    "-c", "check_for_update_on_startup=false",
    "-c", "analytics.enabled=false",
]  # fmt: skip


def command(name):
    if shutil.which("node") is None or not (FOLDER / name).exists():
        pytest.skip(f"CONCUR_TEST_NODE names no folder with {name}")
    return str(FOLDER / name)


async def said(front, tmp_path, words, **environ):
    """What a command says at its end; it is held for a while first."""
    environ |= {
        "HOME": str(tmp_path),
        "PATH": os.environ["PATH"],
        "HTTPS_PROXY": "http://127.0.0.1:9",  # what it may ask elsewhere fails at once
        "NO_PROXY": "127.0.0.1",
    }
    holder = front.governor.agent("holder")
    await holder.open()
    process = await asyncio.create_subprocess_exec(
        *words, cwd=tmp_path, env=environ,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(LIMIT_S):
            await front.waiting(1)
            await asyncio.sleep(HELD_S)
            holder.close()
            out, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, errors.decode()
    return out.decode().strip()


def events(*values):
    return [f"event: {value['type']}\ndata: {json.dumps(value)}\n\n" for value in values]


def start_a_sub_agent(engine, name):
    """Events of a message that calls Claude Code's tool for sub-agents."""
    start, _, _, stop, delta, end = engine.message_events
    use = {"type": "tool_use", "id": "toolu_1", "name": name, "input": {}}
    given = {"description": "look", "prompt": "say hello", "subagent_type": "general-purpose"}
    delta = delta | {"delta": {"stop_reason": "tool_use", "stop_sequence": None}}
    return events(
        start,
        {"type": "content_block_start", "index": 0, "content_block": use},
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "input_json_delta", "partial_json": json.dumps(given)},
        },
        stop,
        delta,
        end,
    )


@pytest.mark.timeout(150)
async def test_claude_code_and_its_sub_agent_share_one_place(engine, before, tmp_path):
    claude = command("claude")

    async def answer(request, body):
        if request.path.endswith("/count_tokens"):
            return web.json_response({"input_tokens": 100})
        if request.method != "POST":
            return web.Response()
        asked = json.loads(body)
        tools = {tool.get("name") for tool in asked.get("tools", ())} & {"Agent", "Task"}
        is_child = "x-claude-code-agent-id" in request.headers
        has_asked = any("tool_use" in json.dumps(each) for each in asked["messages"])
        if tools and not is_child and not has_asked:
            return await engine.stream(request, *start_a_sub_agent(engine, tools.pop()))
        return await engine.usual(request, body)

    engine.answer = answer
    async with before(limit=1, times=Times()) as front:
        words = [claude, "-p", "say hello"]
        text = await said(front, tmp_path, words, ANTHROPIC_BASE_URL=front.url, **CLAUDE)
        assert text == "hello"
        agents = {event.agent for event in front.ended}
        (session,) = {name.partition("/")[0] for name in agents}
        (child,) = agents - {session}
        assert front.gateway.agents.find(child).parent.identity.agent == session
        assert not front.gateway.agents.find(session).identity.is_guess
        assert front.governor.snapshot().active == 1
        assert all(event.usage.prompt_tokens == 100 for event in front.ended)


@pytest.mark.timeout(150)
async def test_codex_is_held_and_answered(engine, before, tmp_path):
    codex = command("codex")

    async def answer(request, body):
        if request.method != "POST":
            return web.Response(status=404)
        message = {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "hello", "annotations": []}],
        }
        begun = {"id": "resp_1", "object": "response", "status": "in_progress", "output": []}
        usage = {"input_tokens": 100, "output_tokens": 7, "total_tokens": 107}
        done = begun | {"status": "completed", "output": [message], "usage": usage}
        return await engine.stream(
            request,
            *events(
                {"type": "response.created", "response": begun},
                {"type": "response.output_item.done", "output_index": 0, "item": message},
                {"type": "response.completed", "response": done},
            ),
        )

    engine.answer = answer
    async with before(limit=1, times=Times()) as front:
        provider = f'{{name="concur", base_url="{front.url}/v1", wire_api="responses"}}'
        words = [codex, "exec", "--skip-git-repo-check", *CODEX]
        words += ["-c", f"model_providers.concur={provider}", "say hello"]
        assert await said(front, tmp_path, words) == "hello"
        (event,) = front.ended
        assert event.usage.prompt_tokens == 100
        (seen,) = [one for one in engine.seen if one.method == "POST"]
        assert event.agent == seen.header("thread-id")
        assert seen.json["prompt_cache_key"] == event.agent
