"""The simulated engine in real time: a driver that runs it beside an event loop's clock.

One event loop owns requests, engine and clock, so nothing here needs a lock.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from concur_agents.sim.engine import Engine, Request, Run
from concur_agents.sim.pages import MetricsPage
from concur_agents.sim.text import Reply

__all__ = ["ClosingError", "Driver", "ServedCall", "ServerStats"]

_BEAT_S = 0.001
"""Shortest real time between two looks at the engine; steps that end sooner are taken together."""


class ServerStats:
    """What has gone through the server, for tests of governors and adapters.

    The agent of a call is what its client says: header ``x-concur-agent`` or ``x-session-id``, else
    ``session_id`` or ``user`` in the body.
    """

    def __init__(self) -> None:
        self.calls = 0
        """Calls that were taken, refused ones not counted."""
        self.in_flight = 0
        """Calls that have been taken and not answered."""
        self.max_in_flight = 0
        self.aborted = 0
        """Calls whose client went away."""
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.output_tokens = 0
        """The three of answered calls."""
        self.in_flight_by_agent: Counter[str] = Counter()
        """Calls in flight of each agent that said its name."""
        self.calls_by_agent: Counter[str] = Counter()
        self.max_agents_in_flight = 0
        """The most agents that had calls in flight at once."""
        self.ranks_by_agent: dict[str, Counter[int]] = {}
        """Calls of each agent that said its name, by the engine that took them."""
        self.closed_sessions: list[str] = []
        """Sessions that clients have closed, in that order."""

    def __repr__(self) -> str:
        return (
            f"<ServerStats {self.calls} calls, {self.in_flight} in flight "
            f"(most {self.max_in_flight}), {len(self.calls_by_agent)} agents "
            f"(most {self.max_agents_in_flight} at once)>"
        )

    def summary(self) -> dict[str, Any]:
        """All of it, JSON-able."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def _begin(self, agent: str | None, rank: int) -> None:
        self.calls += 1
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        if agent is not None:
            self.calls_by_agent[agent] += 1
            self.ranks_by_agent.setdefault(agent, Counter())[rank] += 1
            self.in_flight_by_agent[agent] += 1
            self.max_agents_in_flight = max(self.max_agents_in_flight, len(self.in_flight_by_agent))

    def _end(self, agent: str | None) -> None:
        self.in_flight -= 1
        if agent is not None:
            self.in_flight_by_agent[agent] -= 1
            if not self.in_flight_by_agent[agent]:
                del self.in_flight_by_agent[agent]


@dataclass(eq=False, slots=True)
class ServedCall:
    """One request to the engine and the reply that it will have."""

    request: Request
    reply: Reply
    agent: str | None
    driver: Driver
    """Of the engine that has it."""
    done: asyncio.Future[bool]
    """True: finished; False: the server is closing."""

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt [tokens]."""
        return self.request.prompt_tokens

    @property
    def output_tokens(self) -> int:
        """Length of the reply [tokens]."""
        return self.request.output.tokens

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens found in the cache."""
        return self.request.cached_tokens or 0

    @property
    def finish_reason(self) -> str:
        """Why the reply ended, in the words of a chat completion."""
        return "length" if self.reply.cut else "tool_calls" if self.reply.calls else "stop"


class Driver:
    """Runs the engine beside the event loop's clock, `time_scale` seconds of it to one of ours.

    An infinite scale takes no time at all: whatever is sent is finished before the loop goes on.

    Args:
        engine: what runs.
        time_scale: simulated seconds per second.
        page: what shows it.
        stats: of the server, which may have several engines; default: its own.
        rank: which of its engines this is.
    """

    def __init__(
        self,
        engine: Engine,
        time_scale: float,
        page: MetricsPage,
        stats: ServerStats | None = None,
        rank: int = 0,
    ) -> None:
        self.engine = engine
        self.page = page
        self.stats = ServerStats() if stats is None else stats
        self.rank = rank
        self._time_scale = time_scale
        self._calls: dict[str, ServedCall] = {}
        self._sent = 0
        self._started_s = time.monotonic()
        self._beat_at: asyncio.TimerHandle | None = None
        self._closed = False

    def send(
        self, prompt: tuple[Run, ...], output: Run, reply: Reply, agent: str | None
    ) -> ServedCall:
        """Submit a call.

        Raises:
            ValueError: it can never fit.
        """
        self._catch_up()
        self._sent += 1
        engine = f"e{self.rank}" if self.rank else ""  # ids are unique in the server
        request = Request(f"{engine}r{self._sent}", prompt, output, self._now())
        self.engine.submit(request)
        done = asyncio.get_running_loop().create_future()
        call = ServedCall(request, reply, agent, self, done)
        self._calls[request.id] = call
        self.stats._begin(agent, self.rank)
        self._plan()
        if self._closed:
            self.close()
        return call

    def abandon(self, call: ServedCall) -> None:
        """The client has gone away, or has its answer: nothing happens in the second case."""
        self._catch_up()
        if self._calls.pop(call.request.id, None) is None:
            return
        self.engine.cancel(call.request.id, self._now())
        self.stats.aborted += 1
        self.stats._end(call.agent)
        self.page.finished(call.request, "abort")
        self._plan()

    def let_go(self, runs: tuple[Run, ...]) -> None:
        """What of a sequence no other one uses is evicted next."""
        self._catch_up()
        self.engine.cache.let_go(runs)

    def progress(self, call: ServedCall) -> int:
        """Output tokens so far."""
        self._catch_up()
        if call.request.id not in self._calls:
            return call.output_tokens
        return self.engine.progress(call.request.id)

    def close(self) -> None:
        """Give up all calls in flight."""
        self._closed = True
        if self._beat_at is not None:
            self._beat_at.cancel()
        for call in self._calls.values():
            if not call.done.done():
                call.done.set_result(False)

    def _now(self) -> float:
        """Simulated time [s]."""
        if self._time_scale == math.inf:
            return self.engine.counters().at_s
        return (time.monotonic() - self._started_s) * self._time_scale

    def _catch_up(self) -> None:
        to_s = self._now()
        for event in self.engine.advance(to_s):
            if event.kind == "finished":
                self._finish(event.request)

    def _finish(self, request: Request) -> None:
        call = self._calls.pop(request.id)
        stats = self.stats
        stats._end(call.agent)
        stats.prompt_tokens += request.prompt_tokens
        stats.cached_tokens += request.cached_tokens or 0
        stats.output_tokens += request.output.tokens
        self.page.finished(request, "length" if call.reply.cut else "stop")
        if not call.done.done():
            call.done.set_result(True)

    def _plan(self) -> None:
        """Look at the engine again when it has something to say."""
        if self._beat_at is not None:
            self._beat_at.cancel()
            self._beat_at = None
        next_s = self.engine.next_event_s()
        if next_s is None or self._closed:
            return
        delay_s = 0.0
        if self._time_scale != math.inf:
            delay_s = max(_BEAT_S, (next_s - self._now()) / self._time_scale)
        self._beat_at = asyncio.get_running_loop().call_later(delay_s, self._beat)

    def _beat(self) -> None:
        self._beat_at = None
        if self._time_scale == math.inf:
            while (next_s := self.engine.next_event_s()) is not None:
                for event in self.engine.advance(next_s):
                    if event.kind == "finished":
                        self._finish(event.request)
        else:
            self._catch_up()
        self._plan()


class ClosingError(Exception):
    """The server is shutting down, or the client has gone: no answer is needed."""
