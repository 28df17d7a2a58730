"""The handle a user holds: an agent. What it does in its life is in `step`.

A handle is thin. What the governor knows of an agent is its `Session`, which changes only under the
governor's lock; the handle refers to the place and not the other way round, so a handle that is
dropped without leaving can be collected, and then leaves.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, Protocol

from concur_agents import _moved
from concur_agents._outside import finishing
from concur_agents._text import shown_id, wire_id
from concur_agents.probes.pinning import RANK_HEADER
from concur_agents.probes.usage import read_usage
from concur_agents.runtime import generators
from concur_agents.runtime.blocks import Suspension, Tool
from concur_agents.runtime.checks import read_flag, read_name, read_seconds
from concur_agents.runtime.context import current
from concur_agents.runtime.place import Place
from concur_agents.runtime.served import KEY_HEADER, TOKEN_HEADER
from concur_agents.runtime.session import AgentStats, End, Session
from concur_agents.runtime.step import Step, caller

if TYPE_CHECKING:
    from concur_agents.core import Chain, Usage
    from concur_agents.probes import Probe
    from concur_agents.runtime.endpoints import Address
    from concur_agents.runtime.monitor import Monitor


_LONGEST_KEY = 128
"""SGLang's gateway ignores a longer routing key [bytes]."""


class Governing(Protocol):
    """A governor as its agents and the adapters see it."""

    ungoverned: Literal["pass", "agent", "error"]
    """What becomes of a call that has no agent."""

    routes: tuple[str, ...]
    """Further routes of LLM calls, beside those that are known."""

    api_key: str | None
    """The key of all its addresses; None: it was given none."""

    @property
    def probe(self) -> Probe | None:
        """What reads the engine; None: nothing is read."""
        ...

    @property
    def addresses(self) -> dict[str, Address]:
        """Where each pool's calls go, by the names of the pools; empty: there is one pool."""
        ...

    def address_of(self, agent: str) -> Address | None:
        """Where the calls of an agent go; None: there is one pool, or it has none yet."""
        ...

    def session_of(self, agent: str) -> str | None:
        """The session that a call of an agent is to name to its engine; None: it names none."""
        ...

    @property
    def router(self) -> str | None:
        """Where all calls go, because a router picks; None: they go to the pools themselves."""
        ...

    def unpin(self, url: str) -> None:
        """Calls to an address cannot be pinned: its engines are one pool from here on."""
        ...

    def heard(self, agent: Agent, headers: Mapping[str, Any], sent: Address | None = None) -> None:
        """Looks at the headers of an answer, which may say which pool serves an agent."""
        ...

    def hold(self) -> AbstractContextManager[object]:
        """A block in which no agent passes a boundary."""
        ...

    def flushed(self, pool: str | None = None) -> None:
        """The cache of a pool has been emptied; None: of all."""
        ...

    def agent(
        self,
        id: object = None,  # noqa: A002  (the word that users know it by)
        *,
        priority: int = 0,
        prompt_tokens: int | None = None,
        detached: bool = False,
        timeout_s: float | None = None,
        group: object = None,
    ) -> Agent:
        """An agent, to be entered."""
        ...

    def current_agent(self) -> Agent | None:
        """The innermost agent of this governor that this code runs in."""
        ...

    def meet_ungoverned(self, what: str) -> None:
        """A call was made with no agent in context."""
        ...


class Agent(Place):
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
        monitor: Monitor,
        session: Session,
        *,
        governor: Governing,
        prompt_tokens: int | None = None,
        timeout_s: float | None = None,
        outer: Agent | None = None,
    ) -> None:
        super().__init__(monitor, session, prompt_tokens=prompt_tokens, timeout_s=timeout_s)
        self._governor = governor
        self.outer = outer
        """The agent this one was opened in, whichever governor that belongs to."""

    # Who it is

    @property
    def id(self) -> str:
        """Its name with the governor."""
        return self._session.id

    @property
    def priority(self) -> int:
        """Higher goes first."""
        return self._session.priority

    @property
    def governor(self) -> Governing:
        """The governor that decides about it."""
        return self._governor

    @property
    def pool(self) -> str | None:
        """The pool it is in; None: the governor has one, or it has none yet."""
        return self._monitor.look(lambda _: self._monitor.sessions.regulator.pool_of(self.id))

    @property
    def base_url(self) -> str | None:
        """The address of its pool, as it was given to the governor, for clients that are not ours.

        Behind a router: the router's. None: the governor has one pool, or the agent has none yet.
        Ask for each call anew, because an agent whose pool is down gets another one.
        """
        address = self._governor.address_of(self.id)
        return self._governor.router if address is None else address.url

    @property
    def headers(self) -> dict[str, str]:
        """What a client that is not ours should send with each call, beside its own headers.

        The agent's id, for routers that keep an agent on its replica; behind an address of several
        ranks also the rank. Behind a router (`pools=`) the id is that of the agent whose place it
        shares, because a family is in one pool, and what the router wants back is there, too: tell
        `heard` of each answer.
        """
        governor, root = self._governor, self._session.root
        address = governor.address_of(self.id)
        if governor.router is not None:
            key = wire_id(root.id)
            headers = {"x-session-id": key, KEY_HEADER: key[:_LONGEST_KEY]}
            if root.token is not None:
                headers[TOKEN_HEADER] = root.token
            return headers
        headers = {} if governor.probe is None else {"x-session-id": wire_id(self.id)}
        if address is not None and address.rank is not None:
            headers[RANK_HEADER] = str(address.rank)
        return headers

    def heard(self, headers: Mapping[str, Any]) -> None:
        """Says what headers an answer had, for clients that are not ours.

        Behind a router (`pools=`) they tell which pool serves the agent. Governed clients do this
        by themselves. Of an answer that is an error leave it out.

        Args:
            headers: by name, in whatever case.
        """
        lower = {str(name).lower(): value for name, value in headers.items()}
        self._governor.heard(self, lower, self._governor.address_of(self.id))

    @property
    def state(self) -> str | None:
        """One of `core.State`'s words; None: it has not arrived yet, or has left."""
        return self._monitor.agent_state(self.id)

    @property
    def stats(self) -> AgentStats:
        """What it has done so far; final once it has left."""
        return self._monitor.look(self._session.stats)

    def __repr__(self) -> str:
        state = "left" if self.left else self.state or "new"
        return f"<Agent {shown_id(self.id)!r} {state}, {self._session.steps} steps>"

    # Its steps

    def step(self, prompt_tokens: int | None = None, *, prefix: Chain | None = None) -> Step:
        """One LLM call with all its retries, as a block; also plain `with`.

        Args:
            prompt_tokens: size of the prompt [tokens], if known beforehand.
            prefix: names of its leading parts, shortest first, each with the tokens up to its
                end; parts that agents have in common are charged once.
        """
        return self._make_step(prompt_tokens, prefix)

    async def gate(
        self,
        prompt_tokens: int | None = None,
        *,
        prefix: Chain | None = None,
        source: str = "gate",
    ) -> Step:
        """Waits until this agent may run, and begins a call. To be ended with `done`.

        A gate inside an open call of this agent is part of that call, except that a second gate of
        the same `source` begins a new call: the caller has gone on, as after an abandoned stream.
        """
        return await self._make_step(prompt_tokens, prefix, source=source).__aenter__()

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
        return self._make_step(prompt_tokens, prefix, source=source).__enter__()

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
            usage: what it used, in any form that `Step.record` takes; None: not
                reported. What holds no counts is warned of once, as there.
            step: which call, as returned by the gate. None: this task's latest, else the oldest.
            overloaded: the endpoint refused it for lack of capacity (429, 503).
            retry_after_s: how long the endpoint asked to wait [s].
        """
        if step is not None:
            self._end_step(step, usage, overloaded, retry_after_s)
            return
        end = End(self._read(usage), read_flag(overloaded), read_seconds(retry_after_s))
        self._monitor.end_any(self._session, caller(), end)

    @finishing
    def _end_step(self, step: Step, usage: object, overloaded: bool, retry_after_s: float) -> None:
        told = self._read(usage)
        if told is not None:
            step.usage = told
        step._end(overloaded, retry_after_s)

    def _read(self, usage: object) -> Usage | None:
        told = read_usage(usage)
        if told is None and usage is not None:
            self._monitor.meet_unread_usage(usage)
        return told

    async def checkpoint(self) -> None:
        """An explicit boundary, for clients that are not governed: waits for the turn, no more."""
        step = self._make_step(None, None)
        try:
            await step.begin()
        finally:
            step.withdraw()

    def checkpoint_sync(self) -> None:
        """As `checkpoint`, in a thread."""
        step = self._make_step(None, None)
        try:
            step.begin_sync()
        finally:
            step.withdraw()

    # What is not a step

    def suspended(self) -> Suspension:
        """Gives the place back during a long tool call, as a block; also plain `with`.

        On leaving the block the agent asks for its place again without waiting for it, and goes
        before new agents while its prefix is probably still cached; it waits, if it has to, at its
        next boundary. A call that needs the place meanwhile keeps it or gets it again: a call in
        flight, or an agent nested in this one. A nested agent has no place of its own to give.
        """
        return Suspension(self._monitor, self._session)

    def off(self) -> Suspension:
        """The name of `suspended` before 0.2."""
        _moved.warn("Agent.off", "Agent.suspended")
        return self.suspended()

    def tool(self, name: object) -> Tool:
        """Times a tool call, as a block; also plain `with`. See `Governor.tool_times`."""
        return Tool(self._monitor, self._session, read_name(name, "the name of a tool") or "tool")

    # Inside

    def _make_step(
        self, prompt_tokens: int | None, prefix: Chain | None, *, source: str = ""
    ) -> Step:
        return Step(self._monitor, self._session, prompt_tokens, prefix, source=source, agent=self)


def current_agent() -> Agent | None:
    """The innermost agent this code runs in, whichever governor it belongs to.

    None outside of any agent, and after the agent has left: a task that outlives its agent
    has none.
    """
    agent = innermost()
    while agent is not None and agent.left:
        agent = agent.outer
    return agent


def innermost() -> Agent | None:
    """The agent whose block this code runs in; it may have left since."""
    ref: weakref.ref[Agent] | None = current.get()
    return generators.find(None if ref is None else ref())
