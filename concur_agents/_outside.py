"""Exceptions from outside: raised by a signal handler, by Ctrl-C, or into a thread.

Python raises them between any two instructions, ours included. They are no bug of ours, and pass to
the caller unchanged.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from types import FrameType
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_NEVER_OURS = (TimeoutError, RecursionError, MemoryError)
"""Code that computes raises none of these: a time-out was raised into it, or its caller has used up
the stack or the memory."""


def is_from_outside(error: BaseException) -> bool:
    """Whether an exception was raised into our code, and not by it or by what it calls.

    To be asked where it is caught, and not where objects of others are read: see `is_from_handler`.
    A law or a probe of the user's that raises is not outside.
    """
    if is_from_handler(error):
        return True
    # PyThreadState_SetAsyncExc leaves no frame of its own. Our code raises no types of others.
    last = _frames(error)[-1:]
    where = last[0].f_globals.get("__name__", "") if last else ""
    is_ours = _is_known(type(error).__module__) and not isinstance(error, _NEVER_OURS)
    return _is_known(where) and not is_ours


def is_from_handler(error: BaseException) -> bool:
    """Whether a signal handler raised it, or it is no `Exception`, such as KeyboardInterrupt.

    For code that reads objects of others, which may raise anything.
    """
    if not isinstance(error, Exception):
        return True
    frames = _frames(error)
    return any(_is_handler(*pair) for pair in zip(frames[1:], frames, strict=False))


def finishing(method: Callable[P, R]) -> Callable[P, R]:
    """Calls `method` again if an exception cuts it off, and then raises that.

    For methods that only end something, and that change nothing when they are called again.
    """

    @wraps(method)
    def call(*args: P.args, **options: P.kwargs) -> R:
        try:
            return method(*args, **options)
        except BaseException:
            method(*args, **options)
            raise

    return call


def _frames(error: BaseException) -> list[FrameType]:
    """Those that it has passed through, the one that raised it last."""
    frames = []
    trace = error.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    return frames


def _is_known(module: str) -> bool:
    package = module.partition(".")[0]
    if package.startswith("namedtuple_"):  # the module of what makes a named tuple
        return True
    return package == "concur_agents" or package in sys.stdlib_module_names


def _is_handler(frame: FrameType, caller: FrameType) -> bool:
    """Whether `frame` is that of a signal handler: it is given the frame that it interrupts."""
    if frame.f_globals.get("__name__", "").startswith("concur_agents."):
        return False  # before Python 3.13 the variables, once read, live as long as the frame
    for value in frame.f_locals.values():
        # `type`, because objects of others may raise where `isinstance` looks.
        if value is caller or (type(value) is tuple and any(v is caller for v in value)):
            return True
    return False
