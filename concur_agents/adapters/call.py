"""One LLM call as an adapter sees it: it begins at the gate, it ends once.

All adapters meet here. What they share: which agent the call belongs to, how large its prompt
probably is, what happens to a call that belongs to nobody, and that a call which one adapter has
begun (LangChain's hook, say) is not begun again by the next one below it (the HTTP client).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from contextvars import ContextVar, Token
from typing import Any
from weakref import WeakKeyDictionary

from concur_agents.adapters import heartbeat, prompts
from concur_agents.adapters.prompts import Prompt
from concur_agents.core import Usage
from concur_agents.probes.usage import read_usage
from concur_agents.runtime.agent import Agent, Governing
from concur_agents.runtime.step import Step

_enclosing: ContextVar[Call | None] = ContextVar("concur_agents_call", default=None)
_tries: ContextVar[Tries | None] = ContextVar("concur_agents_tries", default=None)


class Call:
    """A call that may leave. Made by `begin` and `begin_sync`; whoever made it must end it.

    Attributes:
        agent: whose call it is.
        over: whether it has ended.
    """

    __slots__ = (
        "__weakref__",
        "_is_last",
        "_owned",
        "_prompt",
        "_step",
        "_was_tried",
        "agent",
        "over",
        "part_of",
    )

    def __init__(
        self,
        agent: Agent,
        prompt: Prompt | None,
        *,
        step: Step | None = None,
        part_of: Call | None = None,
        owned: bool = False,
    ) -> None:
        self.agent = agent
        self.over = False
        self.part_of = part_of
        self._prompt = prompt
        self._step = step
        self._owned = owned  # the agent exists for this call only
        self._is_last = False  # the call that it is part of ends with it
        self._was_tried = False  # a part of it has ended

    def end(
        self, usage: object = None, *, overloaded: bool = False, retry_after_s: float = 0.0
    ) -> None:
        """It is over. From any thread, never blocks; only the first end counts.

        Args:
            usage: what it took, in any form that `Step.record` takes; None: not told.
            overloaded: the endpoint refused it for lack of capacity.
            retry_after_s: how long the endpoint asked to wait [s].
        """
        if self.over:
            return
        self.over = True
        told = read_usage(usage)
        if told is not None and self._prompt is not None:
            prompts.learn(self.agent, self._prompt, told)
        if self.part_of is not None:
            self.part_of.note(told, overloaded=overloaded, retry_after_s=retry_after_s)
            if self._is_last:
                self.part_of.end()
        elif self._step is not None:
            self.agent.done(told, self._step, overloaded=overloaded, retry_after_s=retry_after_s)
        if self._owned:
            self.agent.close()

    def withdraw(self) -> None:
        """Nothing was sent in it: its gate was all that was wanted. As `end` otherwise."""
        if self.over:
            return
        if self._step is not None and self.part_of is None:
            self._step.withdraw()
        self.end()

    def note(self, usage: Usage | None, *, overloaded: bool, retry_after_s: float) -> None:
        """A part of this call has ended (one try of several, or the only one); it goes on."""
        if self._step is None or self.over:
            return
        self._was_tried = True
        if usage is not None:
            self._step.usage = usage
        if overloaded:
            self._step.refused(retry_after_s)

    def part(self, prompt: Prompt | None) -> Call:
        """A part of this call that begins now: its first try, or one more."""
        if self._was_tried and self._step is not None:
            self._step.again()
        return Call(self.agent, prompt, part_of=self)

    def enclose(self) -> None:
        """From here on, calls of this agent in this task are parts of this one, until it ends.

        For adapters that cannot put a block around the call. The variable keeps pointing to this
        call after its end, when it has no effect any more.
        """
        _enclosing.set(self)

    def __del__(self) -> None:
        self.end()  # dropped by whoever made it: an abandoned stream


class Tries:
    """A block in which a client makes one call of its user, with all its HTTP tries.

    They are one step: the first asks the gate, and what follows is part of it. The step ends with
    the block; if the block has an answer that is still to be read, with that.

    Args:
        body: what the client is about to send, if it is known before it is serialised.
    """

    __slots__ = ("_last", "_token", "_whole", "body")

    def __init__(self, body: Mapping[str, object] | None = None) -> None:
        self.body = body
        self._whole: Call | None = None
        self._last: Call | None = None
        self._token: Token[Tries | None] | None = None

    def __enter__(self) -> None:
        self._token = _tries.set(self)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert self._token is not None
        _tries.reset(self._token)
        if self._whole is None or self._last is None:
            return
        if kind is None:
            self._last._is_last = True
        if kind is not None or self._last.over:
            self._whole.end()

    def first(self, call: Call) -> Call:
        """A call that has just passed the gate; returns the part of it that is sent now."""
        self._whole, self._last = call, call.part(call._prompt)
        return self._last

    def before(self, governor: Governing, agent: Agent | None) -> Call | None:
        """The call that a try of this agent (None: of nobody) belongs to; None: it is the first."""
        whole = self._whole
        if whole is None or whole.over or whole.agent.governor is not governor:
            return None
        is_its_own = agent is whole.agent or (agent is None and whole._owned)
        return whole if is_its_own else None

    def again(self, whole: Call, prompt: Prompt | None) -> Call:
        """One more try of it."""
        self._last = whole.part(prompt)
        return self._last


def body_known() -> Mapping[str, object] | None:
    """The body that is about to be sent, where it need not be read from its bytes."""
    tries = _tries.get()
    return None if tries is None else tries.body


class InFlight:
    """Calls of frameworks that tell of their begin and their end apart, by an id of their own."""

    def __init__(self) -> None:
        self._calls: dict[Hashable, tuple[Call, set[Hashable] | None]] = {}
        self._by_task: WeakKeyDictionary[asyncio.Task[Any], set[Hashable]] = WeakKeyDictionary()

    def add(self, key: Hashable, call: Call, *, in_task: bool = False) -> None:
        """A call has begun; what is called inside of it, in this context, is part of it.

        Args:
            key: the framework's id for it.
            call: the call.
            in_task: it is over when the current task is, at the latest. Frameworks tell nobody of
                a call that is cancelled.
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
        """The call is over; saying so again, or of a call that is not known, does nothing."""
        call, siblings = self._calls.pop(key, (None, None))
        if siblings is not None:
            siblings.discard(key)
        if call is not None:
            call.end(usage, overloaded=overloaded)

    def _of(self, task: asyncio.Task[Any]) -> set[Hashable]:
        keys = self._by_task.get(task)
        if keys is None:
            keys = self._by_task[task] = set()
            task.add_done_callback(self._task_ended)
        return keys

    def _task_ended(self, task: asyncio.Task[Any]) -> None:
        for key in list(self._by_task.pop(task, ())):
            self.end(key)


async def begin(
    governor: Governing,
    what: str,
    *,
    source: str,
    read: Callable[[], Prompt | None] = lambda: None,
) -> Call | None:
    """Waits until the agent in context may run, and begins a call of it.

    Args:
        governor: whose agent is looked for.
        what: the call in the words of its framework, for messages.
        source: the layer that asks; see `Agent.gate`.
        read: looks at the prompt, if there is somebody to do it for.

    Returns:
        None: the call belongs to nobody and passes.

    Raises:
        UngovernedError: it belongs to nobody and the governor was made with `ungoverned="error"`.
    """
    call = _prepare(governor, what, read)
    if call is None or call.part_of is not None:
        return call
    prompt = call._prompt
    try:
        if call._owned:
            await call.agent.open()
        with heartbeat.during_wait():
            call._step = await call.agent.gate(
                None if prompt is None else prompt.tokens,
                prefix=None if prompt is None else prompt.chain,
                source=source,
            )
    except BaseException:
        call.end()
        raise
    return _sent(call)


def begin_sync(
    governor: Governing,
    what: str,
    *,
    source: str,
    read: Callable[[], Prompt | None] = lambda: None,
) -> Call | None:
    """As `begin`, in a thread.

    Raises:
        GateError: it would have to wait, and an event loop runs in this thread.
    """
    call = _prepare(governor, what, read)
    if call is None or call.part_of is not None:
        return call
    prompt = call._prompt
    try:
        if call._owned:
            call.agent.open_sync()
        call._step = call.agent.gate_sync(
            None if prompt is None else prompt.tokens,
            prefix=None if prompt is None else prompt.chain,
            source=source,
        )
    except BaseException:
        call.end()
        raise
    return _sent(call)


def _sent(call: Call) -> Call:
    tries = _tries.get()
    return call if tries is None else tries.first(call)


def _prepare(governor: Governing, what: str, read: Callable[[], Prompt | None]) -> Call | None:
    owned = False
    agent = governor.current_agent()
    tries = _tries.get()
    former = None if tries is None else tries.before(governor, agent)
    if former is not None:
        agent = former.agent
    if agent is None:
        governor.meet_ungoverned(what)
        if governor.ungoverned != "agent":
            return None
        agent = governor.agent()
        owned = True
    prompt = None
    with suppress(Exception):  # an estimate is never worth a failed call
        prompt = read()
        if prompt is not None:
            prompts.estimate(agent, prompt)
    outer = _enclosing.get()
    if outer is not None and outer.agent is agent and not outer.over:
        return outer.part(prompt)
    if tries is not None and former is not None:
        return tries.again(former, prompt)
    return Call(agent, prompt, owned=owned)
