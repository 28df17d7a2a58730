"""Hosts a `Regulator`, which is pure and decides, for all threads and event loops of a process.

Around the regulator stands what it must not know, one part each:

    Agent, Step ──▶ Monitor ──▶ Sessions ──▶ Regulator    the lock; who is here; who may run
                       ▲
       PollThread ──▶ Ticker ──▶ EnginePoller ──▶ Probe   what time brings; how the engine is read

The host makes them, shows them, and ends them. It fails open: a metrics outage, a bug of ours, a
closed governor or a forked process never stops an agent: it passes.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Never, Self, cast

from concur_agents import _moved
from concur_agents.core import FIRST_READING_S, Law
from concur_agents.errors import ConfigError
from concur_agents.recording import MAX_BYTES
from concur_agents.runtime.agent import Agent, current_agent, innermost
from concur_agents.runtime.checks import (
    check_priority,
    check_routes,
    check_timeout,
    check_tokens,
    read_name,
)
from concur_agents.runtime.config import OPTION_NAMES, governor_options, settings, unknown_option
from concur_agents.runtime.endpoints import (
    Endpoint,
    Endpoints,
    addresses_in,
    behind,
    make_regulator,
)
from concur_agents.runtime.events import Dispatcher
from concur_agents.runtime.law_choice import choose_law
from concur_agents.runtime.monitor import Monitor
from concur_agents.runtime.pin_watch import PinWatch
from concur_agents.runtime.poll_thread import PollThread
from concur_agents.runtime.poller import EnginePoller
from concur_agents.runtime.pool_reader import PoolReader
from concur_agents.runtime.pools import Pools
from concur_agents.runtime.rank_search import RankSearch
from concur_agents.runtime.reads import Reads
from concur_agents.runtime.recording_session import RecordingSession
from concur_agents.runtime.regrouping import Regrouping
from concur_agents.runtime.served import Served
from concur_agents.runtime.session import Session
from concur_agents.runtime.session_hints import SessionHints
from concur_agents.runtime.sessions import Sessions
from concur_agents.runtime.sharing import Finder, Sharing
from concur_agents.runtime.ticker import Ticker
from concur_agents.runtime.ungoverned import Ungoverned, UngovernedCalls, check_ungoverned
from concur_agents.runtime.weakly import weakly
from concur_agents.wire import SharedLaw

if TYPE_CHECKING:
    from concur_agents.core import Regulator
    from concur_agents.probes import Probe
    from concur_agents.probes.connection import Headers, Verify

logger = logging.getLogger("concur_agents")


class Host(Reads, Pools):
    """Hosts one `Regulator` for the threads and event loops of a process.

    `Governor` is this and its shortcuts to frameworks; its docstring explains the options. Batches
    and observers are typed against this class, so that they need no door.
    """

    def __init__(
        self,
        url: str | Iterable[str] | None = None,
        *,
        law: str | Law | None = None,
        limit: float | None = None,
        probe: Probe | None = None,
        pools: Iterable[str] | Mapping[str, str] | None = None,
        ranks: int | None = None,
        api_key: str | None = None,
        metrics_headers: Headers | None = None,
        metrics_verify: Verify = True,
        poll_interval_s: float = 1.0,
        max_wait_s: float | None = None,
        max_open: int | None = None,
        blind_after_s: float = 30.0,
        blind_agents: int = 8,
        ungoverned: Ungoverned = "pass",
        routes: Iterable[str] = (),
        record: str | os.PathLike[str] | None = None,
        shadow: str | Law | None = None,
        socket: str | os.PathLike[str] | None = None,
        shared: str | Finder | None = None,
        token: str | None = None,
        background: bool = True,
        clock: Callable[[], float] = time.monotonic,
        **unknown: Never,
    ) -> None:
        others: dict[str, Any] = dict(unknown)
        if "max_started" in others:
            _moved.warn("max_started", "max_open")
            former = others.pop("max_started")
            max_open = former if max_open is None else max_open
        for name in others:
            raise ConfigError(unknown_option(name, also=("probe", "background", "clock")))
        if not poll_interval_s > 0:
            raise ConfigError(f"poll_interval_s must be above 0 s, got {poll_interval_s}")
        names = {} if pools is None else behind(url, pools)
        urls = list(names) or addresses_in(url)
        if url is not None and probe is not None:
            raise ConfigError("give either a url or a probe, not both: each says what to read")
        if api_key is not None and url is None and shared is None:
            raise ConfigError("api_key is sent to the url, and there is none: give the url too")
        if url is None and (metrics_headers is not None or metrics_verify is not True):
            raise ConfigError(
                "metrics_headers and metrics_verify are for the url, and there is none: give the "
                "url too, or HttpProbe(url, headers=..., verify=...) as probe"
            )
        has_endpoint = url is not None or probe is not None
        self._sharing: Sharing | None = None
        if shared is not None:
            if not background or (probe, shadow) != (None, None):
                raise ConfigError(
                    "a shared governor has a thread, and no probe or shadow law of its own: leave "
                    "background, probe and shadow out"
                )
            self._sharing = Sharing(
                shared,
                token,
                {
                    "url": url if names else urls or None,
                    "pools": {name: each for each, name in names.items()} or None,
                    "ranks": ranks,
                    "api_key": api_key,
                    "metrics_headers": metrics_headers,
                    "metrics_verify": metrics_verify,
                    "law": law,
                    "limit": limit,
                    "poll_interval_s": poll_interval_s,
                    "max_wait_s": max_wait_s,
                    "max_open": max_open,
                    "blind_after_s": blind_after_s,
                    "blind_agents": blind_agents,
                },
            )
            has_endpoint, law, limit = False, SharedLaw(), None
        elif token is not None:
            raise ConfigError("token is for the daemon, and shared says where that is: give both")
        self._law = choose_law(law, limit, has_endpoint=has_endpoint)
        self._shadow_law = None
        if shadow is not None:
            self._shadow_law = choose_law(shadow, None, has_endpoint=has_endpoint)
        is_cap = self._law.name == "fixed"
        # Without an endpoint a law that learns from usage still needs its ticks; a cap does not.
        self._ticks = has_endpoint or shadow is not None or not is_cap
        self._clock = clock
        self._endpoints = Endpoints(
            urls,
            ranks,
            lambda url: EnginePoller(
                url,
                probe,
                api_key=api_key,
                headers=metrics_headers,
                verify=metrics_verify,
                interval_s=poll_interval_s,
                background=background,
                clock=clock,
            ),
            router=url if names and isinstance(url, str) else None,
            labels=names,
            are_given=shared is not None,
        )
        if shadow is not None and self._endpoints.is_fleet:
            raise ConfigError("a shadow law decides beside one pool, and there are several")
        # A cap is of the whole, and a shadow law decides beside one pool.
        self._finds_ranks = ranks is None and background and not is_cap and shadow is None
        self._finds_ranks &= pools is None  # behind a router calls are pinned to nothing
        self.api_key = api_key
        """Sent to the metrics pages; with several addresses it is the key of all of them."""
        self._regulator_options: dict[str, Any] = {
            "max_wait_s": max_wait_s,
            "max_open": max_open,
            "blind_after_s": blind_after_s,
            "blind_agents": blind_agents,
            # Without an endpoint there is no reading to wait for, and a cap needs none.
            "first_reading_s": FIRST_READING_S if has_endpoint and not is_cap else 0.0,
        }
        if self._endpoints.router is not None:  # agents are where that has them
            self._regulator_options["moves_paused"] = False
        self.ungoverned: Ungoverned = check_ungoverned(ungoverned)
        self._ungoverned_calls = UngovernedCalls()
        self.routes = check_routes(routes)
        self._background = background
        self.on_due: Callable[[], None] | None = None
        """With `background=False`: called when `beat` has become due earlier than it said."""
        self._names = itertools.count(1)
        self._hide: Callable[[], None] = lambda: None
        self._begin()
        if record is not None:
            self.record(record)
        if socket is not None:
            self._hide = self._listen(socket)
        _hosts.add(self)

    @classmethod
    def from_env(cls, **options: Any) -> Self:
        """A governor as the environment says: `CONCUR_URL` (else `OPENAI_BASE_URL`) and so on.

        Args:
            options: as for `Governor`; they go before the environment.

        Raises:
            ConfigError: a variable `CONCUR_*` is unknown, out of its range, or contradicts another;
                `concur config` shows which are in effect.
        """
        known = {name: options.pop(name) for name in list(options) if name in OPTION_NAMES}
        return cls(**governor_options(settings(known)), **options)

    def _begin(self, former: Sessions | None = None) -> None:
        """The parts that belong to one process: no agent is here and nothing has been read."""
        clock, options, endpoints = self._clock, self._regulator_options, self._endpoints
        start_s, sharing = clock(), self._sharing
        try:
            regulator = make_regulator(self._law, start_s, options, list(endpoints.addresses))
        except (TypeError, ValueError) as error:
            raise ConfigError(str(error)) from error
        if sharing is not None:
            regulator = cast("Regulator", sharing.begin(start_s, endpoints))  # it has the door
            self._end_sharing = weakref.finalize(self, sharing.stop)
        self._poll_thread = PollThread(self.beat, endpoints.close)
        self._dispatcher = Dispatcher()
        unread = {**options, "first_reading_s": 0.0}  # one made in the middle waits for none
        sessions = Sessions(
            regulator,
            self._dispatcher,
            max_wait_s=options["max_wait_s"],
            make_regulator=(
                (lambda law, now, pools: make_regulator(law, now, unread, pools))
                if sharing is None
                else (lambda *_: sharing.anew())
            ),
            former=former,
        )
        if former is None:
            self._monitor = Monitor(
                sessions,
                self._dispatcher,
                clock=clock,
                always_beats=self._ticks or sharing is not None,
                nudge=weakly(self._nudge),
            )
        else:  # the agents' handles hold on to it
            self._monitor.begin_anew(sessions, self._dispatcher, forked=True)
        pools = {"pools": list(endpoints.addresses)} if endpoints.is_fleet else {}
        self._recording = RecordingSession(
            self._monitor,
            self._dispatcher,
            law=self._law,
            shadow=self._shadow_law,
            start_s=start_s,
            options={**options, **pools},
            url=endpoints.first.url,
        )
        self._hints = SessionHints(endpoints, self._dispatcher)
        read = endpoints.all if self._ticks or endpoints.is_fleet else []
        if sharing is not None:
            read = []  # the daemon reads them
        readers = [self._reader(each) for each in read]
        self._served = Served(self._monitor, endpoints, weakly(self._nudge))
        self._watch = PinWatch(
            self._monitor, endpoints, self._served, self._dispatcher, weakly(self._nudge)
        )
        self._watch.follow()
        self._regrouping = Regrouping(self._monitor, endpoints, readers, self._watch)
        self._ticker = Ticker(self._monitor, readers, self._regrouping)

    def _reader(self, endpoint: Endpoint) -> PoolReader:
        search = None
        if self._finds_ranks and endpoint.url and endpoint.ranks == 1 and not endpoint.is_sum:
            search = RankSearch(endpoint.poller, weakly(self._nudge))
        return PoolReader(
            self._monitor,
            endpoint,
            search=search,
            hints=self._hints,
            blind_after_s=self._regulator_options["blind_after_s"],
            nudge=weakly(self._nudge),
        )

    def _listen(self, socket: str | os.PathLike[str]) -> Callable[[], None]:
        """Lets `concur watch` look on; returns the function that ends it."""
        raise ConfigError(
            f"socket={str(socket)!r}: only a Governor can be looked at through a socket"
        )

    def _after_fork(self) -> None:
        """In a child process: a governor of its own, and none of the parent's agents.

        Locks that other threads held, the poller and open connections did not survive the fork.
        """
        self._hide()
        now = self._clock()
        former = self._monitor.sessions
        for session in former.by_id.values():
            session.left_s = now  # its gates pass, and it is no current agent
        self._endpoints.after_fork()
        if self._sharing is not None:
            self._end_sharing.detach()
            self._sharing.after_fork()
        self._begin(former)

    # Agents

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
        """An agent, to be entered with `async with` or `with`: waits there until it is let in.

        Opened inside another agent of this governor it is nested: it shares that one's place and
        waits for nothing, so that a sub-agent can never dead-lock its parent.

        Args:
            id: its name, or what has one: of an int, a UUID or a path the text counts. Unique among
                the agents that are alive at once. None: one is made up.
            priority: higher goes first, also at boundaries: an agent that comes to one gives its
                place to a waiting agent of a higher priority.
            prompt_tokens: size of its first prompt [tokens], if known.
            detached: it takes a place of its own even when opened inside another agent.
            timeout_s: longest wait [s] on entering; None: no bound. Use this and not
                `asyncio.wait_for`, which on Python 3.11 enters the agent in a task of its own: the
                calls that follow would then not find it.
            group: a name, as for `id`; agents of one group have the same first prompt, such as the
                samples of one: it is charged once, they are let in one after the other, and they go
                to one pool while it has room.

        Raises:
            ConfigError: an argument is out of its range; on entering, if an agent with this id is
                alive.
            ClosedError: on entering, if the governor is closed.
            TimeoutError: on entering, if it was not let in within `timeout_s`.
        """
        parent = None if detached else self.current_agent()
        name = read_name(id)
        session = Session(
            id=f"agent-{next(self._names)}" if name is None else name,
            priority=check_priority(priority),
            parent=None if parent is None else parent._session,
            group=read_name(group, "a group"),
        )
        first_tokens = check_tokens(prompt_tokens)
        return Agent(
            self._monitor,
            session,
            governor=self,
            prompt_tokens=first_tokens,
            timeout_s=check_timeout(timeout_s),
            outer=innermost(),
        )

    def current_agent(self) -> Agent | None:
        """The innermost agent of this governor that this code runs in."""
        agent = innermost()
        while agent is not None and (agent.governor is not self or agent.left):
            agent = agent.outer
        return agent

    def meet_ungoverned(self, what: str) -> None:
        """For adapters: a call was made with no agent in context.

        Args:
            what: the call, in the words of the framework.

        Raises:
            UngovernedError: `ungoverned="error"` was asked for.
        """
        agent = current_agent()  # of another governor, if there is one
        self._ungoverned_calls.meet(what, self.ungoverned, None if agent is None else agent.id)

    # Recording

    def record(
        self, path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES
    ) -> Callable[[], None]:
        """Records every decision with all its inputs, one JSON line each, from here on.

        For `concur explain`, `report`, `watch` and `replay-law`. Ids, counts and times are written;
        prompts, answers and keys are not. Only a recording begun before the first agent can be
        replayed. It ends with the governor.

        Args:
            path: the file; `{pid}` in it stands for this process.
            max_bytes: bound on its size [bytes]; beyond it the oldest eighth goes.

        Returns:
            The function that ends the recording.

        Raises:
            ConfigError: it cannot be written, or this governor is being recorded already.
        """
        return self._recording.begin(path, max_bytes)

    # Its life

    def close(self) -> None:
        """Stops reading the engine and governing; calling it again does nothing.

        Fails open: agents that wait go on at once, living ones pass every gate from here on, so
        nothing of theirs is lost. New agents are refused with `ClosedError`.
        """
        self._close(join_s=1.0)

    def _close(self, join_s: float) -> None:
        self._monitor.decide(self._monitor.sessions.close)
        self._hide()
        self._recording.end()
        ends_s = time.monotonic() + join_s
        if self._sharing is not None:
            self._end_sharing()
            self._sharing.join(join_s)
        self._poll_thread.stop(join_s)
        if self._poll_thread.thread is None:
            self._endpoints.close()  # otherwise the thread does, as it ends
        for endpoint in self._endpoints.all:
            endpoint.poller.join(max(0.0, ends_s - time.monotonic()))
        self._hints.join(max(0.0, ends_s - time.monotonic()))

    def __reduce__(self) -> Any:
        """Of a shared governor: another one, which connects to the same daemon."""
        if self._sharing is None:
            raise TypeError(
                "a governor belongs to its process and cannot be pickled: make one in each "
                "process, for example with Governor.from_env(), or share one: Governor(shared=...)"
            )
        options: dict[str, Any] = {"ungoverned": self.ungoverned, "routes": self.routes}
        return partial(type(self), **self._sharing.options, **options), ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        self._surface(error)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close(join_s=0.05)  # an event loop must not be held up by a slow last reading
        self._surface(error)

    def _surface(self, error: BaseException | None) -> None:
        bug = self._monitor.sessions.bug
        if bug is not None and error is None:
            raise bug

    # Time passing

    def beat(self) -> float | None:
        """Does what is due now: reads the engine, lets in the agents that only time kept waiting.

        Its own thread calls this; a host without that thread (`background=False`) does.

        Returns:
            How long [s] nothing will be due; None: until something changes.
        """
        return self._ticker.beat()

    @property
    def monitor(self) -> Monitor:
        """What decides, for hosts of agents that are not of this process."""
        return self._monitor

    def start(self) -> None:
        """Reads the engine from now on; otherwise that begins with the first agent."""
        self._nudge()

    def _nudge(self) -> None:
        if not self._background:
            if self.on_due is not None:
                self.on_due()
            return
        try:
            if self._sharing is not None:
                self._sharing.start(self._monitor)
            self._poll_thread.nudge()
        except RuntimeError:  # no more threads, or the interpreter is shutting down
            logger.warning("cannot start the governor's thread; it only acts at boundaries")


_hosts: weakref.WeakSet[Host] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for host in list(_hosts):
        host._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
