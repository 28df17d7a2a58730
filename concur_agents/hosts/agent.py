"""The handle a user holds: an agent. What it does in its life is in `step`.

A handle is thin. What the governor knows of an agent is its `Place`, which changes only under the
governor's lock; the handle refers to the place and not the other way round, so a handle that is
dropped without leaving can be collected, and then leaves.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import Token
from types import TracebackType
from typing import TYPE_CHECKING, Self

from concur_agents.context import _current
from concur_agents.errors import ConfigError, GateError
from concur_agents.hosts.checks import read_seconds
from concur_agents.hosts.place import AgentStats, End, Place, Turn
from concur_agents.hosts.step import Off, Step, Tool, caller
from concur_agents.hosts.usage import read_usage
from concur_agents.hosts.waiter import (
    CallWaiter,
    LoopWaiter,
    ThreadWaiter,
    Waiter,
    is_thread_needed,
    running_loop,
)

if TYPE_CHECKING:
    from concur_agents.core import Chain
    from concur_agents.governor import Governor


_LOOK_S, _NEXT_LOOK_S = 0.5, 0.05
"""A thread that waits looks so often whether others need it; once they did, it expects them."""


class Agent:
    """One agent's place with a governor, held for its whole life. Made by `Governor.agent`.

        async with gov.agent("issue-17") as agent:    # waits here until it is let in
            async with agent.step() as step:          # waits here when it is someone else's turn
                reply = await client.chat.completions.create(...)
                step.record(reply.usage)

    In synchronous code the same with plain `with`. Inside the block it is the `current_agent()`,
    so governed clients and nested agents find it without being told. It can be entered once.
    """

    def __init__(
        self,
        governor: Governor,
        place: Place,
        *,
        prompt_tokens: int | None = None,
        outer: Agent | None = None,
    ) -> None:
        self._governor = governor
        self._place = place
        self._prompt_tokens = prompt_tokens
        self._entered = False
        self._token: Token[Agent | None] | None = None
        self._thread: int | None = None  # it has this thread to itself
        self._was_needed = False  # a thread that it waited in was needed by others
        self.outer = outer
        """The agent this one was opened in, whichever governor that belongs to."""

    # Who it is

    @property
    def id(self) -> str:
        """Its name with the governor."""
        return self._place.id

    @property
    def priority(self) -> int:
        """Higher goes first."""
        return self._place.priority

    @property
    def governor(self) -> Governor:
        """Whom it asks."""
        return self._governor

    @property
    def left(self) -> bool:
        """Whether its life is over: its block was left, or it was dropped."""
        return self._place.left_s is not None

    @property
    def state(self) -> str | None:
        """'queued', 'reasoning', 'acting', 'paused' or 'off'; None: not there yet, or any more."""
        return self._governor.agent_state(self.id)

    @property
    def stats(self) -> AgentStats:
        """What it has done so far; final once it has left."""
        return self._governor.agent_stats(self._place)

    def __repr__(self) -> str:
        state = "left" if self.left else self.state or "new"
        return f"<Agent {self.id!r} {state}, {self._place.steps} steps>"

    # Its life

    async def open(self) -> None:
        """Takes a place and waits for it. For adapters whose agent is no block; see `close`."""
        loop = asyncio.get_running_loop()
        turn = self._enter(lambda: LoopWaiter(loop))
        if turn.waiter is not None:
            await self._wait(turn)

    def open_sync(self) -> None:
        """As `open`, in a thread.

        Raises:
            GateError: it would have to wait, and an event loop runs in this thread.
        """
        self._thread = threading.get_ident()
        turn = self._enter(ThreadWaiter)
        if turn.waiter is not None:
            self._wait_sync(turn)

    def arrive(self, let_in: Callable[[], object]) -> bool:
        """Takes a place without waiting for it. For hosts with a queue of their own.

        Args:
            let_in: called once it has the place, if that is not now; in any thread, and must
                neither block nor raise.

        Returns:
            Whether it has its place already; `let_in` is then not called.
        """
        turn = self._enter(lambda: CallWaiter(let_in))
        return turn.waiter is None

    def close(self) -> None:
        """Leaves: the place goes to the next. Never blocks; calling it again does nothing."""
        self._governor._desk.leave(self._place)

    def expel(self) -> None:
        """Cancels what cannot be cancelled otherwise: an agent in a thread.

        Its gates, and those of agents nested in it, raise `asyncio.CancelledError` from now on,
        also those that wait. A call in flight is not interrupted; the place is held until it
        leaves.
        """
        self._governor._desk.expel(self._place)

    @contextmanager
    def active(self) -> Iterator[Agent]:
        """Makes it the `current_agent()` in a block, without entering or leaving.

        For adapters that run an agent piece by piece, such as around each item of a generator:
        a variable set across a `yield` would leak into the consumer.
        """
        token = _current.set(self)
        try:
            yield self
        finally:
            _current.reset(token)

    async def __aenter__(self) -> Self:
        await self.open()
        self._token = _current.set(self)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.__exit__(kind, error, trace)

    def __enter__(self) -> Self:
        self.open_sync()
        self._token = _current.set(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        token, self._token = self._token, None
        if token is not None:
            # ValueError: closed from another context, as generators are by the collector
            with suppress(ValueError):
                _current.reset(token)

    def __del__(self) -> None:
        if getattr(self, "_entered", False) and not self.left:
            self.close()

    # Its steps

    def step(self, prompt_tokens: int | None = None, *, prefix: Chain | None = None) -> Step:
        """One LLM call with all its retries, as a block; also plain `with`.

        Args:
            prompt_tokens: size of the prompt [tokens], if known beforehand.
            prefix: names of its leading parts, shortest first, each with the tokens up to its
                end; parts that agents have in common are charged once.
        """
        return Step(self, prompt_tokens, prefix, source="step")

    async def gate(
        self,
        prompt_tokens: int | None = None,
        *,
        prefix: Chain | None = None,
        source: str = "gate",
    ) -> Step:
        """Waits until this agent may run, and begins a call. To be ended with `done`.

        Idempotent where it matters: a gate of another `source` inside an open call of the same
        task is part of that call, and another gate of the same source means that the former call
        is over (a stream that was abandoned, say).
        """
        step = Step(self, prompt_tokens, prefix, source=source)
        await step.begin()
        return step

    def gate_sync(
        self,
        prompt_tokens: int | None = None,
        *,
        prefix: Chain | None = None,
        source: str = "gate",
    ) -> Step:
        """As `gate`, in a thread.

        Raises:
            GateError: it would have to wait, and an event loop runs in this thread.
        """
        step = Step(self, prompt_tokens, prefix, source=source)
        step.begin_sync()
        return step

    def done(
        self,
        usage: object = None,
        step: Step | None = None,
        *,
        overloaded: bool = False,
        retry_after_s: float = 0.0,
    ) -> None:
        """A call that passed the gate has ended. From any thread, never blocks or raises.

        Args:
            usage: what it used, in any form that `Step.record` takes; None or something
                unknown: not told.
            step: which call, as returned by the gate. None: this task's latest, else the oldest.
            overloaded: the endpoint refused it for lack of capacity (429, 503).
            retry_after_s: how long the endpoint asked to wait [s].
        """
        told = read_usage(usage)
        if step is None:
            end = End(told, overloaded, read_seconds(retry_after_s))
            self._governor._desk.end_any(self._place, caller(), end)
            return
        if told is not None:
            step.usage = told
        step.finish(overloaded=overloaded, retry_after_s=retry_after_s)

    async def checkpoint(self) -> None:
        """An explicit boundary, for clients that are not governed: waits for the turn, no more."""
        (await self.gate(source="checkpoint")).withdraw()

    def checkpoint_sync(self) -> None:
        """As `checkpoint`, in a thread."""
        self.gate_sync(source="checkpoint").withdraw()

    # What is not a step

    def off(self) -> Off:
        """Gives the place back during a long tool call, as a block; also plain `with`.

        On leaving the block the agent asks for its place again without waiting for it, and goes
        before new agents while its prefix is probably still cached; it waits, if it has to, at its
        next boundary. Whoever needs the place meanwhile keeps it or gets it again: a call in
        flight, or an agent nested in this one. A nested agent has no place of its own to give.
        """
        return Off(self)

    def tool(self, name: str) -> Tool:
        """Times a tool call, as a block; also plain `with`. See `Governor.tool_times`."""
        if not isinstance(name, str):
            raise ConfigError(f"the name of a tool must be a string, got {name!r}")
        return Tool(self, name)

    # Waiting

    def _enter(self, make_waiter: Callable[[], Waiter]) -> Turn:
        if self._entered:
            raise ConfigError(
                f"agent {self.id!r} was entered before; an agent is entered once, "
                "make a new one with governor.agent(...)"
            )
        turn = Turn(self._place, entry=True)
        self._entered = True
        try:
            self._governor._desk.enter(turn, make_waiter, self._prompt_tokens)
        except BaseException:  # refused; or Ctrl-C, wherever that struck
            self._governor._desk.leave(self._place)
            raise
        return turn

    async def _wait(self, turn: Turn) -> None:
        assert isinstance(turn.waiter, LoopWaiter)
        try:
            await turn.waiter.wait()
        except BaseException:  # also when the turn was granted in this very tick
            self._governor._desk.withdraw(turn)
            raise
        self._check_expelled()

    def _wait_sync(self, turn: Turn) -> None:
        assert isinstance(turn.waiter, ThreadWaiter)
        if running_loop() is not None:
            self._governor._desk.withdraw(turn)
            raise GateError(
                f"agent {self.id!r} has to wait for its turn, but an event loop runs in this "
                "thread and a synchronous wait would stop everything on it: use `async with` "
                "and async clients here, or move the synchronous agent to a thread with "
                "`asyncio.to_thread`"
            )
        try:
            self._sleep(turn, turn.waiter)
        except BaseException:  # Ctrl-C
            self._governor._desk.withdraw(turn)
            raise
        self._check_expelled()

    def _sleep(self, turn: Turn, waiter: ThreadWaiter) -> None:
        """Waits, but does not take a thread from those whom it waits for."""
        if turn.entry or self._has_thread():
            waiter.wait()
            return
        most_s = _NEXT_LOOK_S if self._was_needed else _LOOK_S
        while not waiter.wait(most_s):
            if is_thread_needed():
                self._was_needed = True
                self._governor._desk.withdraw(turn)
                self._governor.meet_starvation(self.id)
                return  # the step was never begun, and passes

    def _has_thread(self) -> bool:
        agent = self
        while agent._place.parent is not None and agent.outer is not None:
            agent = agent.outer
        return agent._thread == threading.get_ident()

    def _check_expelled(self) -> None:
        if self._place.is_expelled():
            raise _Expelled(f"agent {self.id!r} was cancelled")


class _Expelled(asyncio.CancelledError, KeyboardInterrupt):
    """Out of a thread now, as by Ctrl-C.

    Retry loops, that of mini-swe-agent among them, try again after anything but the latter; an
    agent that was cancelled would keep its place for minutes.
    """
