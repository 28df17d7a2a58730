"""Exceptions from outside: signal handlers, Ctrl-C, `PyThreadState_SetAsyncExc`.

Python raises them in the middle of whatever a thread does, a decision of the governor included.
"""

from __future__ import annotations

import contextlib
import gc
import signal
import threading
import time
from pathlib import Path

import pytest

import concur_agents as ca
from concur_agents.core import make_law
from concur_agents.runtime.interruptions import is_from_outside
from concur_agents.testing import assert_idle

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
            gov._monitor._is_halfway = True
            after = gov.agents(), gov.snapshot()
            assert [(v.agent, v.parent, v.state) for v in after[0]] == [
                (v.agent, v.parent, v.state) for v in before[0]
            ]
            assert after[0][0].footprint_tokens == 1010
            for name in ("active", "reasoning", "suspended", "limit", "footprint_tokens"):
                assert getattr(after[1], name) == getattr(before[1], name)
    assert_idle(gov)
