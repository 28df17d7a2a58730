"""A governor for programs that know nothing of agents: tasks and threads are taken for them.

See `concur_agents.autorun.running` for the rules.
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
"""An implicit agent that has made no call for so long gives its place to one that waits.

It may be in a long tool, or be a worker that waits for work that will never come while those who
have some wait for its place: nobody has said which. At its next call it asks for a place again.
"""


class ImplicitAgent(Agent):
    """An agent that lives as long as the task, piece of work or thread it stands for."""

    _is_over = False
    last_call_s = 0.0
    """When it last had anything to do with a call [s]."""

    def close(self) -> None:
        """Nothing: whoever made a call does not know where the agent ends."""
        if self._is_over:
            super().close()

    def end(self) -> None:
        """The task or thread has ended."""
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
                "a synchronous client is used on an event loop's thread, where waiting would stop "
                "everything: its calls pass ungoverned when it is not their turn (said once)"
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
    """Takes each task, and outside of tasks each thread, that calls a model for an agent."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.complained = False
        self._by_task: WeakKeyDictionary[asyncio.Task[Any], ImplicitAgent] = WeakKeyDictionary()
        self._by_thread = threading.local()
        self._all: WeakSet[ImplicitAgent] = WeakSet()
        self._naming = threading.Lock()
        self._given: Counter[str] = Counter()
        self._of_main: ImplicitAgent | None = None
        # Inherited by the tasks that a task starts: the last agent further up.
        self._above: ContextVar[ImplicitAgent | None] = ContextVar("concur_above", default=None)
        super().__init__(*args, **options)

    def agent(
        self,
        id: str | None = None,  # noqa: A002  (the word that users know it by)
        *,
        priority: int = 0,
        prompt_tokens: int | None = None,
        detached: bool | None = None,
    ) -> Agent:
        """See `Governor.agent`. Without any argument: one for this task or thread."""
        if id is None and detached is None and not priority and prompt_tokens is None:
            return self._implicit()
        # Nested only in an agent that somebody has opened; a task is nobody's parent.
        alone = bool(detached) or super().current_agent() is None
        return super().agent(id, priority=priority, prompt_tokens=prompt_tokens, detached=alone)

    def current_agent(self) -> Agent | None:
        """See `Governor.current_agent`; else the one of this task or thread."""
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
        """A piece of work of a thread pool is over, and with it the agent that it was."""
        holder = getattr(self._by_thread, "holder", None)
        if holder is not None:
            del self._by_thread.holder
            holder.agent.end()

    def beat(self) -> float | None:
        """See `Governor.beat`; idle agents give way here."""
        rest_s = super().beat()
        view = self.snapshot()
        if not view.paused + view.queued:
            return rest_s
        late_s = view.at_s - IDLE_S
        for agent in list(self._all):
            if agent.state == "acting" and agent.last_call_s <= late_s:
                agent.suspended().__enter__()  # it comes back by itself, at its next call
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
        """Whoever conducts this task or thread gives its place back until its own next call."""
        for conductor in (self._above.get(), self._of_main):
            if conductor is not None and conductor is not agent and not conductor.left:
                conductor.suspended().__enter__()  # it comes back by itself, at its next boundary

    def _free_name(self, name: str) -> str:
        """Names of threads come again and again; an agent's should not."""
        with self._naming:
            self._given[name] += 1
            number = self._given[name]
        return name if number == 1 else f"{name}#{number}"


class _Holder:
    """Kept by a thread; goes with it."""

    def __init__(self, agent: ImplicitAgent) -> None:
        self.agent = agent

    def __del__(self) -> None:
        self.agent.end()


def _task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None
