"""An exception from outside at each point of a story where Python lets one in.

Python runs signal handlers, and raises what `PyThreadState_SetAsyncExc` left, at the start of a
function, after a call and at a jump back. A `Strike` raises at the n-th of these points. A story is
told again and again, cut off at another point each time, until it ends uncut.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dis
import gc
import os
import sys
import threading
from pathlib import Path

import pytest

import concur_agents as ca
from concur_agents.testing import VirtualLoop, assert_idle

PACKAGE = str(Path(ca.__file__).parent)
POINTS = ("CALL", "RESUME", "JUMP_BACKWARD", "INSTRUMENTED")
USAGE = {"prompt_tokens": 1000, "completion_tokens": 10}
STRIDE = int(os.environ.get("CONCUR_TEST_STRIDE", "13"))
"""Of so many points one is struck, because all of them take minutes. 1: all."""


class CutError(Exception):
    """The user's own."""


class UnluckyError(RuntimeError, ValueError, IndexError):
    """The user's own, and of the kinds that we catch here and there."""


class Strike:
    """Raises `error` at the point number `at` of this package and of what it calls.

    Args:
        silent: the traceback ends where the exception struck, as with `PyThreadState_SetAsyncExc`;
            otherwise with the frame of a handler.
        only_ours: not in what the package calls.
    """

    def __init__(self, at, error, *, silent=False, only_ours=False):
        self.at, self.error, self.silent, self.only_ours = at, error, silent, only_ours
        self.passed = 0
        self.struck = ""
        self._called = {}  # by frame: the latest function of Python that it has called

    def begin(self, frame, event, _arg):
        """For `sys.settrace`."""
        path, back = frame.f_code.co_filename, frame.f_back
        # The return of a function of Python, unlike that of one of C, is no point.
        if frame.f_code.co_name != "__init__":
            self._called[id(back)] = frame.f_code.co_name
        is_ours = path.startswith(PACKAGE)
        is_below = back is not None and back.f_trace is not None
        if event != "call" or self.struck or not (is_ours or (is_below and not self.only_ours)):
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        code, before = frame.f_code.co_code, "RESUME"

        def follow(frame, event, _arg):
            nonlocal before
            if event != "opcode":
                return follow
            called = self._called.pop(id(frame), None) if "CALL" in before else None
            is_point = before.startswith(POINTS) and called is None
            before = dis.opname[code[frame.f_lasti]]
            if is_point and before != "RESUME":
                self.passed += 1
                if self.passed == self.at:
                    where = path.removeprefix(PACKAGE)
                    self.struck = f"{where}:{frame.f_lineno} in {frame.f_code.co_name}"
                    if self.silent:
                        exec("raise error", {"__name__": "concur_agents.x", "error": self.error})
                    raise self.error
            return follow

        return follow

    def run(self, story, *args):
        """Tells it."""
        former = sys.gettrace()
        sys._getframe().f_trace_opcodes = True  # or Python 3.12 reports none the first time
        sys.settrace(self.begin)
        try:
            return story(*args)
        finally:
            sys.settrace(former)


class Scene:
    """A governor for one agent, an agent that may come to wait for it, and what was seen."""

    def __init__(self, **options):
        self.seen = []
        self.gov = ca.Governor(limit=1, **{"background": False, **options})
        self.gov.on_event(self.seen.append)
        self.other = self.gov.agent("other", detached=True)

    def let_other_wait(self):
        self.other.arrive(lambda: self.seen.append("let in"))

    def check(self):
        gov, monitor = self.gov, self.gov._monitor
        assert monitor.sessions.bug is None, "a bug was assumed"
        assert not monitor._holder
        assert not monitor._lock._is_owned()
        assert ca.current_agent() is None
        # An agent that waits is let in without a further decision.
        if self.other._entered and not self.other.left:
            assert "let in" in self.seen or self.other.state == "acting", self.other.state
        self.other.close()
        assert not monitor.sessions.tickets.to_wake
        assert_idle(gov)
        before = len(self.seen)
        with gov.agent("next") as agent, agent.step() as step:
            assert agent.state == "reasoning"
            step.record(USAGE)
            late = gov.agent("late", detached=True)
            assert not late.arrive(lambda: None)
            late.close()
        assert len(self.seen) >= before + 6, "events are delivered"
        assert_idle(gov)


def strike_everywhere(story, *, stride=STRIDE, kind=CutError, options=None, **how):
    """Cuts `story(scene)` off at each `stride`-th point, and checks what is left."""
    at, points = 1, 0
    while True:
        error = kind("the user's own")
        strike = Strike(at, error, **how)
        dropped = []  # exceptions in finalisers; these Python prints and drops
        former = sys.unraisablehook
        sys.unraisablehook = lambda args, dropped=dropped: dropped.append(args.exc_value)
        context = contextvars.copy_context()
        try:
            scene = Scene(**(options or {}))
            with scene.gov:
                try:
                    context.run(strike.run, story, scene)
                except kind as met:
                    assert met is error  # noqa: PT017  (it is caught to go on)
                else:
                    # Futures log what their callbacks raise.
                    is_lost = dropped or strike.struck.endswith(" _check")
                    assert not strike.struck or is_lost, "it was swallowed"
                error.__traceback__ = error.__context__ = None
                for lost in dropped:
                    lost.__traceback__ = None
                gc.collect(1)
                context.run(scene.check)
        except BaseException as wrong:
            wrong.add_note(f"struck at point {at}: {strike.struck or 'nowhere'}")
            raise
        finally:
            sys.unraisablehook = former
        if not strike.struck:
            return points
        points += 1
        at += stride


def step_by_step(scene):
    with scene.gov.agent("a") as agent:
        with agent.step() as step:
            step.record(USAGE)
        scene.let_other_wait()
        with agent.step():
            pass


def by_gates(scene):
    with scene.gov.agent("a") as agent:
        agent.done(USAGE, agent.gate_sync(100))
        scene.let_other_wait()
        with agent.step().around_tries(), agent.step() as part:
            part.refused()
        agent.checkpoint_sync()


def with_a_family(scene):
    with scene.gov.agent("a") as agent:
        with agent.step(), scene.gov.agent("child") as child, child.step():
            scene.let_other_wait()
        with agent.tool("t"):
            pass


def with_a_pause(scene):
    with scene.gov.agent("a") as agent:
        with agent.suspended(), scene.gov.agent("b", detached=True) as b, b.step():
            scene.let_other_wait()
            with contextlib.suppress(TimeoutError):
                scene.gov.agent("c", detached=True, timeout_s=0.0).open_sync()
        scene.other.close()
        with agent.step():
            pass


def on_a_loop(scene):
    async def use(name):
        async with scene.gov.agent(name, detached=True) as agent, agent.step() as step:
            await asyncio.sleep(1)
            step.record(USAGE)

    async def main():
        async with asyncio.timeout(100):
            await asyncio.gather(use("a"), use("b"))

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())


def with_an_executor(scene):
    with scene.gov.executor(2) as pool:
        assert list(pool.map(str, range(3))) == ["0", "1", "2"]


STORIES = [step_by_step, by_gates, with_a_family, with_a_pause]


@pytest.mark.parametrize("story", STORIES)
@pytest.mark.parametrize("silent", [False, True], ids=["by a handler", "into the thread"])
def test_an_exception_from_outside_leaves_nothing_behind_wherever_it_strikes(story, silent):
    assert strike_everywhere(story, silent=silent) > 20


@pytest.mark.parametrize("story", [on_a_loop, with_an_executor])
@pytest.mark.parametrize("silent", [False, True], ids=["by a handler", "into the thread"])
def test_no_agent_hangs_on_a_loop_or_in_an_executor_wherever_it_strikes(story, silent):
    """Inside of asyncio and `concurrent.futures` it does not strike: theirs are not proof."""
    assert strike_everywhere(story, silent=silent, only_ours=True) > 10


@pytest.mark.parametrize("story", [step_by_step, with_a_pause, on_a_loop])
def test_none_is_swallowed_where_its_kind_is_caught(story):
    assert strike_everywhere(story, kind=UnluckyError, only_ours=True) > 20


@pytest.mark.parametrize("kind", [KeyboardInterrupt, TimeoutError, RecursionError, MemoryError])
def test_no_kind_of_exception_from_outside_is_taken_for_a_bug(kind):
    def story(scene):
        agent = scene.gov.agent("a")
        with contextlib.ExitStack() as stack:
            stack.callback(agent.close)
            agent.open_sync()

    assert strike_everywhere(story, kind=kind, silent=kind is not KeyboardInterrupt) > 5


def test_the_governors_thread_starts_whenever_the_first_nudge_is_cut_off():
    def story(scene):
        with scene.gov.agent("a"):
            scene.let_other_wait()

    before = threading.active_count()
    assert strike_everywhere(story, only_ours=True, options={"background": True}) > 5
    assert threading.active_count() <= before + 1
