"""Replaying: the recorded calls, made once more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from concur_agents.core import Law, Regulator
from concur_agents.errors import RecordingError
from concur_agents.recording.model import RecordedCall
from concur_agents.recording.reader import Recording


@dataclass(frozen=True, slots=True)
class Difference:
    """A call that a replay answered in another way."""

    call: RecordedCall
    let_in: tuple[str, ...]
    """Whom the replay let in."""
    error: str | None
    state: dict[str, Any]
    """Where its law stood."""


def replay(recording: Recording, regulator: Regulator | None = None) -> Iterator[Difference]:
    """Drives a Regulator with the recorded calls and yields each answer that differs.

    With a fresh Regulator of the recorded law there is none: same calls, same answers, to the bit.

    Args:
        recording: one that goes back to its start.
        regulator: None: a fresh one as the header says.

    Raises:
        RecordingError: its beginning is missing, or its law is unknown here.
    """
    if regulator is None:
        regulator = make_regulator(recording)
    for line in recording:
        if isinstance(line, RecordedCall):
            let_in, error = apply(regulator, line)
            state = regulator.state.to_dict()
            same = let_in == line.let_in and error == line.error
            if line.tick is not None:
                view = regulator.view(line.now)
                same = same and (line.tick.state, line.tick.view) == (state, view)
            if not same:
                yield Difference(line, let_in, error, state)


def make_regulator(recording: Recording, law: Law | None = None) -> Regulator:
    """A fresh Regulator as it was when the recording began.

    Args:
        recording: one that goes back to its start.
        law: in place of the recorded one.

    Raises:
        RecordingError: its beginning is missing, or its law is unknown here.
    """
    header = recording.header
    if not recording.is_whole:
        raise RecordingError(
            f"{recording.path} does not go back to its beginning "
            + ("(its first files are gone)" if header.part else "(it was begun later)")
            + ", so it cannot be replayed: give `record` a larger max_bytes, and start it with "
            "the governor"
        )
    try:
        return Regulator(law or header.make_law(), header.start_s, **header.regulator)
    except (TypeError, ValueError) as error:
        raise RecordingError(f"the recorded Regulator cannot be made here: {error}") from error


def apply(regulator: Regulator, call: RecordedCall) -> tuple[tuple[str, ...], str | None]:
    """Makes one recorded call; returns the answer, and the name of what it raised."""
    for question, at_s, agent in call.asked:
        getattr(regulator, question)(*(() if agent is None else (agent,)), now=at_s)
    if call.name == "ask":
        return (), None
    arguments: tuple[Any, ...] = () if call.agent is None else (call.agent,)
    options = dict(call.options)
    if call.name == "tick":
        arguments = (options.pop("reading"),)
    try:
        let_in = getattr(regulator, call.name)(*arguments, now=call.now, **options)
    except (KeyError, ValueError) as error:
        return (), type(error).__name__
    if call.why is not None and call.agent is not None:
        regulator.why(call.agent, call.now)  # it sums up claims, as the one that was recorded did
    return tuple(let_in), None
