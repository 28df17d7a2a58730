"""Exceptions from outside: raised by a signal handler, or by Ctrl-C, in the middle of a decision.

They are no bug of ours and pass to the caller unchanged. What they leave is a half-made decision:
`rebuilt` makes the regulator anew from what is known of the agents.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import TYPE_CHECKING

from concur_agents.core import Law, Regulator, Usage, make_law

if TYPE_CHECKING:
    from concur_agents.runtime.session import Session


def is_from_outside(error: BaseException) -> bool:
    """Whether an exception was raised into our code, and not by it or by what it calls.

    To be asked where it is caught. A law or a probe of the user's that raises is not outside.
    """
    if not isinstance(error, Exception):
        return True  # KeyboardInterrupt, SystemExit, ...: we call nothing that raises them
    former: FrameType | None = None
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        if former is not None and _holds(frame, former):
            return True
        former, trace = frame, trace.tb_next
    # PyThreadState_SetAsyncExc leaves no frame of its own. Our code raises no types of others.
    where = "" if former is None else former.f_globals.get("__name__", "")
    return _is_known(where) and not _is_known(type(error).__module__)


def _is_known(module: str) -> bool:
    package = module.partition(".")[0]
    if package.startswith("namedtuple_"):  # the module of what makes a named tuple
        return True
    return package == "concur_agents" or package in sys.stdlib_module_names


def _holds(frame: FrameType, caller: FrameType) -> bool:
    """Whether `frame` is that of a signal handler: it is given the frame that it interrupts."""
    for value in frame.f_locals.values():
        if value is caller or (isinstance(value, tuple) and any(v is caller for v in value)):
            return True
    return False


def rebuilt(
    old: Regulator,
    agents: Iterable[Session],
    parent_of: Callable[[Session], str | None],
    make: Callable[[Law], Regulator],
    now: float,
) -> tuple[Regulator, list[str]]:
    """A regulator in which the same agents stand where they stood, as far as that is known.

    The law's state, what was learned of the engine, and each agent's context are kept. Lost: which
    prefixes agents share and which contexts the engine has evicted, until they are seen again; and
    waits count from now.

    Args:
        old: perhaps half-changed; not to be used any more.
        agents: all that are here, in order of arrival.
        parent_of: the agent whose place an agent shares.
        make: makes a regulator with the same options, which waits for no first reading.
        now: the time [s].

    Returns:
        The regulator, and the agents that it has let in.
    """
    agents = list(agents)
    inside = [session for session in agents if session.entering is None]
    # Without a limit first, because those that are in stay in.
    new = make(make_law("fixed", agents=math.inf))
    for session in inside:
        new.arrive(session.id, now, parent=parent_of(session), priority=session.priority)
        account = old._accounts.get(session.id)
        if account is not None and account.has_context:
            new.begin_step(session.id, now)
            prompt = int(account.last_prompt)  # perhaps changed when `footprint` was not yet
            output = max(0, int(account.footprint) - prompt)
            new.end_step(session.id, now, Usage(prompt, output))
    for session in inside:
        has_gone = session.suspended or (session.asked and not session.calls)
        if has_gone and parent_of(session) is None:
            new.suspend(session.id, now)
    for session in inside:
        for ticket in session.calls.values():
            new.begin_step(session.id, now, prompt_tokens=ticket.prompt_tokens)
    _inherit(new, old)
    new._enforce(now)
    let_in: list[str] = []
    for session in inside:
        for ticket in session.asked:
            let_in += new.begin_step(session.id, now, prompt_tokens=ticket.prompt_tokens)
    for session in agents:
        if session.entering is not None:
            account = old._accounts.get(session.id)
            expected = None if account is None else account.expected_prompt
            let_in += new.arrive(
                session.id,
                now,
                prompt_tokens=None if expected is None else int(expected),
                parent=parent_of(session),
                priority=session.priority,
            )
    return new, let_in


def _inherit(new: Regulator, old: Regulator) -> None:
    """What does not depend on where single agents stand."""
    new.law, new.state, new.last_snapshot = old.law, old.state, old.last_snapshot
    new._meter, new._is_blind = old._meter, old._is_blind
    new._done_total, new._pauses_total = old._done_total, old._pauses_total
    for name in ("alone_until_s", "overdue_total", "stalls_total", "least"):
        setattr(new._admission, name, getattr(old._admission, name))
    for name in ("price", "first_prompt", "output", "growth"):
        setattr(new._sizes, name, getattr(old._sizes, name))
    for name in ("capacity_tokens", "learned_tokens", "proven_tokens", "held_tokens"):
        setattr(new._sizes.residency, name, getattr(old._sizes.residency, name))
