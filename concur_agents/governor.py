"""The Governor: one object in front of one KV pool, for all threads and event loops of a process.

It hosts a `Regulator`, which is pure and decides; the governor owns what the regulator must not
know: a lock, a clock, waiters and a thread that reads the engine. The rules here are three:

- Decide under the lock, without waiting and without calling anybody else's code; act (wake,
  deliver events, log) after it.
- Fail open. A metrics outage, a bug of ours, a closed governor or a forked process never stops an
  agent: it passes.
- Whatever frees a place (leaving, ending, cancelling) never blocks and never fails, and works from
  any thread, even from a finaliser that strikes while this very thread holds the lock.
"""

from __future__ import annotations

import importlib
import itertools
import logging
import math
import os
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, fields
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, cast

from concur_agents.config import OPTION_NAMES, governor_options, settings
from concur_agents.context import _current
from concur_agents.core import Chain, Law, LawState, Limit, Reading, Regulator, View, make_law
from concur_agents.errors import (
    ClosedError,
    ConcurError,
    ConfigError,
    ProbeError,
    UngovernedError,
)
from concur_agents.hosts.agent import Agent, AgentStats, End, Place, Turn
from concur_agents.hosts.checks import check_priority, check_tokens
from concur_agents.hosts.doors import Doors
from concur_agents.hosts.events import Dispatcher, Event, EventKind, Watcher
from concur_agents.hosts.waiter import Waiter
from concur_agents.poller import Backoff, Poller
from concur_agents.record import (
    MAX_BYTES,
    Happening,
    Header,
    Recorder,
    Shadow,
    Taped,
    describe_law,
    scrub,
    standing_of,
)

if TYPE_CHECKING:
    from concur_agents.probes import Probe

logger = logging.getLogger("concur_agents")

_HAPPENINGS = frozenset(
    (
        "off_began",
        "off_ended",
        "tool_began",
        "tool_ended",
        "poll_failed",
        "poll_recovered",
        "closed",
    )
)
"""What a recording holds beside the calls of the regulator."""

DEFAULT_LAW = "working_set"
"""The law of a governor that has an endpoint and was told nothing else."""

LONG_WAIT_S = 60.0
"""A wait beyond this is logged with its reason, and again each time it has doubled."""

LAST_LONG_WAIT_S = 7 * 86_400.0
"""Beyond this it has been said often enough."""

SHORTEST_REST_S = 0.001
"""A claim that fades a hair later than computed is not worth a busy loop."""

T = TypeVar("T")

Ungoverned = Literal["pass", "agent", "error"]


@dataclass(frozen=True, kw_only=True)
class GovernorSnapshot(View):
    """Where a governor stands: the regulator's view, and how well the engine can be read.

    Attributes:
        law: name of the law in force.
        url: the endpoint that is read; None: none.
        engine: what kind of engine it is; None: not known (yet).
        last_reading: the engine's last words; None: none yet.
        poll_failures_total: readings that failed.
        poll_error: why the last reading failed; None: it did not.
        blind_s: time [s] since the last good reading, or since the first attempt; 0: no endpoint.
        closed: everybody passes, because the governor was closed, broke, or belongs to a parent
            process.
        shadow: the law that decides beside the one in force, and where it stands; None: none.
    """

    law: str
    url: str | None
    engine: str | None
    last_reading: Reading | None
    poll_failures_total: int
    poll_error: str | None
    blind_s: float
    closed: bool
    shadow: Shadow | None = None


@dataclass(frozen=True, slots=True)
class ToolTime:
    """How long a tool takes, learned from `agent.tool(name)` blocks."""

    calls: int
    mean_s: float
    longest_s: float


class Governor(Doors):
    """Decides which agents may run, so that their contexts stay in the engine's KV cache.

        gov = Governor("http://localhost:8000")     # engine recognised and polled
        gov = Governor(limit=8)                     # no endpoint: a fixed cap of 8 agents

    Usable at once from many threads and event loops. It starts its thread when the first agent
    needs it. `with` (or `async with`, or `close`) ends it; one that is dropped ends by itself.

    Args:
        url: base URL of the serving engine, with or without `/v1`.
        law: a name (see `concur laws`) or a law from `make_law`. Default: `working_set`; with
            `limit`: a fixed cap.
        limit: at most this many active agents, whatever the engine says.
        probe: reads the engine in place of the one made from `url`.
        api_key: sent to the metrics endpoint as a bearer token.
        poll_interval_s: time [s] between readings.
        max_wait_s: an agent that has waited for longer goes first; None: no bound.
        max_started: at most this many agents begun and not finished; None: no bound.
        blind_after_s: after so long [s] without a reading the safe limit applies.
        blind_agents: the safe limit [agents].
        ungoverned: what governed clients do with a call that has no agent: let it "pass" with one
            warning, take it for an "agent" of its own, or raise an "error".
        record: a file for the flight recorder; see `record`.
        shadow: a law that decides beside the one in force, without effect: it is recorded, and
            shown by `snapshot`.
        background: False: no thread of its own; the host calls `beat` when it says so
            (simulated time).
        clock: monotonic time [s].

    Raises:
        ConfigError: an option is out of its range, or two contradict each other.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        law: str | Law | None = None,
        limit: float | None = None,
        probe: Probe | None = None,
        api_key: str | None = None,
        poll_interval_s: float = 1.0,
        max_wait_s: float | None = None,
        max_started: int | None = None,
        blind_after_s: float = 30.0,
        blind_agents: int = 8,
        ungoverned: Ungoverned = "pass",
        record: str | os.PathLike[str] | None = None,
        shadow: str | Law | None = None,
        background: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not poll_interval_s > 0:
            raise ConfigError(f"poll_interval_s must be above 0 s, got {poll_interval_s}")
        if ungoverned not in ("pass", "agent", "error"):
            raise ConfigError(f"ungoverned must be 'pass', 'agent' or 'error', got {ungoverned!r}")
        if url is not None and probe is not None:
            raise ConfigError("give either a url or a probe, not both: each says what to read")
        if api_key is not None and url is None:
            raise ConfigError("api_key is sent to the url, and there is none: give the url too")
        has_endpoint = url is not None or probe is not None
        self._law = _choose_law(law, limit, has_endpoint=has_endpoint)
        self._shadow_law = None
        if shadow is not None:
            self._shadow_law = _choose_law(shadow, None, has_endpoint=has_endpoint)
        # Without an endpoint a law that learns from usage still needs its ticks; a cap does not.
        self._ticks = has_endpoint or shadow is not None or self._law.name != "fixed"
        self._url = url if url is not None else getattr(probe, "url", None)
        self._api_key = api_key
        self._owns_probe = url is not None
        self._clock = clock
        self._probe = self._make_probe() if url is not None else probe
        self._regulator_options: dict[str, Any] = {
            "max_wait_s": max_wait_s,
            "max_started": max_started,
            "blind_after_s": blind_after_s,
            "blind_agents": blind_agents,
        }
        self._max_wait_s = math.inf if max_wait_s is None else max_wait_s
        self.ungoverned: Ungoverned = ungoverned
        self._warned_ungoverned = False
        self._background = background
        self.on_due: Callable[[], None] | None = None
        """With `background=False`: called when `beat` has become due earlier than it said."""
        self._names = itertools.count(1)
        self._tools: dict[str, ToolTime] = {}
        self._closed = False
        self._passing = False  # everybody passes: closed or broken
        self._bug: Exception | None = None
        self._bug_logged = False
        self._forked = False
        self._fork_logged = False
        self._poll_interval_s = poll_interval_s
        self._begin_anew()
        if record is not None:
            self.record(record)
        _governors.add(self)

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

    def _begin_anew(self) -> None:
        """The state of one process: nobody is here and nothing has been read."""
        # Guarded by the lock, as are all places:
        self._lock = threading.Lock()
        self._holder = 0  # the thread that holds the lock, to notice finalisers striking inside it
        self._deferred: queue.SimpleQueue[Callable[[float], Iterable[str]]] = queue.SimpleQueue()
        self._start_s = self._clock()
        try:
            self._regulator = Regulator(self._law, start_s=self._start_s, **self._regulator_options)
        except (TypeError, ValueError) as error:
            raise ConfigError(str(error)) from error
        self._taped: Taped | None = None  # what stands in for the regulator
        self._recorder: Recorder | None = None
        self._ever_decided = False  # the regulator has been called
        self._unwatch: Callable[[], None] = lambda: None
        if self._shadow_law is not None:
            self._tape(Taped(self._regulator, shadow=self._shadow_law))
        self._places: dict[str, Place] = {}
        self._waiting = 0  # turns that somebody waits for
        self._to_wake: deque[Turn] = deque()
        self._due_s = math.inf  # when the poller means to beat next
        self._awake = False  # the poller has been asked to start
        self._poller: Poller | None = None
        self._dispatcher = Dispatcher()
        # Touched only by whoever beats:
        self._beating = threading.Lock()
        self._backoff = Backoff(self._poll_interval_s, jitter=self._background)
        self._poll_at_s = -math.inf
        self._long_wait_s = LONG_WAIT_S
        self._last_reading: Reading | None = None
        self._sighted_s: float | None = None  # last good reading, or first attempt
        self._poll_failures = 0  # in a row
        self._poll_failures_total = 0
        self._poll_error: str | None = None

    def _make_probe(self) -> Probe:
        from concur_agents.probes import HttpProbe

        assert self._url is not None
        return HttpProbe(self._url, api_key=self._api_key, clock=self._clock)

    def _after_fork(self) -> None:
        """In a child process: a governor of its own, and none of the parent's agents.

        Locks that other threads held, the poller and open connections did not survive the fork.
        """
        now = self._clock()
        for place in self._places.values():
            place.left_s = now  # its gates pass, and it is nobody's current agent
        if self._owns_probe:
            self._probe = None  # made when first needed: a fork handler should do little
        self._forked, self._fork_logged = True, False
        self._begin_anew()

    def _tape(self, taped: Taped) -> None:
        self._taped = taped
        self._regulator = cast("Regulator", taped)  # it has the whole door

    # Agents

    def agent(
        self,
        id: str | None = None,  # noqa: A002  (the word that users know it by)
        *,
        priority: int = 0,
        prompt_tokens: int | None = None,
        detached: bool = False,
    ) -> Agent:
        """An agent, to be entered with `async with` or `with`: waits there until it is let in.

        Opened inside another agent of this governor it is nested: it shares that one's place and
        waits for nothing, so that a sub-agent can never dead-lock its parent.

        Args:
            id: its name; unique among the agents that are alive at once. None: one is made up.
            priority: higher goes first.
            prompt_tokens: size of its first prompt [tokens], if known.
            detached: it takes a place of its own even when opened inside another agent.

        Raises:
            ConfigError: on entering, if an agent with this id is alive.
            ClosedError: on entering, if the governor is closed.
        """
        if id is not None and not isinstance(id, str):
            raise ConfigError(f"an agent's id must be a string, got {id!r}: give str(...) of it")
        parent = None if detached else self.current_agent()
        place = Place(
            id=f"agent-{next(self._names)}" if id is None else id,
            priority=check_priority(priority),
            parent=None if parent is None else parent._place,
        )
        first_tokens = check_tokens(prompt_tokens)
        return Agent(self, place, prompt_tokens=first_tokens, outer=_current.get())

    def current_agent(self) -> Agent | None:
        """The innermost agent of this governor that this code runs in."""
        agent = _current.get()
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
        if self.ungoverned == "error":
            raise UngovernedError(
                f"{what} was called outside of any agent, and this governor was made with "
                'ungoverned="error": put it inside `async with governor.agent(...)`; in a thread '
                "of your own, start it through `concur_agents.bind`"
            )
        if self.ungoverned == "pass" and not self._warned_ungoverned:
            self._warned_ungoverned = True
            logger.warning(
                "%s was called outside of any agent and passes ungoverned; wrap the agent in "
                "`async with governor.agent(...)`, and start threads of your own through "
                "`concur_agents.bind` (said once)",
                what,
            )

    def executor(self, max_workers: int | None = None) -> Executor:
        """A drop-in for `ThreadPoolExecutor` in which each task is an agent.

        Args:
            max_workers: at most this many threads, whatever the governor would allow; None: no
                bound.
        """
        # By name: what stands on the governor is loaded by it, but not imported by it.
        module: Any = importlib.import_module("concur_agents.executor")
        executor: Executor = module.GovernedExecutor(self, max_workers)
        return executor

    # Seeing inside

    def snapshot(self) -> GovernorSnapshot:
        """Where things stand now. Cheap; from any thread."""
        view = self._look(self._regulator.view)
        now = view.at_s
        blind_s = 0.0
        if self._sighted_s is not None and self._reads:
            blind_s = max(0.0, now - self._sighted_s)
        return GovernorSnapshot(
            **{field.name: getattr(view, field.name) for field in fields(view)},
            law=self._law.name,
            url=self._url,
            engine=getattr(self._probe, "engine", None),
            last_reading=self._last_reading,
            poll_failures_total=self._poll_failures_total,
            poll_error=self._poll_error,
            blind_s=blind_s,
            closed=self._passing,
            shadow=None if self._taped is None else self._taped.shadow,
        )

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
        if self._recorder is not None:
            raise ConfigError(
                f"this governor is being recorded to {self._recorder.path} already: end that "
                "recording first, with the function that `record` returned"
            )

        def begin(now: float) -> Recorder:
            places = [
                (place.id, self._parent_of(place), place.priority)
                for place in self._places.values()
            ]
            header = Header(
                start_s=self._start_s,
                now=now,
                unix_s=time.time(),
                law=describe_law(self._law),
                regulator=self._regulator_options,
                from_start=not self._ever_decided,
                shadow=None if self._shadow_law is None else describe_law(self._shadow_law),
                url=None if self._url is None else scrub(self._url),
                agents=standing_of(places, self._regulator.agent_state, now),
            )
            recorder = Recorder(path, header, max_bytes=max_bytes)
            if self._taped is None:
                self._tape(Taped(self._regulator))
            assert self._taped is not None
            self._taped.note = recorder.note
            return recorder

        recorder = self._recorder = self._look(begin)

        def watch(event: Event) -> None:
            if event.kind in _HAPPENINGS:
                recorder.note(
                    Happening(
                        kind=event.kind,
                        now=event.at_s,
                        agent=event.agent,
                        reason=event.reason,
                        waited_s=event.waited_s,
                    )
                )

        self._unwatch = self.on_event(watch)
        return lambda: self._end_recording(recorder)

    def _end_recording(self, recorder: Recorder | None) -> None:
        if recorder is None or self._recorder is not recorder:
            return
        self._unwatch()
        self._recorder = None
        if self._taped is not None:
            self._taped.note = None
        recorder.close()

    def explain(self, agent: str) -> str:
        """Why an agent waits, or what it does, in one line for humans."""

        def look(now: float) -> str:
            if agent not in self._places:
                return f"{agent}: not here"
            if self._passing:
                return f"{agent}: passes, nothing is governed any more"
            return self._regulator.explain(agent, now)

        return self._look(look)

    def agent_state(self, agent: str) -> str | None:
        """'queued', 'reasoning', 'acting', 'paused' or 'off'; None: no such agent."""
        return self._look(lambda _: self._regulator.agent_state(agent))

    def agent_stats(self, place: Place) -> AgentStats:
        """The sums of one agent up to now; users read `agent.stats`."""
        return self._look(place.stats)

    def tool_times(self) -> dict[str, ToolTime]:
        """How long each tool takes, learned from `agent.tool(name)` blocks."""
        return self._look(lambda _: dict(self._tools))

    def on_event(self, watcher: Watcher) -> Callable[[], None]:
        """Calls a function with each `Event`, in order, never two at once.

        It runs in whichever thread caused the event, so it should be quick; it may call the
        governor. What it raises is logged once and goes no further.

        Returns:
            The function that ends the subscription.
        """
        return self._dispatcher.subscribe(watcher)

    @property
    def law(self) -> Law:
        """The law in force."""
        return self._law

    @property
    def probe(self) -> Probe | None:
        """What reads the engine; None: nothing is read."""
        return self._probe

    @property
    def own_probe(self) -> Probe | None:
        """The probe made from `url`, which is ours to close; None: there is none."""
        return self._probe if self._owns_probe else None

    def __repr__(self) -> str:
        view = self._look(self._regulator.view)
        where = f" {self._url}" if self._url else ""
        passing = "; closed, everybody passes" if self._passing else ""
        return (
            f"<Governor {self._law.name}{where}: {view.active} active, {view.paused} paused, "
            f"{view.queued} queued{passing}>"
        )

    # Its life

    def close(self) -> None:
        """Stops reading the engine and governing; calling it again does nothing.

        Fails open: agents that wait go on at once, living ones pass every gate from here on, so
        nothing of theirs is lost. New agents are refused with `ClosedError`.
        """
        self._close(join_s=1.0)

    def _close(self, join_s: float) -> None:
        def shut(now: float) -> Iterable[str]:
            if not self._closed:
                self._closed = True
                self._pass_all(now)
                self._tell("closed", now)
            return ()

        self._decide(shut)
        self._end_recording(self._recorder)
        poller, self._poller = self._poller, None
        if poller is not None:
            poller.stop(join_s)
        elif self.own_probe is not None:
            close = getattr(self.own_probe, "close", None)
            if close is not None:
                close()

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
        if self._bug is not None and error is None:
            raise self._bug

    # Time passing

    def beat(self) -> float | None:
        """Does what is due now: reads the engine, lets in whom time alone lets in.

        Its own thread calls this; a host without that thread (`background=False`) does.

        Returns:
            How long [s] nothing will be due; None: until something changes.
        """
        with self._beating:
            try:
                return self._beat()
            except Exception as bug:
                found = bug
                self._decide(lambda now: self._fail(found, now))
                return None

    def check(self) -> Reading:
        """Reads the engine once, now, for those who want to know before they start.

        Raises:
            ProbeError: it cannot be read; the message says what to do.
            ConfigError: there is no endpoint to read.
        """
        if not self._reads:
            raise ConfigError("there is no endpoint to read: give the Governor a url")
        return self._read()

    @property
    def _reads(self) -> bool:
        return self._probe is not None or self._owns_probe

    def _read(self) -> Reading:
        if not self._reads:  # the law lives on usage alone, and still needs its ticks
            return Reading(at_s=self._clock())
        if self._probe is None:
            self._probe = self._make_probe()
        return self._probe.read()

    def _beat(self) -> float | None:
        if self._passing:
            return None
        now = self._clock()
        due = []
        if self._ticks:
            if now >= self._poll_at_s:
                self._poll()
                now = self._clock()
                self._poll_at_s = now + self._backoff.after(self._poll_failures)
            due.append(self._poll_at_s)

        self._decide(self._regulator.advance)
        long_wait_s = self._mind_long_waits()
        if long_wait_s is not None:
            due.append(now + long_wait_s)

        def look(now: float) -> float | None:
            wake_s = self._regulator.next_wake(now)
            if wake_s is not None:
                due.append(max(wake_s, now + SHORTEST_REST_S))
            self._due_s = min(due, default=math.inf)
            return None if self._due_s == math.inf else max(0.0, self._due_s - now)

        return self._look(look)

    def _poll(self) -> None:
        reading: Reading | None = None
        error: Exception | None = None
        if self._sighted_s is None:
            self._sighted_s = self._clock()
        try:
            reading = self._read()
        except Exception as caught:  # a probe may be the user's own
            error = caught
        failures_before, dark_since_s = self._poll_failures, self._sighted_s
        if reading is None:
            self._poll_failures += 1
            self._poll_failures_total += 1
            self._poll_error = str(error) or type(error).__name__
        else:
            self._poll_failures = 0
            self._poll_error = None
            self._last_reading = reading
            self._sighted_s = self._clock()

        def tick(now: float) -> Iterable[str]:
            if reading is None:
                self._tell("poll_failed", now, reason=self._poll_error or "")
            elif failures_before:
                self._tell("poll_recovered", now, waited_s=now - dark_since_s)
            if reading is not None:
                self._tell("polled", now, reading=reading)
            before = self._regulator.state
            let_in = self._regulator.tick(reading, now)
            after = self._regulator.state
            if after.limit != before.limit:
                self._tell("limit_changed", now, reason=after.reason, limit=after.limit)
                changed.append((before, after))
            return let_in

        changed: list[tuple[LawState, LawState]] = []
        self._decide(tick)
        for before, after in changed:
            logger.log(
                logging.INFO if after.reason != before.reason else logging.DEBUG,
                "limit %s (%s)",
                _show_limit(after.limit),
                after.reason,
            )
        if reading is None and not failures_before:
            logger.warning(
                "cannot read the engine%s; agents go on, and it is tried again: %s",
                f" at {self._url}" if self._url else "",
                self._poll_error,
                exc_info=None if isinstance(error, ProbeError) else error,
            )
        elif reading is not None and failures_before:
            logger.info("the engine can be read again, after %.0f s", self._clock() - dark_since_s)

    def _mind_long_waits(self) -> float | None:
        """Logs a wait that has become long; returns when [s from now] to look again."""
        why = ""

        def look(now: float) -> float | None:
            nonlocal why
            if not self._waiting:
                self._long_wait_s = LONG_WAIT_S
                return None
            longest_s = self._regulator.view(now).longest_wait_s
            if longest_s >= self._long_wait_s:
                while self._long_wait_s <= longest_s:
                    self._long_wait_s *= 2
                place = min(
                    (place for place in self._places.values() if place.waiting_since_s is not None),
                    key=lambda place: place.waiting_since_s or 0.0,
                    default=None,
                )
                if place is not None:
                    why = self._regulator.explain(place.id, now)
            elif longest_s < LONG_WAIT_S:
                self._long_wait_s = LONG_WAIT_S
            if self._long_wait_s > LAST_LONG_WAIT_S:
                return None
            return max(1.0, self._long_wait_s - longest_s)

        look_again_s = self._look(look)
        if why:
            logger.warning("a long wait: %s", why)
        return look_again_s

    # The seam of the handles. Each says what to do under the lock and goes through _decide.

    def _enter(
        self, turn: Turn, make_waiter: Callable[[], Waiter], prompt_tokens: int | None
    ) -> None:
        """Takes a place. `turn.waiter` is set if there is something to wait for."""
        place = turn.place

        def decide(now: float) -> Iterable[str]:
            if self._closed:
                raise ClosedError(
                    f"agent {place.id!r} comes after this governor was closed: keep the governor "
                    "open for as long as agents start, or make a new one"
                )
            if place.id in self._places:
                raise ConfigError(
                    f"an agent {place.id!r} is alive already: ids must be unique among agents "
                    "that run at once; give another id, or none to have one made up"
                )
            place.arrived_s = now
            self._places[place.id] = place
            place.entering = turn
            self._tell(
                "arrived",
                now,
                place,
                parent=None if place.parent is None else place.parent.id,
                prompt_tokens=prompt_tokens,
            )
            if self._passing:
                self._let_in(place, now)
                return ()
            place.waiting_since_s = now
            let_in = self._regulator.arrive(
                place.id,
                now,
                prompt_tokens=prompt_tokens,
                parent=self._parent_of(place),
                priority=place.priority,
            )
            self._admit(let_in, now)
            self._wait_for(turn, make_waiter)
            return ()

        self._decide(decide)
        if self._forked and not self._fork_logged:
            self._fork_logged = True
            logger.info(
                "this process was forked: its governor counts its own agents alone, not those of "
                "the process it came from"
            )

    def _begin(self, turn: Turn, make_waiter: Callable[[], Waiter], prefix: Chain | None) -> None:
        """Stands at a boundary. `turn.waiter` is set if there is something to wait for."""
        place = turn.place

        def decide(now: float) -> Iterable[str]:
            former = place.calls.get(turn.key)
            if former is not None and former.source != turn.source:
                turn.joined = former
                turn.granted = True
                return ()
            if self._passing or place.left_s is not None:
                self._grant(turn, now)
                return ()
            if place.entering is not None or self._places.get(place.id) is not place:
                raise ConfigError(
                    f"agent {place.id!r} makes a call before it was let in: do so inside its "
                    "`async with` (or `with`) block"
                )
            if former is not None:
                self._admit(self._close_call(former, now, End()), now)
            if place.away:
                place.away = False
                self._tell("off_ended", now, place)
            place.asked.append(turn)
            let_in = self._regulator.begin_step(
                place.id, now, prompt_tokens=turn.prompt_tokens, prefix=prefix
            )
            self._admit(let_in, now)
            if not turn.granted and place.waiting_since_s is None:
                place.waiting_since_s = now
                place.pauses += 1
                self._tell("paused", now, place)
            self._wait_for(turn, make_waiter)
            return ()

        self._decide(decide)

    def _withdraw(self, turn: Turn) -> None:
        """Whoever waited for this turn has been cancelled, perhaps after it was granted."""
        place = turn.place
        if turn.entry:
            self._leave(place)
            return

        def decide(now: float) -> Iterable[str]:
            if turn.granted:
                return self._close_call(turn, now, End(sent=False))
            if turn not in place.asked:
                return ()
            # The agent stays paused, for it is still alive: only this call of it has gone.
            place.asked.remove(turn)
            self._waiting -= 1
            if not place.asked:
                place.stop_waiting(now)
            return self._regulator.withdraw_step(place.id, now)

        self._decide(decide)

    def _end(self, turn: Turn, end: End) -> None:
        """A call is over."""

        def decide(now: float) -> Iterable[str]:
            if turn.joined is not None:
                # The enclosing call goes on; what this part of it used is kept for its end.
                if end.usage is not None:
                    turn.joined.usage = end.usage
                return ()
            return self._close_call(turn, now, end)

        self._decide(decide)

    def _end_any(self, place: Place, key: Hashable, end: End) -> None:
        """A call is over, and nobody says which: this caller's, else the oldest."""

        def decide(now: float) -> Iterable[str]:
            turn = place.calls.get(key) or next(iter(place.calls.values()), None)
            return () if turn is None else self._close_call(turn, now, end)

        self._decide(decide)

    def _leave(self, place: Place) -> None:
        """Its life is over, wherever it stood."""

        def decide(now: float) -> Iterable[str]:
            if place.left_s is not None:
                return ()
            place.stop_waiting(now)
            for turn in list(place.calls.values()):
                self._admit(self._close_call(turn, now, End()), now)
            place.left_s = now
            if place.entering is not None:
                self._release(place.entering)
                place.entering = None
            self._grant_asked(place, now)  # a branch that outlives its agent is nobody's: it passes
            if self._places.get(place.id) is not place:
                return ()
            del self._places[place.id]
            self._tell("left", now, place)
            return () if self._passing else self._regulator.leave(place.id, now)

        self._decide(decide)

    def _expel(self, place: Place) -> None:
        """What waits in this family is woken to find that it is over."""

        def decide(now: float) -> Iterable[str]:
            place.expelled = True
            for member in self._places.values():
                if not member.is_expelled():
                    continue
                member.stop_waiting(now)
                asked, member.asked = member.asked, []
                for turn in asked:
                    self._release(turn)
                    if not self._passing:
                        self._admit(self._regulator.withdraw_step(member.id, now), now)
            return ()

        self._decide(decide)

    def _go_off(self, place: Place) -> None:
        def decide(now: float) -> Iterable[str]:
            if self._passing or self._places.get(place.id) is not place or place.away:
                return ()
            if place.parent is not None or place.entering is not None:
                return ()  # no place of its own, or not yet
            place.away = True
            self._tell("off_began", now, place)
            return self._regulator.suspend(place.id, now)

        self._decide(decide)

    def _come_back(self, place: Place) -> None:
        def decide(now: float) -> Iterable[str]:
            if self._passing or place.left_s is not None or not place.away:
                return ()
            place.away = False
            self._tell("off_ended", now, place)
            return self._regulator.resume(place.id, now)

        self._decide(decide)

    def _tool_began(self, place: Place, name: str) -> float:
        began_s = self._clock()
        self._decide(lambda now: self._tell("tool_began", now, place, reason=name))
        return began_s

    def _tool_ended(self, place: Place, name: str, began_s: float) -> None:
        def decide(now: float) -> Iterable[str]:
            took_s = now - began_s
            known = self._tools.get(name, ToolTime(0, 0.0, 0.0))
            calls = known.calls + 1
            self._tools[name] = ToolTime(
                calls,
                known.mean_s + (took_s - known.mean_s) / calls,
                max(known.longest_s, took_s),
            )
            return self._tell("tool_ended", now, place, reason=name, waited_s=took_s)

        self._decide(decide)

    # Under the lock

    def _admit(self, let_in: Iterable[str], now: float) -> None:
        """The regulator has let these agents in: passes the news on to whoever waits for them."""
        for agent in let_in:
            place = self._places.get(agent)
            if place is None:
                continue
            if place.entering is not None:
                self._let_in(place, now)
            else:
                self._grant_asked(place, now)

    def _let_in(self, place: Place, now: float) -> None:
        """An agent may start."""
        waited_s = place.stop_waiting(now)
        turn, place.entering = place.entering, None
        if turn is not None:
            self._release(turn)
            self._tell("admitted", now, place, waited_s=waited_s)
            self._tell_overdue(place, now, waited_s)

    def _grant_asked(self, place: Place, now: float) -> None:
        """All calls of an agent that wait at the boundary may leave."""
        if place.asked:
            asked, place.asked = place.asked, []
            for turn in asked:
                self._grant(turn, now)

    def _grant(self, turn: Turn, now: float) -> None:
        """A call may leave."""
        place = turn.place
        self._release(turn)
        if place.waiting_since_s is not None:
            waited_s = place.stop_waiting(now)
            self._tell("resumed", now, place, waited_s=waited_s)
            self._tell_overdue(place, now, waited_s)
        if place.left_s is None:
            turn.open = True
            place.calls[turn.key] = turn
            self._tell("step_began", now, place, prompt_tokens=turn.prompt_tokens)

    def _release(self, turn: Turn) -> None:
        turn.granted = True
        if turn.waiter is not None:
            self._waiting -= 1
            self._to_wake.append(turn)

    def _wait_for(self, turn: Turn, make_waiter: Callable[[], Waiter]) -> None:
        if not turn.granted:
            turn.waiter = make_waiter()
            self._waiting += 1

    def _close_call(self, turn: Turn, now: float, end: End) -> Iterable[str]:
        if not turn.open:
            return ()
        turn.open = False
        place = turn.place
        if place.calls.get(turn.key) is turn:
            del place.calls[turn.key]
        if place.left_s is not None:
            return ()
        if not end.sent:
            self._tell("step_withdrawn", now, place)
            return () if self._passing else self._regulator.withdraw_step(place.id, now)
        usage = turn.usage if end.usage is None else end.usage
        place.note(usage)
        self._tell("step_ended", now, place, usage=usage)
        if self._passing:
            return ()
        return self._regulator.end_step(
            place.id,
            now,
            usage,
            overloaded=end.overloaded,
            retry_after_s=end.retry_after_s,
        )

    def _parent_of(self, place: Place) -> str | None:
        """Whose place it shares; None once that one has left."""
        parent = place.parent
        while parent is not None and parent.left_s is not None:
            parent = parent.parent
        return None if parent is None else parent.id

    def _pass_all(self, now: float) -> None:
        """From here on everybody passes; who waits goes on now."""
        self._passing = True
        for place in self._places.values():
            if place.entering is not None:
                self._let_in(place, now)
            self._grant_asked(place, now)

    def _fail(self, bug: Exception, now: float) -> tuple[()]:
        """A bug of ours: nobody is to suffer from it but the owner, who is told on `with` exit."""
        if self._bug is None:
            self._bug = bug
        self._pass_all(now)
        return ()

    def _tell_overdue(self, place: Place, now: float, waited_s: float) -> None:
        if waited_s >= self._max_wait_s:
            self._tell("overdue", now, place, waited_s=waited_s)

    def _tell(
        self,
        kind: EventKind,
        now: float,
        place: Place | None = None,
        **details: Any,
    ) -> tuple[()]:
        if self._dispatcher.watched:
            agent = None if place is None else place.id
            self._dispatcher.put(Event(kind=kind, at_s=now, agent=agent, **details))
        return ()

    # The lock

    def _decide(self, act: Callable[[float], Iterable[str]]) -> None:
        """Runs `act(now)` under the lock, then acts on what came of it.

        `act` returns the agents that the regulator has let in. It must neither wait nor call
        anybody else's code. Its `ConcurError`s go to the caller; anything else is a bug of ours.
        """
        me = threading.get_ident()
        if self._holder == me:
            # A finaliser struck while this thread held the lock; it is done before the release.
            self._deferred.put(act)
            return
        try:
            with self._lock:
                self._holder = me  # before any call, for at a call the collector may strike
                try:
                    nudge = self._decide_now(act)
                finally:
                    self._holder = 0
        except ConcurError:
            self._catch_up()
            raise
        while self._to_wake:  # shared, so that whom Ctrl-C keeps us from waking is woken by others
            try:
                turn = self._to_wake.popleft()
            except IndexError:
                break
            if turn.waiter is not None and not turn.waiter.wake():
                self._withdraw(turn)  # its event loop is closed, it will never take its turn
        if nudge:
            self._nudge()
        if self._bug is not None and not self._bug_logged:
            self._bug_logged = True
            logger.error(
                "the governor failed and governs no more: every agent passes from here on. "
                "Please report this",
                exc_info=self._bug,
            )
        self._dispatcher.deliver()
        self._catch_up()

    def _decide_now(self, act: Callable[[float], Iterable[str]]) -> bool:
        """The part under the lock; returns whether the poller is to be told."""
        now = self._clock()
        try:
            self._ever_decided = True
            self._admit(act(now), now)
            while not self._deferred.empty():
                self._admit(self._deferred.get_nowait()(now), now)
            return self._is_due_earlier(now)
        except ConcurError:
            raise
        except Exception as bug:
            self._fail(bug, now)
            return False

    def _catch_up(self) -> None:
        """Does what finalisers left to be done that struck while this thread held the lock."""
        if not self._deferred.empty():
            self._decide(lambda _: ())

    def _look(self, look: Callable[[float], T]) -> T:
        """Reads something under the lock, without changing anything."""
        me = threading.get_ident()
        if self._holder == me:
            return look(self._clock())
        try:
            with self._lock:
                self._holder = me
                try:
                    return look(self._clock())
                finally:
                    self._holder = 0
        finally:
            self._catch_up()

    def _is_due_earlier(self, now: float) -> bool:
        """Whether the poller has to be told (or started)."""
        if self._passing:
            return False
        if not self._awake:
            self._awake = bool(self._places) and (self._ticks or self._waiting > 0)
            return self._awake
        if not self._waiting:
            return False
        wake_s = self._regulator.next_wake(now)
        if self._due_s == math.inf:  # it sleeps for good; long waits are to be noticed
            wake_s = now
        if wake_s is None or wake_s >= self._due_s:
            return False
        self._due_s = wake_s
        return True

    def _nudge(self) -> None:
        if not self._background:
            if self.on_due is not None:
                self.on_due()
        elif self._poller is not None:
            self._poller.nudge()
        else:
            try:
                self._poller = Poller(self)
            except RuntimeError:  # no more threads, or the interpreter is shutting down
                logger.warning("cannot start the governor's thread; it only acts at boundaries")


def _choose_law(law: str | Law | None, limit: float | None, *, has_endpoint: bool) -> Law:
    if limit is not None:
        if law is not None and law != "fixed":
            raise ConfigError(
                f"limit={limit!r} asks for a fixed cap and law={law!r} for something else: "
                "leave one of them out"
            )
        agents: object = limit  # whatever its annotation says
        if isinstance(agents, bool) or not isinstance(agents, int | float) or not agents >= 1:
            raise ConfigError(f"limit must be at least 1 agent, got {limit!r}")
        return make_law("fixed", agents=agents)
    if law is None:
        if not has_endpoint:
            raise ConfigError(
                "a Governor needs something to go by: the url of a serving engine "
                '(Governor("http://localhost:8000")), or a fixed cap (Governor(limit=8))'
            )
        law = DEFAULT_LAW
    if isinstance(law, str):
        try:
            law = make_law(law)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    if law.needs_readings and not has_endpoint:
        raise ConfigError(
            f"law {law.name!r} lives on an engine's readings, and there is no endpoint: "
            "give the Governor a url"
        )
    return law


def _show_limit(limit: Limit) -> str:
    parts = []
    if math.isfinite(limit.agents):
        parts.append(f"{limit.agents:.0f} agents")
    if math.isfinite(limit.tokens):
        parts.append(f"{limit.tokens:,.0f} tokens")
    return ", ".join(parts) or "none"


_governors: weakref.WeakSet[Governor] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for governor in list(_governors):
        governor._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
