"""Replaying: the recorded calls on a fresh Regulator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from concur_agents.core import (
    AnyRegulator,
    Decision,
    Fleet,
    Law,
    Regulator,
    without_fleet_options,
)
from concur_agents.errors import RecordingError
from concur_agents.recording.model import Header, RecordedCall
from concur_agents.recording.reader import Recording
from concur_agents.recording.recording_regulator import RecordingRegulator
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
        law = law or header.make_law()
        regulator = _made(header, law, header.pools, header.start_s)
    except (TypeError, ValueError) as error:
        raise RecordingError(f"the recorded Regulator cannot be made here: {error}") from error
    return cast("Regulator", _Replayed(regulator, header))


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


class _Replayed(RecordingRegulator):
    """One that another takes the place of, where that was recorded."""

    def __init__(self, regulator: AnyRegulator, header: Header) -> None:
        super().__init__(regulator)
        self._header = header

    def make(self, law: Law, now: float, pools: Sequence[str]) -> AnyRegulator:
        """One with these pools."""
        return _made(self._header, law, pools, now, first_reading_s=0.0)


def _made(
    header: Header, law: Law, pools: Sequence[str], start_s: float, **options: Any
) -> AnyRegulator:
    options = {**header.regulator, **options}
    options.pop("pools", None)
    if pools:
        return Fleet(law, list(pools), start_s, **options)
    return Regulator(law, start_s, **without_fleet_options(options))


def _decide(regulator: Regulator, call: RecordedCall) -> tuple[Decision, str | None]:
    arguments: tuple[Any, ...] = () if call.agent is None else (call.agent,)
    options = dict(call.options)
    if call.name == "tick":
        arguments = (options.pop("reading"),)
    if call.name == "regroup":
        if not isinstance(regulator, _Replayed):
            raise RecordingError("the pools changed on the way: replay it without a regulator")
        options["make"] = regulator.make
    try:
        return getattr(regulator, call.name)(*arguments, now=call.now, **options), None
    except (KeyError, ValueError) as error:
        return Decision(), type(error).__name__
    except (AttributeError, TypeError) as error:
        raise RecordingError(
            f"the recorded call {call.name} at {call.now} s cannot be made here: {error}"
        ) from error
