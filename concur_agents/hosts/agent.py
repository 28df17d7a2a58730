"""The handles a user holds: an agent, one of its steps, and the blocks inside it.

A handle is thin. What the governor knows of an agent is its `Place`, which changes only under the
governor's lock; the handle refers to the place and not the other way round, so a handle that is
dropped without leaving can be collected, and then leaves.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from contextvars import Token
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

from concur_agents.context import _current
from concur_agents.core import Chain, Usage
from concur_agents.errors import ConfigError, GateError
from concur_agents.hosts.checks import check_chain, check_tokens, read_seconds
from concur_agents.hosts.usage import read_usage
from concur_agents.hosts.waiter import CallWaiter, LoopWaiter, ThreadWaiter, Waiter, running_loop

if TYPE_CHECKING:
    from concur_agents.governor import Governor


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentStats:
    """What one agent has done so far.

    Attributes:
        queued_s: time [s] from its arrival until it was let in.
        paused_s: time [s] it stood at boundaries after that.
        running_s: its life [s] without the two.
        pauses: how often it was paused.
        steps: LLM calls that have ended.
        prompt_tokens: sum over its steps, where the server said so.
        completion_tokens: sum over its steps, where the server said so.
        cached_tokens: sum over its steps; None: no response ever told.
    """

    queued_s: float
    paused_s: float
    running_s: float
    pauses: int
    steps: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None


class End(NamedTuple):
    """How a call ended."""

    usage: Usage | None = None
    overloaded: bool = False
    retry_after_s: float = 0.0
    sent: bool = True  # False: nothing was, so there is nothing to be learned from it


class Turn:
    """One wait for a turn: at the entry (`entry` true), or before one call.

    Guarded by the governor's lock, except for `waiter`, which its owner waits on.
    """

    __slots__ = (
        "entry",
        "granted",
        "joined",
        "key",
        "open",
        "place",
        "prompt_tokens",
        "source",
        "usage",
        "waiter",
    )

    def __init__(
        self,
        place: Place,
        *,
        entry: bool = False,
        key: Hashable = None,
        source: str = "",
        prompt_tokens: int | None = None,
    ) -> None:
        self.place = place
        self.entry = entry
        self.key = key  # the task or thread that makes the call
        self.source = source  # which layer asked: "step", "http", ...
        self.prompt_tokens = prompt_tokens
        self.granted = False
        self.open = False  # the call is in flight
        self.joined: Turn | None = None  # the enclosing call that this one is part of
        self.usage: Usage | None = None  # what parts of it have used
        self.waiter: Waiter | None = None


@dataclass(eq=False, slots=True)
class Place:
    """What a governor knows of one agent from its arrival to its leaving."""

    id: str
    priority: int
    parent: Place | None
    arrived_s: float = 0.0
    left_s: float | None = None
    away: bool = False  # the place is given back for a while (`off`)
    expelled: bool = False  # its gates raise (`expel`)
    entering: Turn | None = None
    asked: list[Turn] = field(default_factory=list)  # its calls that wait at a boundary
    calls: dict[Hashable, Turn] = field(default_factory=dict)  # its calls in flight, by caller
    waiting_since_s: float | None = None
    queued_s: float = 0.0
    paused_s: float = 0.0
    pauses: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int | None = None

    def is_expelled(self) -> bool:
        """Whether it, or an agent whose place it shares, has been expelled."""
        place: Place | None = self
        while place is not None:
            if place.expelled:
                return True
            place = place.parent
        return False

    def note(self, usage: Usage | None) -> None:
        """Adds up what a step used."""
        self.steps += 1
        if usage is None:
            return
        self.prompt_tokens += usage.prompt_tokens
        self.completion_tokens += usage.completion_tokens
        if usage.cached_tokens is not None:
            self.cached_tokens = (self.cached_tokens or 0) + usage.cached_tokens

    def stop_waiting(self, now: float) -> float:
        """Books the wait that ends now as queue or pause; returns how long it was [s]."""
        if self.waiting_since_s is None:
            return 0.0
        waited = now - self.waiting_since_s
        self.waiting_since_s = None
        if self.entering is not None:
            self.queued_s += waited
        else:
            self.paused_s += waited
        return waited

    def stats(self, now: float) -> AgentStats:
        """The sums up to now."""
        end = now if self.left_s is None else self.left_s
        queued, paused = self.queued_s, self.paused_s
        if self.waiting_since_s is not None:
            if self.entering is not None:
                queued += end - self.waiting_since_s
            else:
                paused += end - self.waiting_since_s
        return AgentStats(
            queued_s=queued,
            paused_s=paused,
            running_s=max(0.0, end - self.arrived_s - queued - paused),
            pauses=self.pauses,
            steps=self.steps,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            cached_tokens=self.cached_tokens,
        )


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
        self._governor._leave(self._place)

    def expel(self) -> None:
        """Cancels what cannot be cancelled otherwise: an agent in a thread.

        Its gates, and those of agents nested in it, raise `asyncio.CancelledError` from now on,
        also those that wait. A call in flight is not interrupted; the place is held until it
        leaves.
        """
        self._governor._expel(self._place)

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
            self._governor._end_any(self._place, caller(), end)
            return
        if told is not None:
            step.usage = told
        if overloaded:
            step.refused(retry_after_s)
        step.end()

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
            self._governor._enter(turn, make_waiter, self._prompt_tokens)
        except BaseException:  # refused; or Ctrl-C, wherever that struck
            self._governor._leave(self._place)
            raise
        return turn

    async def _wait(self, turn: Turn) -> None:
        assert isinstance(turn.waiter, LoopWaiter)
        try:
            await turn.waiter.wait()
        except BaseException:  # also when the turn was granted in this very tick
            self._governor._withdraw(turn)
            raise
        self._check_expelled()

    def _wait_sync(self, turn: Turn) -> None:
        assert isinstance(turn.waiter, ThreadWaiter)
        if running_loop() is not None:
            self._governor._withdraw(turn)
            raise GateError(
                f"agent {self.id!r} has to wait for its turn, but an event loop runs in this "
                "thread and a synchronous wait would stop everything on it: use `async with` "
                "and async clients here, or move the synchronous agent to a thread with "
                "`asyncio.to_thread`"
            )
        try:
            turn.waiter.wait()
        except BaseException:  # Ctrl-C
            self._governor._withdraw(turn)
            raise
        self._check_expelled()

    def _check_expelled(self) -> None:
        if self._place.is_expelled():
            raise asyncio.CancelledError(f"agent {self.id!r} was cancelled")


class Step:
    """One LLM call with all its retries. Made by `Agent.step` and `Agent.gate`."""

    __slots__ = (
        "_agent",
        "_overloaded",
        "_prefix",
        "_prompt_tokens",
        "_retry_after_s",
        "_source",
        "_turn",
        "usage",
    )

    def __init__(
        self,
        agent: Agent,
        prompt_tokens: int | None,
        prefix: Chain | None,
        *,
        source: str,
    ) -> None:
        self._agent = agent
        self._prompt_tokens = check_tokens(prompt_tokens)
        self._prefix = check_chain(prefix)
        self._source = source
        self._turn: Turn | None = None
        self._overloaded = False
        self._retry_after_s = 0.0
        self.usage: Usage | None = None
        """What was recorded for it."""

    @property
    def agent(self) -> Agent:
        """Whose step it is."""
        return self._agent

    def record(self, usage: object) -> None:
        """Says what the call used: it makes footprints exact.

        Args:
            usage: the `usage` of a chat completion, completion or response of the openai client,
                the whole response, a dictionary with the same names, LangChain's
                `usage_metadata`, or a `concur_agents.core.Usage`. None is ignored, since streams
                may end without.

        Raises:
            ConfigError: it holds no token counts.
        """
        told = read_usage(usage)
        if told is not None:
            self.usage = told
        elif usage is not None:
            raise ConfigError(
                f"no token counts in {usage!r:.200}: record() takes the `usage` of an OpenAI "
                "response, a dictionary with prompt_tokens and completion_tokens, or a Usage"
            )

    def refused(self, retry_after_s: float = 0.0) -> None:
        """Says that the endpoint refused the call for lack of capacity (429, 503).

        Args:
            retry_after_s: how long it asked to wait [s].
        """
        self._overloaded = True
        self._retry_after_s = read_seconds(retry_after_s)

    async def begin(self) -> None:
        """Waits for the turn. `async with` does this."""
        loop = asyncio.get_running_loop()
        turn = self._begin(lambda: LoopWaiter(loop))
        if turn.waiter is not None:
            await self._agent._wait(turn)

    def begin_sync(self) -> None:
        """Waits for the turn. Plain `with` does this."""
        turn = self._begin(ThreadWaiter)
        if turn.waiter is not None:
            self._agent._wait_sync(turn)

    def end(self) -> None:
        """The call is over. From any thread, never blocks; calling it again does nothing."""
        turn, self._turn = self._turn, None
        if turn is not None:
            end = End(self.usage, self._overloaded, self._retry_after_s)
            self._agent._governor._end(turn, end)

    def withdraw(self) -> None:
        """The call was not sent after all: neither a step nor a failure. As `end` otherwise."""
        turn, self._turn = self._turn, None
        if turn is not None:
            self._agent._governor._end(turn, End(sent=False))

    def _begin(self, make_waiter: Callable[[], Waiter]) -> Turn:
        self._agent._check_expelled()
        turn = self._turn = Turn(
            self._agent._place,
            key=caller(),
            source=self._source,
            prompt_tokens=self._prompt_tokens,
        )
        self._agent._governor._begin(turn, make_waiter, self._prefix)
        return turn

    async def __aenter__(self) -> Self:
        await self.begin()
        return self

    def __enter__(self) -> Self:
        self.begin_sync()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.end()

    def __exit__(self, *_: object) -> None:
        self.end()


class _Block:
    """A block that is the same in sync and async code, since neither end of it waits."""

    __slots__ = ("_agent",)

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def _start(self) -> None:
        raise NotImplementedError

    def _stop(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> None:
        self._start()

    def __exit__(self, *_: object) -> None:
        self._stop()

    async def __aenter__(self) -> None:
        self._start()

    async def __aexit__(self, *_: object) -> None:
        self._stop()


class Off(_Block):
    """The agent is away and its place is free. Made by `Agent.off`."""

    __slots__ = ()

    def _start(self) -> None:
        self._agent._governor._go_off(self._agent._place)

    def _stop(self) -> None:
        self._agent._governor._come_back(self._agent._place)


class Tool(_Block):
    """The agent runs a tool. Made by `Agent.tool`."""

    __slots__ = ("_began_s", "_name")

    def __init__(self, agent: Agent, name: str) -> None:
        super().__init__(agent)
        self._name = name
        self._began_s = 0.0

    def _start(self) -> None:
        self._began_s = self._agent._governor._tool_began(self._agent._place, self._name)

    def _stop(self) -> None:
        self._agent._governor._tool_ended(self._agent._place, self._name, self._began_s)


def caller() -> Hashable:
    """Tells calls made one after the other from calls made in parallel: the task, else the thread.

    An id and no reference: should it be reused, its first owner is gone and so is his call.
    """
    if running_loop() is not None:
        task = asyncio.current_task()
        if task is not None:
            return id(task)
    return -threading.get_ident()
