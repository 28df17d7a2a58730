"""An engine that evicts by sessions hears which agents are done; any other hears nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("uvicorn")

from concur_agents.governor import Governor
from concur_agents.openai import OpenAI
from concur_agents.sim.profile import load_profile
from concur_agents.sim.server import EmbeddedServer
from concur_agents.sim.text import text_of_tokens

POOL = load_profile("h100-qwen3-8b").replace(kv_blocks=625)  # 10,000 tokens
LONG = 3000  # tokens of a prompt: three of them fit


@contextmanager
def serving(**options: Any) -> Iterator[EmbeddedServer]:
    options = {"metrics": "sglang", "sessions": True, "time_scale": 1000, "model": "m", **options}
    with EmbeddedServer(POOL, **options) as server:
        yield server


@contextmanager
def client_of(gov: Governor, server: EmbeddedServer) -> Iterator[OpenAI]:
    with OpenAI(governor=gov, base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
        yield client


def wait_for(met: Callable[[], object], text: str) -> None:
    ends_s = time.monotonic() + 60
    while not met():
        assert time.monotonic() < ends_s, f"{text} within 60 s"
        time.sleep(0.01)


def knows_sessions(caplog: pytest.LogCaptureFixture) -> bool:
    events = [getattr(record, "concur", {}).get("event") for record in caplog.records]
    return "sessions_found" in events


def cached(client: OpenAI, word: str) -> int:
    """Of a prompt of `LONG` tokens that is the same for the same word."""
    answer = client.completions.create(model="m", prompt=prompt(word), max_tokens=1)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    return answer.usage.prompt_tokens_details.cached_tokens or 0


def prompt(word: str) -> str:
    return word + text_of_tokens(LONG - 1)


@pytest.mark.parametrize("sessions", [True, False])
def test_the_context_of_an_agent_that_is_done_goes_before_an_older_one_that_is_needed(
    sessions: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The agent in a long tool call is the older one, which an LRU list evicts first."""
    caplog.set_level(logging.INFO)
    with (
        serving(sessions=sessions) as server,
        Governor(server.url, poll_interval_s=0.1) as gov,
        client_of(gov, server) as client,
    ):
        if sessions:
            gov.start()
            wait_for(lambda: knows_sessions(caplog), "the engine's sessions are found")
        with gov.agent("stays"):
            cached(client, "stays")
            with gov.agent("leaves", detached=True):
                cached(client, "leaves")
            if sessions:
                wait_for(lambda: server.stats.closed_sessions, "the session is closed")
            with gov.agent("comes", detached=True):
                for word in ("one", "two"):
                    cached(client, word)
            assert (cached(client, "stays") > 0.9 * LONG) is sessions


def test_each_agent_has_a_session_and_a_child_one_of_its_own(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    with (
        serving() as server,
        Governor(server.url, poll_interval_s=0.1) as gov,
        client_of(gov, server) as client,
    ):
        gov.start()
        wait_for(lambda: knows_sessions(caplog), "the engine's sessions are found")
        with gov.agent("parent"):
            cached(client, "a")
            with gov.agent("child"):
                cached(client, "b")
            wait_for(lambda: server.stats.closed_sessions, "the child's session is closed")
            cached(client, "a")
        with gov.agent("makes no call"):
            pass
        wait_for(lambda: len(server.stats.closed_sessions) == 2, "the parent's, too")
    names = [name.partition("~")[0] for name in server.stats.closed_sessions]
    assert names == ["child", "parent"]


def test_two_governors_do_not_close_each_others_sessions(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Agents of two processes may have the same id."""
    caplog.set_level(logging.INFO)
    with serving() as server:
        for _ in range(2):
            caplog.clear()
            with Governor(server.url, poll_interval_s=0.1) as gov, client_of(gov, server) as client:
                gov.start()
                wait_for(lambda: knows_sessions(caplog), "the engine's sessions are found")
                with gov.agent("agent-1"):
                    cached(client, "a")
        wait_for(lambda: len(server.stats.closed_sessions) == 2, "both are closed")
        assert len(set(server.stats.closed_sessions)) == 2


@pytest.mark.parametrize("options", [{"sessions": False}, {"sessions": False, "metrics": "vllm"}])
def test_an_engine_without_sessions_hears_of_none(
    options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    seen: list[bytes] = []
    with (
        serving(**options, middleware=lambda app: remember_bodies(app, seen)) as server,
        Governor(server.url, poll_interval_s=0.05) as gov,
        client_of(gov, server) as client,
    ):
        polls: list[str] = []
        gov.on_event(lambda event: polls.append(event.kind) if event.kind == "polled" else None)
        gov.start()
        wait_for(lambda: len(polls) >= 6, "it is read six times")
        with gov.agent("a"):
            cached(client, "a")
        assert not knows_sessions(caplog)
    assert server.stats.closed_sessions == []
    assert seen
    assert all(b"session_id" not in body for body in seen)


def test_a_session_that_cannot_be_closed_is_said_once_and_named_no_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    seen: list[bytes] = []
    with (
        serving(middleware=lambda app: remember_bodies(app, seen, refuse="/close")) as server,
        Governor(server.url, poll_interval_s=0.1) as gov,
        client_of(gov, server) as client,
    ):
        gov.start()
        wait_for(lambda: knows_sessions(caplog), "the engine's sessions are found")
        with gov.agent("a"):
            cached(client, "a")
        wait_for(lambda: "cannot be closed" in caplog.text, "it is said")
        for _ in range(2):
            with gov.agent("b"):
                cached(client, "b")
    assert caplog.text.count("cannot be closed") == 1
    assert [b"session_id" in body for body in seen] == [True, False, False]


@pytest.mark.parametrize("field", ["session_id", "session_params"])
def test_a_session_of_the_users_own_stays(field: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    seen: list[bytes] = []
    with (
        serving(middleware=lambda app: remember_bodies(app, seen)) as server,
        Governor(server.url, poll_interval_s=0.1) as gov,
        client_of(gov, server) as client,
    ):
        gov.start()
        wait_for(lambda: knows_sessions(caplog), "the engine's sessions are found")
        with gov.agent("a"):
            client.completions.create(
                model="m", prompt="hi", max_tokens=1, extra_body={field: "mine"}
            )
    assert [body.count(b"session_") for body in seen] == [1]


def remember_bodies(app: Any, seen: list[bytes], refuse: str | None = None) -> Any:
    """The application, and what calls it got; it does not know a path that begins so."""

    async def remembering(scope: Any, receive: Any, send: Any) -> None:
        path = scope.get("path", "")
        if refuse is not None and path.startswith(refuse):
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b"not found"})
            return

        async def received() -> Any:
            message = await receive()
            if path.endswith("completions") and message.get("body"):
                seen.append(message["body"])
            return message

        await app(scope, received, send)

    return remembering
