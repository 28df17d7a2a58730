"""Says which agents are done, to an engine that evicts by sessions.

A context that no agent will come back to is worth nothing, but an engine's LRU list has it before
those of agents that run a tool. SGLang can be told (see `probes.sessions`): a governed call names
its agent as its session, and when the agent has left, the session is closed. Contexts of agents
that are paused stay as they are, because to let these go first gained nothing and cost up to 12 %
on some batches (docs/laws-tried.md).

All of it is a hint. Whatever goes wrong, agents and calls go on without it.
"""

from __future__ import annotations

import logging
import math
import uuid
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from concur_agents._text import wire_id
from concur_agents.errors import ProbeError
from concur_agents.runtime.attempt import Attempt
from concur_agents.runtime.events import told

if TYPE_CHECKING:
    from concur_agents.runtime.endpoints import Address, Endpoints
    from concur_agents.runtime.events import Dispatcher, Event
    from concur_agents.runtime.poller import EnginePoller

logger = logging.getLogger("concur_agents")

_TRIES = 3  # questions without an answer until an engine counts as one without sessions
_REST_S = 60.0  # between two of them
_ENGINE = "sglang"


class SessionHints:
    """The sessions of one governor's agents.

    Args:
        endpoints: the engines.
        dispatcher: reports which agents leave.
    """

    def __init__(self, endpoints: Endpoints, dispatcher: Dispatcher) -> None:
        self._endpoints, self._dispatcher = endpoints, dispatcher
        self._keepers: set[EnginePoller] = set()
        self._asked: dict[EnginePoller, tuple[int, float]] = {}  # how often, and when next [s]
        self._named: dict[str, set[EnginePoller]] = {}  # agents whose calls named a session
        self._suffix = uuid.uuid4().hex[:8]  # agents of two processes may have the same id
        # No locks: agents may leave in finalisers, which can interrupt whatever holds one.
        self._line: deque[tuple[str, set[EnginePoller]]] = deque()
        self._closing: dict[str, object] = {}  # "by": the thread that closes sessions
        self._closer: Attempt[None] | None = None

    def look(self, poller: EnginePoller, now: float) -> None:
        """A page was read: finds out, in a thread of its own, whether its engine has sessions."""
        tries, next_s = self._asked.get(poller, (0, -math.inf))
        is_ours = poller.engine == _ENGINE and poller.url is not None and poller.background
        if not is_ours or tries >= _TRIES or now < next_s:
            return
        self._asked[poller] = tries + 1, now + _REST_S
        _attempt(partial(self._ask, poller))

    def name_of(self, agent: str, find: Callable[[], Address | None]) -> str | None:
        """The session that a call of an agent is to name; None: it names none.

        Args:
            agent: its id.
            find: where its pool is; None: there is one pool, or it has none yet.
        """
        if not self._keepers:
            return None
        there = self._pollers(find())
        if not there <= self._keepers:
            return None
        self._named.setdefault(agent, set()).update(there)
        return self._name(agent)

    def join(self, timeout_s: float) -> None:
        """Waits until the sessions of agents that have left are closed, for so long [s]."""
        if self._closer is not None:
            self._closer.join(timeout_s)

    def _name(self, agent: str) -> str:
        return f"{wire_id(agent)}~{self._suffix}"

    def _pollers(self, address: Address | None) -> set[EnginePoller]:
        if address is None:
            return {endpoint.poller for endpoint in self._endpoints.all}
        url = address.worker or address.url
        return {endpoint.poller for endpoint in self._endpoints.all if endpoint.url == url}

    def _ask(self, poller: EnginePoller) -> None:
        try:
            keeps = poller.keeps_sessions()
        except ProbeError:
            return  # it is asked again
        self._asked[poller] = _TRIES, math.inf
        if keeps and poller not in self._keepers:
            if not self._keepers:
                self._dispatcher.subscribe(self._note)
            self._keepers.add(poller)
            text = "%s evicts by sessions: it hears of each agent that is done"
            logger.info(text, poller.url, extra=told("sessions_found", url=poller.url))

    def _note(self, event: Event) -> None:
        if event.kind == "left" and event.agent is not None:
            there = self._named.pop(event.agent, None)
            if there is not None:
                self._line.append((self._name(event.agent), there))
                self._close_soon()

    def _close_soon(self) -> None:
        mine = object()
        if self._closing.setdefault("by", mine) is mine:
            self._closer = _attempt(partial(self._close_all, mine))
            if self._closer is None:
                del self._closing["by"]

    def _close_all(self, mine: object) -> None:
        while True:
            names: dict[EnginePoller, list[str]] = {}
            while self._line:
                name, there = self._line.popleft()
                for poller in there:
                    names.setdefault(poller, []).append(name)
            for poller, those in names.items():
                self._close(poller, those)
            del self._closing["by"]
            if not self._line or self._closing.setdefault("by", mine) is not mine:
                return

    def _close(self, poller: EnginePoller, names: list[str]) -> None:
        try:
            poller.close_sessions(names)
        except ProbeError as error:
            if poller in self._keepers:
                self._keepers.discard(poller)
                logger.warning(
                    "the session of an agent that is done cannot be closed, so calls to %s name "
                    "none from here on: %s",
                    *(poller.url, error),
                    extra=told("sessions_lost", url=poller.url, error=str(error)),
                )


def _attempt(work: Callable[[], None]) -> Attempt[None] | None:
    """Does it in a thread of its own; None: there can be no more threads."""
    try:
        return Attempt(work, lambda: None, due_s=math.inf)
    except RuntimeError:
        return None
