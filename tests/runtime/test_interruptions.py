"""Exceptions from outside: signal handlers, Ctrl-C, `PyThreadState_SetAsyncExc`.

Python raises them in the middle of whatever a thread does, a decision of the governor included.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import signal
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest

import concur_agents as ca
from concur_agents._outside import is_from_outside
from concur_agents.core import make_law
from concur_agents.testing import assert_idle

# These tests take over the timer that pytest-timeout uses by default.
pytestmark = pytest.mark.timeout(120, method="thread")

PACKAGE = str(Path(ca.__file__).parent)


class AlarmError(TimeoutError):
    """What the user's own handler raises."""


@contextlib.contextmanager
def alarms(raised, *, every_s=0.001, only=""):
    """A signal each `every_s` [s] whose handler raises once after each call of what is yielded.

    `only`: only where it interrupts code in such a file of this package.
    """
    armed = [False]

    def ring(_number, frame):
        path = frame.f_code.co_filename
        if armed[0] and (not only or (path.startswith(PACKAGE) and only in path)):
            armed[0] = False
            raise raised("the user's time-out")

    former = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, every_s, every_s)
        yield lambda on: armed.__setitem__(0, on)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def live(gov, name):
    with gov.agent(name) as agent:
        for _ in range(4):
            with agent.step() as step:
                step.record({"prompt_tokens": 1000, "completion_tokens": 10})


def assert_governs(gov, limit):
    """Nothing is left behind, no bug was assumed, and the limit holds."""
    gc.collect()
    assert gov._monitor.sessions.bug is None
    assert_idle(gov)
    with contextlib.ExitStack() as stack:
        for _ in range(limit):
            stack.enter_context(gov.agent(detached=True))
        with pytest.raises(TimeoutError), gov.agent(detached=True, timeout_s=0.01):
            pass
    assert_idle(gov)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("only", ["", "/core/", "/runtime/"])
@pytest.mark.parametrize("raised", [AlarmError, KeyboardInterrupt])
def test_a_signal_each_millisecond_breaks_nothing(raised, only):
    """A SIGALRM inside a decision disabled the governor for good and was swallowed."""
    met = []
    with ca.Governor(limit=2) as gov:
        with alarms(raised, only=only) as arm:
            for number in range(1000):  # of ten decisions each
                try:
                    arm(True)
                    live(gov, f"a{number}")
                    arm(False)
                except raised as error:
                    met.append((type(error), str(error)))  # the error holds frames
        assert len(met) > 10
        assert set(met) == {(raised, "the user's time-out")}
        assert_governs(gov, 2)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_agents_in_other_threads_go_on_while_signals_strike():
    """Waiting threads are woken, though the decision that let them in was cut off."""
    with ca.Governor(limit=2) as gov:
        done = []

        def work(name):
            for number in range(100):
                live(gov, f"{name}.{number}")
            done.append(name)

        threads = [threading.Thread(target=work, args=(f"t{i}",), daemon=True) for i in range(4)]
        with alarms(AlarmError) as arm:
            for thread in threads:
                thread.start()
            number = 0
            deadline = time.monotonic() + 60
            while any(thread.is_alive() for thread in threads):
                assert time.monotonic() < deadline, gov
                number += 1
                with contextlib.suppress(AlarmError):
                    try:
                        arm(True)
                        live(gov, f"main.{number}")
                    finally:
                        arm(False)
        for thread in threads:
            thread.join(20)
        assert len(done) == 4
        assert_governs(gov, 2)


def interrupt(thread, kind):
    """What `stopit`, notebook kernels and other time-outs do."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(kind))


@pytest.fixture
def often_switched():
    """Threads take turns at any point; else short work is only ever cut where it waits."""
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before_s)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", [AlarmError, TimeoutError, KeyboardInterrupt])
def test_exceptions_raised_into_threads_break_nothing(kind, often_switched):
    """Threads in decisions and in waits, each struck once in an agent's life at most."""
    over = threading.Event()
    with ca.Governor(limit=2) as gov:
        done, met, struck = [], [], {}

        def work(name):
            number = 0
            while not over.is_set():
                number += 1
                try:
                    struck[name] = False
                    live(gov, f"{name}.{number}")
                    struck[name] = True
                    time.sleep(0)  # it strikes here at the latest
                    done.append(name)
                except kind as error:
                    met.append(type(error))

        # Because a strike that meets a thread at its birth leaves `Thread.start` waiting for ever.
        gov._nudge()
        names = [f"t{number}" for number in range(4)]
        threads = {n: threading.Thread(target=work, args=(n,), daemon=True) for n in names}
        for thread in threads.values():
            thread.start()
        deadline = time.monotonic() + 60
        while len(met) < 20:
            assert time.monotonic() < deadline, (gov, len(met))
            for name, thread in threads.items():
                if struck.get(name) is False:
                    struck[name] = True
                    interrupt(thread, kind)
            time.sleep(0.001)
        finished = len(done)
        while len(done) < finished + 20:  # no place was lost, and no thread hangs
            assert time.monotonic() < deadline, gov
            time.sleep(0.01)
        over.set()
        for thread in threads.values():
            thread.join(20)
            assert not thread.is_alive()
        assert set(met) == {kind}
        assert_governs(gov, 2)


def test_an_exception_of_a_handler_is_not_lost_where_usage_is_read():
    """Whatever a usage raises counts as not reported; a time-out that struck there was lost."""

    class Slow:
        @property
        def prompt_tokens(self):
            signal.raise_signal(signal.SIGALRM)

    with ca.Governor(limit=1) as gov, alarms(AlarmError, every_s=10) as arm:
        with gov.agent("a") as agent, agent.step() as step:
            arm(True)
            with pytest.raises(AlarmError):
                step.record(Slow())
            step.record(None)
        assert gov.snapshot().unread_usages_total == 0


def test_an_exception_that_struck_a_decision_is_freed_at_once():
    """What it was asked kept it, with all that its frames hold, until the collector came."""
    gov = ca.Governor(limit=1)

    def cut_off():
        try:
            gov._monitor.decide(lambda _: signal.raise_signal(signal.SIGALRM))
        except AlarmError as error:
            return weakref.ref(error)

    def ring(_number, _frame):
        raise AlarmError("the user's time-out")

    former = signal.signal(signal.SIGALRM, ring)
    gc.disable()
    try:
        assert cut_off()() is None
    finally:
        gc.enable()
        signal.signal(signal.SIGALRM, former)
    assert_governs(gov, 1)


def test_a_law_that_raises_is_not_taken_for_an_exception_from_outside():
    def decide():
        raise LookupError("a bug")

    with pytest.raises(LookupError) as caught:
        decide()
    assert not is_from_outside(caught.value)


def test_a_rebuilt_governor_knows_its_agents_their_sizes_and_its_law():
    with ca.Governor(law=make_law("fixed", agents=2)) as gov, gov.agent("a") as agent:
        with agent.step() as step:
            step.record({"prompt_tokens": 1000, "completion_tokens": 10})
        with (
            agent.step(),
            gov.agent("child"),
            gov.agent("b", detached=True) as other,
            other.suspended(),
        ):
            before = gov.agents(), gov.snapshot()
            gov._monitor._is_cut_off = True
            after = gov.agents(), gov.snapshot()
            assert [(v.agent, v.parent, v.state) for v in after[0]] == [
                (v.agent, v.parent, v.state) for v in before[0]
            ]
            assert after[0][0].footprint_tokens == 1010
            for name in ("active", "reasoning", "suspended", "limit", "footprint_tokens"):
                assert getattr(after[1], name) == getattr(before[1], name)
    assert_idle(gov)
