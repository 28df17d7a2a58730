"""Everything at once, over real sockets in real time, with all that goes wrong in a night's batch.

64 agents of a pool, most of them coroutines and some in threads, talk through the drop-in clients
to an engine whose KV pool holds about eight of them. Requests fail with 500 and 429, connections
break before and in the middle of an answer, the metrics page is away for a while, agents raise and
are cancelled. Every agent ends as it should, and nothing is left.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections import Counter
from dataclasses import dataclass
from typing import Any

import openai
import pytest

import concur_agents as ca
from concur_agents.core import make_law
from concur_agents.openai import AsyncOpenAI, OpenAI
from concur_agents.sim.profile import load_profile
from concur_agents.sim.server import EmbeddedServer
from concur_agents.sim.text import text_of_tokens
from concur_agents.testing import assert_idle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

AGENTS = 64
POOL_BLOCKS = 2_000  # of 16 tokens, as many as eight agents come to hold
LAWS = {
    "working_set": {},
    "cache_aimd": {"interval_s": 0.3, "start": 6.0, "usage_high": 0.4, "hit_low": 0.6},
}


class OwnError(Exception):
    """An agent's own."""


@dataclass(frozen=True)
class Issue:
    """What one agent is to do, and what becomes of it."""

    id: str
    fate: str
    """'ok', 'raises', 'doomed' (the server never answers it), 'torn' or 'cancelled'."""
    steps: int
    seed: int
    in_thread: bool

    def fault(self, step: int) -> str:
        """What the server does to the first try of this step; '': nothing."""
        if self.fate in ("doomed", "torn") and step == 1:
            return self.fate
        return random.Random(f"{self.id}/{step}").choice(["500", "429", "drop", *[""] * 12])


def issues(seed: int) -> list[Issue]:
    rng = random.Random(seed)
    fates = ["raises"] * 6 + ["doomed"] * 3 + ["torn"] * 3 + ["cancelled"] * 8
    fates += ["ok"] * (AGENTS - len(fates))
    return [
        Issue(
            id=f"issue-{n:02}",
            fate=fate,
            steps=10**6 if fate == "cancelled" else rng.randint(3, 5),
            seed=n,
            in_thread=n % 5 == 0,
        )
        for n, fate in enumerate(rng.sample(fates, AGENTS))
    ]


class Flaky:
    """In front of the engine: fails as the request asks, and can lose its metrics."""

    def __init__(self) -> None:
        self.engine: Any = None
        self.is_dark = False
        self.did: Counter[str] = Counter()

    def around(self, engine: Any) -> Any:
        self.engine = engine
        return self._answer

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        headers = {name.decode(): value.decode() for name, value in scope.get("headers", ())}
        fault = headers.get("x-fault", "")
        is_retry = headers.get("x-stainless-retry-count", "0") != "0"
        if scope["path"] == "/metrics" and self.is_dark:
            fault = "drop"
        elif is_retry and fault in ("500", "429", "drop"):
            fault = ""
        if fault:
            self.did[fault] += 1
        if fault in ("500", "429", "doomed"):
            await self._refuse(send, 429 if fault == "429" else 500)
        elif fault == "drop":  # promises more than it sends, upon which the connection is closed
            head = [(b"content-length", b"1000"), (b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 200, "headers": head})
            await send({"type": "http.response.body", "body": b"{", "more_body": False})
        elif fault == "torn":
            await self.engine(scope, receive, self._tearing(send))
        else:
            await self.engine(scope, receive, send)

    async def _refuse(self, send: Any, status: int) -> None:
        head = [(b"content-type", b"application/json"), (b"retry-after-ms", b"20")]
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send({"type": "http.response.body", "body": b'{"error": {"message": "no"}}'})

    def _tearing(self, send: Any) -> Any:
        pieces = 0

        async def tear(message: Any) -> None:
            nonlocal pieces
            pieces += message["type"] == "http.response.body"
            if pieces > 2:
                raise OSError("torn")
            await send(message)

        return tear


class Agents:
    """The agents, as a user could write them who knows little of this library."""

    def __init__(self, governor: ca.Governor, server: EmbeddedServer) -> None:
        at: dict[str, Any] = {"base_url": f"{server.url}/v1", "api_key": "-", "max_retries": 2}
        self.client = AsyncOpenAI(governor=governor, **at)
        self.client_in_thread = OpenAI(governor=governor, **at)
        self.governor = governor
        self.model = server.model
        self.errors: dict[str, BaseException] = {}

    def request(self, issue: Issue, messages: list[Any], step: int) -> dict[str, Any]:
        return {
            "model": self.model,
            "messages": messages,
            "max_tokens": 60,
            "user": issue.id,
            "extra_headers": {"x-fault": issue.fault(step)},
        }

    def next_message(self, issue: Issue, step: int) -> dict[str, str]:
        if issue.fate == "raises" and step == 2:
            self.errors[issue.id] = OwnError(issue.id)
            raise self.errors[issue.id]
        tokens = 1_200 if step == 0 else 700
        return {"role": "user", "content": text_of_tokens(tokens, seed=f"{issue.id}/{step}")}

    async def solve(self, issue: Issue, agent: ca.Agent) -> dict[str, int]:
        rng = random.Random(issue.seed)
        messages: list[Any] = [{"role": "system", "content": text_of_tokens(500, seed="system")}]
        for step in range(issue.steps):
            messages.append(self.next_message(issue, step))
            request = self.request(issue, messages, step)
            # A stream that breaks off is not begun again by the client.
            if issue.fate == "torn" or (issue.fault(step) != "drop" and rng.random() < 0.3):
                stream = await self.client.chat.completions.create(stream=True, **request)
                text = ""
                async for chunk in stream:
                    text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
            else:
                reply = await self.client.chat.completions.create(**request)
                text = reply.choices[0].message.content
            messages.append({"role": "assistant", "content": text})
            await self.act(agent, issue, rng, request)
        return {"steps": issue.steps}

    async def act(self, agent: ca.Agent, issue: Issue, rng: random.Random, request: Any) -> None:
        what = rng.random()
        if what < 0.1:
            async with agent.suspended():
                await asyncio.sleep(0.05)
        elif what < 0.2:
            async with self.governor.agent(f"{issue.id}/critic {rng.random()}"):
                await self.client.chat.completions.create(**{**request, "max_tokens": 10})
        elif what < 0.3:
            short = {**request, "max_tokens": 10, "extra_headers": {}}
            await asyncio.gather(
                *(self.client.chat.completions.create(n=1, **short) for _ in range(2))
            )
        else:
            async with agent.tool("pytest"):
                await asyncio.sleep(rng.expovariate(1 / 0.03))

    def solve_in_thread(self, issue: Issue, agent: ca.Agent) -> dict[str, int]:
        messages: list[Any] = [{"role": "system", "content": text_of_tokens(500, seed="system")}]
        for step in range(issue.steps):
            messages.append(self.next_message(issue, step))
            request = self.request(issue, messages, step)
            if issue.fate == "torn":
                chunks = list(self.client_in_thread.chat.completions.create(stream=True, **request))
                text = f"{len(chunks)} chunks"
            else:
                reply = self.client_in_thread.chat.completions.create(**request)
                text = reply.choices[0].message.content or ""
            messages.append({"role": "assistant", "content": text})
            with agent.tool("pytest"):
                threading.Event().wait(0.02)
        return {"steps": issue.steps}

    async def close(self) -> None:
        await self.client.close()
        self.client_in_thread.close()


async def run_batch(
    agents: Agents, batch: list[Issue], flaky: Flaky, journal: Any
) -> dict[str, ca.Outcome[Any, Any]]:
    """All of them in one pool; the metrics go dark, and some agents are cancelled on their way."""
    async with ca.AgentPool(agents.governor, journal=journal, interrupts=False) as pool:
        tasks = {
            issue.id: pool.submit(
                agents.solve_in_thread if issue.in_thread else agents.solve, issue
            )
            for issue in batch
        }

        async def go_dark() -> None:
            await asyncio.sleep(0.7)
            flaky.is_dark = True
            await asyncio.sleep(0.8)
            flaky.is_dark = False

        async def cancel(issue: Issue) -> None:
            await asyncio.sleep(random.Random(issue.seed).uniform(0.0, 2.0))
            tasks[issue.id].cancel()

        await asyncio.gather(
            go_dark(), *(cancel(issue) for issue in batch if issue.fate == "cancelled")
        )
        return {key: await task.outcome() for key, task in tasks.items()}


async def settled(condition: Any) -> None:
    """What was abandoned needs a moment to notice."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


def ours() -> set[threading.Thread]:
    """Threads of governors and pools; another test's governor may still have its own."""
    return {t for t in threading.enumerate() if t.name.startswith(("concur", "agent "))}


@pytest.mark.parametrize("law", LAWS)
async def test_a_batch_in_which_everything_goes_wrong_ends_as_it_should(law, tmp_path):
    journal = tmp_path / "runs.jsonl"
    batch = issues(seed=7)
    fates = {issue.id: issue.fate for issue in batch}
    flaky = Flaky()
    profile = load_profile("h100-qwen3-8b").replace(kv_blocks=POOL_BLOCKS)
    happened: Counter[str] = Counter()
    there_before = ours()

    with EmbeddedServer(profile, time_scale=20, middleware=flaky.around) as server:
        async with ca.Governor(
            server.url,
            law=make_law(law, **LAWS[law]),
            poll_interval_s=0.1,
            blind_after_s=0.3,
            blind_agents=4,
            max_wait_s=60.0,
        ) as governor:
            governor.on_event(lambda event: happened.update([event.kind]))
            agents = Agents(governor, server)
            async with asyncio.timeout(240):
                outcomes = await run_batch(agents, batch, flaky, journal)
            await settled(lambda: not governor.snapshot().active)
            await settled(lambda: governor.snapshot().poll_error is None)
            await agents.close()
            await settled(lambda: not server.stats.in_flight)

            # Every agent ended as it should.
            expected = {"ok": "ok", "cancelled": "cancelled"}
            assert {key: outcome.status for key, outcome in outcomes.items()} == {
                key: expected.get(fate, "error") for key, fate in fates.items()
            }
            for key, outcome in outcomes.items():
                if fates[key] == "ok":
                    assert outcome.value["steps"] <= outcome.stats.steps
                    assert outcome.stats.cached_tokens is not None
                elif fates[key] == "raises":
                    assert outcome.error is agents.errors[key], "the agent's own, unchanged"
                elif fates[key] == "doomed":
                    assert isinstance(outcome.error, openai.InternalServerError)

            # All that was to go wrong went wrong.
            assert all(flaky.did[fault] for fault in ("500", "429", "drop", "doomed", "torn"))
            assert happened["poll_failed"]
            assert happened["poll_recovered"]
            assert happened["paused"]
            assert happened["suspended"] == happened["resume_asked"]
            assert happened["tool_began"] == happened["tool_ended"]
            assert happened["step_began"] == happened["step_ended"] + happened["step_withdrawn"]
            assert happened["arrived"] == happened["left"]
            assert server.stats.max_agents_in_flight < AGENTS / 2, "it was governed"

            # Nothing is left.
            assert not governor.snapshot().closed, "no bug of ours came up"
            assert_idle(governor)
            assert sum(server.stats.in_flight_by_agent.values()) == 0
    assert not [one for one in asyncio.all_tasks() if one is not asyncio.current_task()]
    await settled(lambda: not ours() - there_before)

    # The journal is complete, and knows on the next night what need not be done again.
    lines = [json.loads(line) for line in journal.read_text("utf-8").splitlines()][1:]
    assert {line["key"]: line["status"] for line in lines} == {
        key: outcome.status for key, outcome in outcomes.items() if outcome.status != "cancelled"
    }
    assert len(lines) == len({line["key"] for line in lines})
    ran = []
    async with ca.AgentPool(ca.Governor(limit=4), journal=journal) as pool:
        again = {outcome.key: outcome async for outcome in pool.as_completed(ran.append, batch)}
    assert {issue.id for issue in ran} == {key for key, fate in fates.items() if fate != "ok"}
    assert all(
        again[key].value == outcomes[key].value for key, fate in fates.items() if fate == "ok"
    )
