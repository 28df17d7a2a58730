"""Agents whose block is in an async generator, which a context variable alone would lose.

A generator runs in the context of whichever task calls `anext`: what its block sets is gone in the
next task, and stays set in the task that goes on without it.  So while such agents exist, their
blocks are looked for on the call stack.  The generators of `contextlib.asynccontextmanager` are not
meant: there the code around the `yield` is the agent's.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
import weakref
from types import FrameType
from typing import Any, Protocol, TypeVar


class Entered(Protocol):
    """An agent, as far as its block is concerned."""

    block: tuple[int, int] | None
    """The frame and the task that entered it, by identity; None: no async generator did."""

    outer: Any
    """The agent that it was opened in."""

    @property
    def left(self) -> bool:
        """Whether its block has ended."""
        ...


AgentT = TypeVar("AgentT", bound=Entered)

_held: dict[int, weakref.ref[Any]] = {}
"""By the identity of the generator's frame, which lives as long as the block."""


def hold(agent: Entered) -> None:
    """`agent` is entered by the caller's caller; notes if that is an async generator."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and _is_contextlib(frame):  # an AsyncExitStack
        frame = frame.f_back
    if frame is not None and _is_generator(frame):
        key = id(frame)
        agent.block = key, _task()
        _held[key] = weakref.ref(agent, lambda ref: _drop(key, ref))


def release(agent: Entered) -> None:
    """The block of `agent` has ended."""
    if agent.block is not None:
        key = agent.block[0]
        ref = _held.get(key)
        if ref is not None and ref() is agent:
            _drop(key, ref)


def find(agent: AgentT | None) -> AgentT | None:
    """The agent in whose block this code runs, where the context variable says `agent`."""
    if not _held:
        return agent
    here: AgentT | None = None
    is_around = in_generator = False
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        ref = _held.get(id(frame))
        held = None if ref is None else ref()
        if held is not None and not held.left:
            here = here or held
            is_around = is_around or held is agent
        in_generator = in_generator or _is_generator(frame)
        frame = frame.f_back
    inner = here
    while inner is not None and inner is not agent:
        inner = inner.outer
    # `agent` is around it, is None, or has left.
    if here is not None and (inner is agent or (agent is not None and agent.left)):
        return here
    while agent is not None and agent.block is not None and not is_around:
        # Its generator stands at a `yield`.  A caller that only iterates it runs as that agent, as
        # ever; another generator has nothing to do with it.
        if here is not None:
            return here
        if not in_generator or agent.block[1] != _task():
            return agent
        agent = agent.outer
    return agent


def _is_generator(frame: FrameType) -> bool:
    if not frame.f_code.co_flags & inspect.CO_ASYNC_GENERATOR:
        return False
    return frame.f_back is None or not _is_contextlib(frame.f_back)


def _is_contextlib(frame: FrameType) -> bool:
    return frame.f_globals.get("__name__") == "contextlib"


def _drop(key: int, ref: weakref.ref[Any]) -> None:
    if _held.get(key) is ref:
        del _held[key]


def _task() -> int:
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    return threading.get_ident() if task is None else id(task)
