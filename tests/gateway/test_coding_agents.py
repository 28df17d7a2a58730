"""Requests in the shapes that Claude Code and Codex document, and in those that they sent.

What they sent is in `recorded/`, with its source; `test_command_line_agents.py` runs them.
"""

import asyncio
import json
from pathlib import Path

import pytest

RECORDED = sorted((Path(__file__).parent / "recorded").glob("*.json"))

CLAUDE = {
    "anthropic-version": "2023-06-01",
    "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14",
    "x-api-key": "-",
    "user-agent": "claude-cli/2.1.139 (external, cli)",
    "x-app": "cli",
    "x-claude-code-session-id": "0f3c7f5e-session",
    "x-stainless-retry-count": "0",
    "x-stainless-timeout": "600",
}
CODEX = {
    "originator": "codex_exec",
    "user-agent": "codex_exec/0.162.1",
    "session-id": "0199-root",
    "thread-id": "0199-root",
    "accept": "text/event-stream",
}


def claude_body(task):
    return {
        "model": "my-model",
        "max_tokens": 32000,
        "stream": True,
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.139; cch=1;"},
            {
                "type": "text",
                "text": "You are Claude Code.",
                "cache_control": {"type": "ephemeral"},
            },
        ],
        "messages": [{"role": "user", "content": [{"type": "text", "text": task}]}],
        "tools": [{"name": "Bash", "input_schema": {"type": "object"}}],
        "metadata": {"user_id": "user_1_session_2"},
    }


def codex_body(task):
    part = {"type": "input_text", "text": task}
    return {
        "model": "my-model",
        "instructions": "You are Codex.",
        "input": [{"type": "message", "role": "user", "content": [part]}],
        "stream": True,
        "store": False,
        "prompt_cache_key": "0199-root",
    }


async def test_claude_code_and_its_sub_agents_share_one_place(engine, before):
    """With a place of its own a sub-agent would wait for the agent that waits for it."""
    sub_agent = {"x-claude-code-agent-id": "explore-1"}
    inner = {"x-claude-code-agent-id": "explore-2", "x-claude-code-parent-agent-id": "explore-1"}
    async with before(limit=1) as front:
        path = "/v1/messages?beta=true"
        asks = [
            front.ask(path, agent=None, headers=CLAUDE | more, json=claude_body(f"task {more}"))
            for more in ({}, sub_agent, inner, {})
        ]
        answers = await asyncio.gather(*asks)
        assert {status for status, _ in answers} == {200}
        session = CLAUDE["x-claude-code-session-id"]
        named = {event.agent for event in front.ended}
        assert named == {session, f"{session}/explore-1", f"{session}/explore-2"}
        assert front.governor.snapshot().active == 1
    for seen in engine.seen:
        assert seen.path == path
        assert seen.json == claude_body(seen.json["messages"][0]["content"][0]["text"])
        for name in ("anthropic-version", "anthropic-beta", "user-agent", "x-app"):
            assert seen.header(name) == CLAUDE[name]
        assert seen.header("x-api-key") is None


async def test_what_claude_code_asks_beside_is_no_call(engine, before):
    async with before(limit=1) as front, front.governor.agent("holder"):
        path = "/v1/messages/count_tokens"
        status, _ = await front.ask(path, agent=None, headers=CLAUDE, json=claude_body("count"))
        assert status == 200


async def test_codex_and_its_sub_agents_share_one_place(engine, before):
    child = CODEX | {"thread-id": "0199-child", "x-codex-parent-thread-id": "0199-root"}
    async with before(limit=1) as front:
        asks = [
            front.ask("/v1/responses", agent=None, headers=headers, json=codex_body("task"))
            for headers in (CODEX, child, CODEX)
        ]
        assert {status for status, _ in await asyncio.gather(*asks)} == {200}
        assert {event.agent for event in front.ended} == {"0199-root", "0199-child"}
        assert front.governor.snapshot().active == 1
    assert [seen.json for seen in engine.seen] == [codex_body("task")] * 3
    assert json.dumps(codex_body("task")).encode() == engine.seen[0].body


@pytest.mark.parametrize("file", RECORDED, ids=lambda file: file.stem)
async def test_what_they_sent_names_its_agent_and_passes_as_it_is(engine, before, file):
    requests = json.loads(file.read_text("utf-8"))["requests"]
    async with before(limit=1) as front:
        for sent in requests:
            body = json.dumps(sent["body"]).encode()
            headers = sent["headers"] | {"Authorization": "Bearer -"}
            status, _ = await front.ask(sent["path"], agent=None, headers=headers, data=body)
            assert status == 200
        agents = [event.agent for event in front.ended]
        assert front.governor.snapshot().active == 1
    child = next((s["headers"].get("x-claude-code-agent-id") for s in requests[1:]), None)
    assert agents == ["id-0", f"id-0/{child}", "id-0"] if child else ["id-0"]
    for sent, seen in zip(requests, engine.seen, strict=True):
        assert (seen.path, seen.json) == (sent["path"], sent["body"])
        own = {name.decode(): value.decode() for name, value in seen.headers}
        assert own.items() >= sent["headers"].items()
        assert "Authorization" not in own
