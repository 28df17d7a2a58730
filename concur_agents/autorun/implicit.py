"""A governor for programs without agents of ours: it takes tasks and threads for agents.

The rules:

- An asyncio task that calls a model is an agent until the task is done.
- Without a task, each piece of work of a `ThreadPoolExecutor` is an agent, and each other thread is
  one until it ends. So a worker that takes one issue after another from a queue is one agent, with
  a context that shrinks from time to time.
- A task that calls a model and then starts tasks that call one, or a main thread that waits for its
  workers, gives its place back until its own next call, so that a parent never blocks its children.
- An agent that makes no call for `IDLE_S` gives its place to one that waits.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections import Counter
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from concur_agents.core.prefixes import Chain
from concur_agents.errors import GateError
from concur_agents.governor import Governor
from concur_agents.runtime.agent import Agent
from concur_agents.runtime.step import Step

logger = logging.getLogger("concur_agents")


IDLE_S = 10.0
"""An implicit agent that makes no call for this time [s] gives its place to one that waits.

It may run a long tool, or be a worker that waits for work while an agent that has work waits for
its place; the governor cannot tell which. At its next call it asks for a place again.
"""


class ImplicitAgent(Agent):
    """An agent that lives as long as its task, its piece of work or its thread."""

    _is_over = False
    last_call_s = 0.0
    """When it was made, or its last call ended [s]."""

    def close(self) -> None:
        """Does nothing before the end, because an adapter closes the agent after each call."""
        if self._is_over:
            super().close()

    def end(self) -> None:
        """The task or thread has ended, and the agent leaves."""
        self._is_over = True
        self.close()

    def __del__(self) -> None:
        self._is_over = True
        super().__del__()

    def done(self, *args: Any, **options: Any) -> None:
        """See `Agent.done`."""
        super().done(*args, **options)
        self.last_call_s = self._monitor.clock()

    def open_sync(self) -> None:
        """As `Agent.open_sync`, but passes where it must not wait."""
        try:
            super().open_sync()
        except GateError:
            self.complain()

    def _make_step(
        self, prompt_tokens: int | None, prefix: Chain | None, *, source: str = ""
    ) -> Step:
        return ImplicitStep(
            self._monitor, self._session, prompt_tokens, prefix, source=source, agent=self
        )

    def complain(self) -> None:
        """A call passes ungoverned, because its thread must not wait."""
        governor = self.governor
        if isinstance(governor, ImplicitGovernor) and not governor.complained:
            governor.complained = True
            logger.warning(
                "a synchronous client is used on an event loop's thread, where a wait would stop "
                "the loop: its calls pass ungoverned if they would have to wait (logged once)"
            )


class ImplicitStep(Step):
    """A step of an `ImplicitAgent`."""

    __slots__ = ()

    def begin_sync(self) -> None:
        """As `Step.begin_sync`, but passes where it must not wait."""
        try:
            super().begin_sync()
        except GateError:
            self.agent.complain()


class ImplicitGovernor(Governor):
    """Takes each task that calls a model for an agent; without a task, each thread."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.complained = False
        self._by_task: WeakKeyDictionary[asyncio.Task[Any], ImplicitAgent] = WeakKeyDictionary()
        self._by_thread = threading.local()
        self._all: WeakSet[ImplicitAgent] = WeakSet()
        self._naming = threading.Lock()
        self._given: Counter[str] = Counter()
        self._of_main: ImplicitAgent | None = None
        # The agent of the task that started this one, or of one further up; tasks inherit it.
        self._above: ContextVar[ImplicitAgent | None] = ContextVar("concur_above", default=None)
        super().__init__(*args, **options)

    def agent(
        self,
        id: object = None,  # noqa: A002  (the word that users know it by)
        *,
        priority: int = 0,
        prompt_tokens: int | None = None,
        detached: bool | None = None,
        timeout_s: float | None = None,
        group: object = None,
    ) -> Agent:
        """See `Governor.agent`. Without any argument: one for this task or thread."""
        given = (id, detached, priority or None, prompt_tokens, timeout_s, group)
        if all(value is None for value in given):
            return self._implicit()
        # Nested only in an agent that the program has opened, because a task is no parent.
        alone = bool(detached) or super().current_agent() is None
        return super().agent(
            id,
            priority=priority,
            prompt_tokens=prompt_tokens,
            detached=alone,
            timeout_s=timeout_s,
            group=group,
        )

    def current_agent(self) -> Agent | None:
        """See `Governor.current_agent`; if there is none, the agent of this task or thread."""
        explicit = super().current_agent()
        if explicit is not None:
            return explicit
        task = _task()
        if task is not None:
            found = self._by_task.get(task)
        else:
            holder = getattr(self._by_thread, "holder", None)
            found = None if holder is None else holder.agent
        return None if found is None or found.left else found

    def end_work(self) -> None:
        """A piece of work of a thread pool is over, and its agent leaves."""
        holder = getattr(self._by_thread, "holder", None)
        if holder is not None:
            del self._by_thread.holder
            holder.agent.end()

    def beat(self) -> float | None:
        """See `Governor.beat`; idle agents give their places back here."""
        rest_s = super().beat()
        view = self.snapshot()
        if not view.paused + view.queued:
            return rest_s
        late_s = view.at_s - IDLE_S
        for agent in list(self._all):
            if agent.state == "acting" and agent.last_call_s <= late_s:
                agent.suspended().__enter__()  # its next call ends this
        return min(IDLE_S / 10, math.inf if rest_s is None else rest_s)

    def _implicit(self) -> ImplicitAgent:
        task = _task()
        thread = threading.current_thread()
        name = thread.name if task is None else task.get_name()
        session = super().agent(self._free_name(name), detached=True)._session
        agent = ImplicitAgent(self._monitor, session, governor=self)
        agent.last_call_s = self._clock()
        self._all.add(agent)
        self._give_way(agent)
        if task is not None:
            self._by_task[task] = agent
            task.add_done_callback(lambda _: agent.end())
            self._above.set(agent)
        else:
            self._by_thread.holder = _Holder(agent)
            if thread is threading.main_thread():
                self._of_main = agent
        return agent

    def _give_way(self, agent: ImplicitAgent) -> None:
        """The agent that started this task or thread gives its place back until its next call."""
        for parent in (self._above.get(), self._of_main):
            if parent is not None and parent is not agent and not parent.left:
                parent.suspended().__enter__()  # its next call ends this

    def _free_name(self, name: str) -> str:
        """The name, with a number if an agent has had it: names of threads are reused."""
        with self._naming:
            self._given[name] += 1
            number = self._given[name]
        return name if number == 1 else f"{name}#{number}"


class _Holder:
    """Ends a thread's agent: it is collected with the thread's local variables."""

    def __init__(self, agent: ImplicitAgent) -> None:
        self.agent = agent

    def __del__(self) -> None:
        self.agent.end()


def _task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None
