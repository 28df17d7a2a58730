"""One LLM call as an adapter makes it: it begins at the gate and ends once.

All adapters meet here. They share how to find the agent of a call, how large its prompt probably
is, and what becomes of a call that has no agent. A call inside a call needs nothing of its own: its
step begins inside an open step, and so is part of that one (see `runtime.step`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from typing import Any
from weakref import WeakKeyDictionary

from concur_agents._outside import finishing, is_from_handler
from concur_agents.adapters import heartbeat, prompts
from concur_agents.adapters.prompts import Prompt
from concur_agents.adapters.routing import router_of
from concur_agents.probes.usage import read_usage
from concur_agents.runtime.agent import Agent, Governing
from concur_agents.runtime.waiter import running_loop


class Call:
    """A call that may leave. Made by `begin` and `begin_sync`; the caller must end it.

    Attributes:
        agent: the agent that makes it.
        over: whether it has ended.
    """

    __slots__ = ("__weakref__", "_is_owner", "_prompt", "_step", "agent", "over")

    def __init__(self, agent: Agent, prompt: Prompt | None, *, is_owner: bool = False) -> None:
        self.agent = agent
        self._prompt = prompt
        self._is_owner = is_owner  # the agent exists for this call only
        if prompt is None:
            self._step = agent.step()
        else:
            self._step = agent.step(prompt.tokens, prefix=prompt.chain)
        self.over = False  # last, see `__del__`

    @property
    def body(self) -> bytes:
        """The JSON body of its request; empty: there is none, or it is not known."""
        return b"" if self._prompt is None else self._prompt.body

    async def begin(self) -> None:
        """Waits until the agent may run."""
        try:
            if self._is_owner:
                await self.agent.open()
            with heartbeat.during_wait():
                await self._step.begin()
        except BaseException:
            self.end()
            raise

    def begin_sync(self) -> None:
        """As `begin`, in a thread."""
        try:
            if self._is_owner:
                self.agent.open_sync()
            self._step.begin_sync()
        except BaseException:
            self.end()
            raise

    def enclose(self) -> None:
        """From here on, later calls of this agent in this context are parts of this one.

        For adapters that cannot put a block around the call. It has no effect after the call.
        """
        self._step.enclose()

    @finishing
    def end(
        self,
        usage: object = None,
        *,
        overloaded: bool = False,
        retry_after_s: float = 0.0,
        aborted: bool = False,
    ) -> None:
        """The call is over. From any thread, never blocks; only the first end counts.

        Args:
            usage: what it used, in any form that `Step.record` takes; None: unknown.
            overloaded: the endpoint refused it for lack of capacity.
            retry_after_s: how long the endpoint asked to wait [s].
            aborted: the engine cut it short, see `Step.aborted`.
        """
        if self.over:
            return
        used = read_usage(usage)
        if used is not None and self._prompt is not None:
            prompts.learn(self.agent, self._prompt, used)
        if used is not None:
            self._step.usage = used
        if aborted:
            self._step.aborted()
        self._step.finish(overloaded=overloaded, retry_after_s=retry_after_s)
        if self._is_owner:
            self.agent.close()
        self.over = True

    @finishing
    def withdraw(self) -> None:
        """Nothing was sent: the adapter only wanted to pass the gate. As `end` otherwise."""
        if not self.over:
            self._step.withdraw()
            self.end()

    def __del__(self) -> None:
        if not getattr(self, "over", True):
            self.end()  # dropped without an end: an abandoned stream


async def begin(
    governor: Governing, what: str, *, read: Callable[[], Prompt | None] = lambda: None
) -> Call | None:
    """Waits until the current agent may run, and begins a call of it.

    Args:
        governor: decides about it.
        what: the call in the words of its framework, for messages.
        read: measures the prompt; called only if there is an agent.

    Returns:
        None: no agent makes the call, or no event loop of asyncio runs here, and it passes.

    Raises:
        UngovernedError: no agent makes it, and the governor was made with `ungoverned="error"`.
    """
    if running_loop() is None:
        router_of(governor).say(
            "loop",
            "calls pass ungoverned where no event loop of asyncio runs, as on trio: use a "
            "synchronous client in a thread, as with `trio.to_thread.run_sync` (logged once)",
        )
        return None
    call = _prepare(governor, what, read)
    if call is not None:
        await call.begin()
    return call


def begin_sync(
    governor: Governing, what: str, *, read: Callable[[], Prompt | None] = lambda: None
) -> Call | None:
    """As `begin`, in a thread.

    Raises:
        GateError: it would have to wait, and an event loop runs in this thread.
    """
    call = _prepare(governor, what, read)
    if call is not None:
        call.begin_sync()
    return call


def _prepare(governor: Governing, what: str, read: Callable[[], Prompt | None]) -> Call | None:
    agent = governor.current_agent()
    is_owner = agent is None
    if agent is None:
        governor.meet_ungoverned(what)
        if governor.ungoverned != "agent":
            return None
        agent = governor.agent()
    try:
        prompt = read()
        if prompt is not None:
            prompts.estimate(agent, prompt)
    except Exception as error:
        if is_from_handler(error):
            raise
        prompt = None  # because a failed estimate must not fail the call
    return Call(agent, prompt, is_owner=is_owner)


class InFlight:
    """Calls of a framework that reports their begin and their end apart, with an id of its own."""

    def __init__(self) -> None:
        self._calls: dict[Hashable, tuple[Call, set[Hashable] | None]] = {}
        self._by_task: WeakKeyDictionary[asyncio.Task[Any], set[Hashable]] = WeakKeyDictionary()

    def add(self, key: Hashable, call: Call, *, in_task: bool = False) -> None:
        """A call has begun; calls made in this context before its end are parts of it.

        Args:
            key: the framework's id for it.
            call: the call.
            in_task: it ends with the current task at the latest, because the framework does not
                report a call that is cancelled.
        """
        call.enclose()
        task = asyncio.current_task() if in_task else None
        siblings = None if task is None else self._of(task)
        if siblings is not None:
            siblings.add(key)
        self._calls[key] = (call, siblings)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._calls

    def end(self, key: Hashable, usage: object = None, *, overloaded: bool = False) -> None:
        """The call is over. Does nothing if the key is unknown, or a second time."""
        call, siblings = self._calls.pop(key, (None, None))
        if siblings is not None:
            siblings.discard(key)
        if call is not None:
            call.end(usage, overloaded=overloaded)
            if usage is not None:
                router_of(call.agent.governor).meet_unseen(call.agent)

    def _of(self, task: asyncio.Task[Any]) -> set[Hashable]:
        keys = self._by_task.get(task)
        if keys is None:
            keys = self._by_task[task] = set()
            task.add_done_callback(self._task_ended)
        return keys

    def _task_ended(self, task: asyncio.Task[Any]) -> None:
        for key in list(self._by_task.pop(task, ())):
            self.end(key)
