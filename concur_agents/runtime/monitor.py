"""The monitor: the one lock in front of the sessions, for all threads and event loops of a process.

Every request passes here: decide under the lock, without waiting and without calling code that
is not ours; then act (wake, deliver events, log) outside of it. Whatever frees a
place (leaving, ending, cancelling) never blocks and never fails, and works from any thread, even
from a finaliser that strikes while this very thread holds the lock.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from concur_agents._outside import is_from_handler, is_from_outside
from concur_agents._text import shown_id
from concur_agents.errors import ConcurError
from concur_agents.runtime.events import told

if TYPE_CHECKING:
    from concur_agents.core import Chain
    from concur_agents.runtime.events import Dispatcher
    from concur_agents.runtime.session import End, Session, Ticket
    from concur_agents.runtime.sessions import Sessions
    from concur_agents.runtime.waiter import Waiter

logger = logging.getLogger("concur_agents")

T = TypeVar("T")


class Monitor:
    """Lets decisions about the sessions happen one at a time, and carries them out.

    Args:
        sessions: what it guards; from now on nothing else calls them.
        dispatcher: delivers the events of the sessions.
        clock: monotonic time [s].
        always_beats: the ticker has to beat as soon as an agent is here, not only when one waits.
        nudge: the ticker has to beat earlier, or for the first time. It must not be what
            keeps its owner alive.
    """

    def __init__(
        self,
        sessions: Sessions,
        dispatcher: Dispatcher,
        *,
        clock: Callable[[], float],
        always_beats: bool,
        nudge: Callable[[], object],
    ) -> None:
        self.clock = clock
        self._always_beats = always_beats
        self._nudge = nudge
        self._warned_starvation = False
        self.unread_usages_total = 0
        """Usages recorded in which there were no token counts."""
        self.begin_anew(sessions, dispatcher)

    def begin_anew(
        self, sessions: Sessions, dispatcher: Dispatcher, *, forked: bool = False
    ) -> None:
        """No agent is here: at first, and in a child process, where the lock may be held for ever.

        Args:
            forked: this process was forked from one that had agents; said once, with the first.
        """
        self.sessions = sessions
        self.used = False
        """Whether there has been any decision."""
        self._dispatcher = dispatcher
        self._fork_to_tell = forked
        self._lock = threading.RLock()  # it knows its owner: see `_under_lock`
        self._holder = 0  # the thread that holds the lock, to notice finalisers striking inside it
        # Appending is one operation of C, so a finaliser may do it at any moment.
        self._deferred: deque[Callable[[float], Iterable[str]]] = deque()
        self._is_cut_off = False  # a decision has begun and will not come to its end
        self._awake = False  # the ticker has been asked to begin
        self._nudges = False  # the ticker has to be woken (or started)
        self._due_s = math.inf  # when the next beat is meant to be

    # What an agent's handles ask for

    def enter(
        self, ticket: Ticket, make_waiter: Callable[[], Waiter], prompt_tokens: int | None
    ) -> None:
        """Takes a place. `ticket.waiter` is set if there is something to wait for."""
        self.decide(lambda now: self.sessions.enter(ticket, make_waiter, prompt_tokens, now))
        if self._fork_to_tell:
            self._fork_to_tell = False
            logger.info(
                "this process was forked: its governor counts its own agents alone, not those of "
                "the process it came from"
            )

    def begin(
        self, ticket: Ticket, make_waiter: Callable[[], Waiter], prefix: Chain | None
    ) -> None:
        """Stands at a boundary. `ticket.waiter` is set if there is something to wait for."""
        self.decide(lambda now: self.sessions.begin(ticket, make_waiter, prefix, now))

    def withdraw(self, ticket: Ticket) -> None:
        """The wait for this ticket was cancelled, perhaps after the grant."""
        self.decide(lambda now: self.sessions.withdraw(ticket, now))

    def end(self, ticket: Ticket, end: End) -> None:
        """A call is over."""
        self.decide(lambda now: self.sessions.end(ticket, end, now))

    def retry(self, ticket: Ticket, end: End) -> None:
        """A try of a call was refused, or another try begins; the call goes on."""
        self.decide(lambda now: self.sessions.retry(ticket, end, now))

    def end_any(self, session: Session, key: Hashable, end: End) -> None:
        """A call is over, and it is not said which: this caller's, else the oldest."""
        self.decide(lambda now: self.sessions.end_any(session, key, end, now))

    def leave(self, session: Session) -> None:
        """Its life is over, wherever it stood."""
        self.decide(lambda now: self.sessions.leave(session, now))

    def expel(self, session: Session) -> None:
        """What waits in this family is woken to find that it is over."""
        self.decide(lambda now: self.sessions.expel(session, now))

    def suspend(self, session: Session) -> None:
        """Its place is free for a while."""
        self.decide(lambda now: self.sessions.suspend(session, now))

    def resume(self, session: Session) -> None:
        """It asks for its place again."""
        self.decide(lambda now: self.sessions.resume(session, now))

    def tool_began(self, session: Session, name: str) -> float:
        """A tool begins to run; returns when [s]."""
        began_s = self.clock()
        self.decide(lambda now: self.sessions.tell("tool_began", now, session.id, reason=name))
        return began_s

    def tool_ended(self, session: Session, name: str, began_s: float) -> None:
        """A tool has run since then."""
        self.decide(lambda now: self.sessions.tool_ended(session, name, now - began_s, now))

    def agent_state(self, agent: str) -> str | None:
        """Where an agent stands; None: no such agent."""
        return self.look(lambda _: self.sessions.regulator.agent_state(agent))

    def must_move(self, agent: str) -> bool:
        """Whether the pool of an agent is gone, and its next boundary moves it to another."""
        return self.look(lambda _: self.sessions.regulator.must_move(agent))

    def meet_starvation(self, agent: str) -> None:
        """A synchronous call passes, as its thread is needed by the agents it waits for."""
        if not self._warned_starvation:
            self._warned_starvation = True
            logger.warning(
                "agent %r is paused in a thread of asyncio's default executor, and other agents "
                "wait for such a thread: its call passes ungoverned, or all would wait for ever. "
                "Make its calls asynchronous, or give the loop more threads with "
                "`loop.set_default_executor(ThreadPoolExecutor(...))` (said once)",
                shown_id(agent),
            )

    def meet_unread_usage(self, usage: object) -> None:
        """A call was recorded with something that holds no token counts."""
        self.unread_usages_total += 1
        if self.unread_usages_total == 1:
            text = f"an object of type {type(usage).__name__}"
            try:
                text = f"{usage!r:.200}"
            except Exception as error:  # an object of others may not even have a repr
                if is_from_handler(error):
                    raise
            logger.warning(
                "no token counts in %s: this usage counts as not reported. Record the `usage` of "
                "an answer, a dictionary with prompt_tokens and completion_tokens, or a Usage "
                "(logged once)",
                text.encode("ascii", "backslashreplace").decode(),
            )

    # The lock

    def decide(self, act: Callable[[float], Iterable[str]]) -> None:
        """Runs `act(now)` under the lock, then acts on what came of it.

        Its `ConcurError`s go to the caller, and so do exceptions from outside, as of a signal
        handler; the decision that these cut off is put in order first, and is perhaps not made.
        Anything else is a bug.

        Args:
            act: returns the agents that the regulator has let in. It neither waits nor calls code
                of others.
        """
        if self._holder == threading.get_ident():
            # A finaliser struck while this thread held the lock; it is done before the release.
            self._deferred.append(act)
            return
        try:
            self._under_lock(self._decide_now, act)
            self._carry_out()
            if self._deferred or self._is_cut_off:  # struck inside a decision
                self.decide(_nothing)
        except BaseException:  # a `ConcurError`, or an exception from outside
            if act is not _nothing:  # or the next decision does what is left to be done
                self.decide(_nothing)
            raise

    def look(self, look: Callable[[float], T]) -> T:
        """Reads something under the lock, without changing anything."""
        if self._holder == threading.get_ident():
            return look(self.clock())
        if self._is_cut_off:
            self.decide(_nothing)
        try:
            seen: T = self._under_lock(_at, look)
            return seen
        finally:
            if self._deferred or self._is_cut_off:
                self.decide(_nothing)

    def _under_lock(self, do: Callable[[Any, float], T], what: object) -> T:
        """Runs `do(what, now)` under the lock, and releases it whatever strikes, at any point."""
        me = threading.get_ident()
        lock = self._lock
        is_known_held = False
        try:
            lock.acquire()
            self._holder, is_known_held = me, True
            return do(what, self.clock())
        finally:
            # No calls before the release, because a signal handler may raise after each of them.
            if self._holder == me:
                self._holder = 0
            if is_known_held:
                lock.release()
            else:  # cut off while it waited for the lock, or just after it got it
                try:  # noqa: SIM105
                    lock.release()
                except RuntimeError:
                    pass

    def _decide_now(self, act: Callable[[float], Iterable[str]], now: float) -> None:
        """The part under the lock."""
        sessions = self.sessions
        try:
            self.used = True
            if self._is_cut_off:
                sessions.recover(now)
                self._is_cut_off = False
            sessions.admit(act(now), now)
            while self._deferred:
                self._do_deferred(now)
            if self._is_due_earlier(now):
                self._nudges = True
        except BaseException as error:
            self._is_cut_off = True  # before any call, for a second exception may strike there
            if is_from_outside(error):
                raise
            self._is_cut_off = False
            if not isinstance(error, Exception) or isinstance(error, ConcurError):
                raise
            sessions.fail(error, now)

    def _carry_out(self) -> None:
        """Acts on what was decided; the next decision repeats what is cut off here."""
        to_wake = self.sessions.tickets.to_wake
        while to_wake:
            try:
                ticket = to_wake[0]
                is_alive = ticket.waiter is None or ticket.waiter.wake()
                to_wake.remove(ticket)  # last, see above
            except (IndexError, ValueError) as error:  # another thread was faster
                if is_from_handler(error):
                    raise
                continue
            if not is_alive:  # its event loop is closed, it will never take its turn
                self.withdraw(ticket)
        if self._nudges:
            self._nudges = False
            try:
                self._nudge()
            except BaseException:
                self._nudges = True
                raise
        if self.sessions.bug is not None:
            self._complain(self.sessions.bug)
        self._dispatcher.deliver()

    def _do_deferred(self, now: float) -> None:
        """The first of what was left to be done; if it is cut off, it stays in line."""
        try:
            self.sessions.admit(self._deferred[0](now), now)
        except ConcurError:  # that one's caller is gone
            pass
        except BaseException as error:
            if not is_from_outside(error):
                self._deferred.popleft()
            raise
        self._deferred.popleft()

    def _complain(self, bug: Exception) -> None:
        if not self.sessions.bug_told:
            self.sessions.bug_told = True
            logger.error(
                "the governor failed and governs no more: every agent passes from here on. "
                "Please report this",
                exc_info=bug,
                extra=told("failed", error=type(bug).__name__),
            )

    # When to beat

    def rest(self, due_s: float, now: float) -> float | None:
        """Under the lock: the next beat is meant for then; returns how long [s] that is."""
        self._due_s = due_s
        return None if due_s == math.inf else max(0.0, due_s - now)

    def _is_due_earlier(self, now: float) -> bool:
        """Whether the ticker has to be woken (or started)."""
        sessions = self.sessions
        if sessions.passing:
            return False
        may_wait = len(sessions.tickets) > 0 or sessions.elsewhere.may_wait
        if not self._awake:
            self._awake = may_wait or (self._always_beats and bool(sessions.by_id))
            return self._awake
        if not may_wait:
            return False
        wake_s = sessions.regulator.next_wake(now)
        if self._due_s == math.inf and sessions.tickets:
            # It sleeps for good; long waits are to be noticed.
            wake_s = now
        if wake_s is None or wake_s >= self._due_s:
            return False
        self._due_s = wake_s
        return True


def _at(look: Callable[[float], T], now: float) -> T:
    return look(now)


def _nothing(_: float) -> tuple[()]:
    """A decision in which nothing happens, beside what is left to be done."""
    return ()
