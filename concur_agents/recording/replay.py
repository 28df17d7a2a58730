"""Replaying: the recorded calls on a fresh Regulator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from concur_agents.core import Decision, Fleet, Law, Regulator
from concur_agents.errors import RecordingError
from concur_agents.recording.model import RecordedCall
from concur_agents.recording.reader import Recording
from concur_agents.recording.standing import moves_of, view_at_tick


@dataclass(frozen=True, slots=True)
class Difference:
    """A call that the replay answered differently."""

    call: RecordedCall
    let_in: tuple[str, ...]
    """The agents that the replay let in."""
    error: str | None
    """Name of the exception that the replay raised."""
    state: dict[str, Any]
    """State of the replayed law."""


def replay(recording: Recording, regulator: Regulator | None = None) -> Iterator[Difference]:
    """Makes the recorded calls on a Regulator and yields each answer that differs.

    A fresh Regulator of the recorded law gives the same answers to the bit, so nothing is yielded.

    Args:
        recording: one that holds every call since the start.
        regulator: None: a fresh one, as the header says.

    Raises:
        RecordingError: the beginning is missing, or the law or a call is unknown to this version.
    """
    if regulator is None:
        regulator = make_regulator(recording)
    for line in recording:
        if isinstance(line, RecordedCall):
            let_in, error = apply(regulator, line)
            state = regulator.state.to_dict()
            same = let_in == line.let_in and error == line.error
            if line.tick is not None:
                view = view_at_tick(regulator, line.now, line.options.get("pool"))
                same = same and (line.tick.state, line.tick.view) == (state, view)
            if not same:
                yield Difference(line, let_in, error, state)


def make_regulator(recording: Recording, law: Law | None = None) -> Regulator:
    """A fresh Regulator, as it was when the recording began.

    Args:
        recording: one that holds every call since the start.
        law: replaces the recorded law.

    Raises:
        RecordingError: the beginning is missing, or the law is unknown to this version.
    """
    header = recording.header
    if not recording.is_whole:
        raise RecordingError(
            f"{recording.path} cannot be replayed, because its beginning is missing "
            + ("(its first files are gone)" if header.part else "(it was begun later)")
            + ": give `record` a larger max_bytes, and start it with the governor"
        )
    try:
        options, law = dict(header.regulator), law or header.make_law()
        pools = options.pop("pools", None)
        if pools is not None:
            return Fleet(law, pools, header.start_s, **options)  # type: ignore[return-value]
        return Regulator(law, header.start_s, **options)
    except (TypeError, ValueError) as error:
        raise RecordingError(f"the recorded Regulator cannot be made here: {error}") from error


def apply(regulator: Regulator, call: RecordedCall) -> tuple[tuple[str, ...], str | None]:
    """Makes one recorded call.

    Returns:
        The agents let in, and the name of the exception that the call raised.

    Raises:
        RecordingError: this version has no such call, or the call takes other options here.
    """
    decision, error = _decide(regulator, call)
    return tuple(decision), error


def answered(regulator: Regulator, call: RecordedCall) -> RecordedCall:
    """Makes one recorded call; returns it with the answer of this Regulator.

    Raises:
        RecordingError: see `apply`.
    """
    decision, error = _decide(regulator, call)
    moves = moves_of(regulator, decision, call.agent)
    pools = {agent: regulator.pool_of(agent) for agent in moves}
    return replace(
        call,
        let_in=tuple(decision),
        moves=moves,
        pools={agent: pool for agent, pool in pools.items() if pool is not None},
        error=error,
        reason=None,
        why=None,
        cause=None,
    )


def _decide(regulator: Regulator, call: RecordedCall) -> tuple[Decision, str | None]:
    arguments: tuple[Any, ...] = () if call.agent is None else (call.agent,)
    options = dict(call.options)
    if call.name == "tick":
        arguments = (options.pop("reading"),)
    try:
        return getattr(regulator, call.name)(*arguments, now=call.now, **options), None
    except (KeyError, ValueError) as error:
        return Decision(), type(error).__name__
    except (AttributeError, TypeError) as error:
        raise RecordingError(
            f"the recorded call {call.name} at {call.now} s cannot be made here: {error}"
        ) from error
