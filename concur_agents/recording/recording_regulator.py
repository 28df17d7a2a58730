"""A Regulator with a witness."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from concur_agents.core import Law, Reading, Reason, Regulator, Usage, View
from concur_agents.recording.model import Header, Question, RecordedCall, Shadow, Tick
from concur_agents.recording.values import describe_law
from concur_agents.recording.writer import MAX_BYTES, Recorder

_MOST_QUESTIONS = 64

_DOORS = ("arrive", "begin_step", "resume")
"""Calls by which an agent asks to be let in."""


class RecordingRegulator:
    """A Regulator with a witness: each call is passed on, and noted with its answer.

    It has the whole door of the Regulator and everything else of it. A shadow law, if there is
    one, is shown each snapshot after the law in force; what it decides has no effect.
    """

    def __init__(
        self,
        regulator: Regulator,
        note: Callable[[RecordedCall], object] | None = None,
        *,
        shadow: Law | None = None,
    ) -> None:
        self.inner = regulator
        self.note = note
        self.shadow_law = shadow
        self.shadow: Shadow | None = None
        if shadow is not None:
            self.shadow = Shadow(law=shadow.name, state=shadow.initial())
        self._reason: str | None = None
        self._asked: list[Question] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def arrive(self, agent: str, now: float, **options: Any) -> list[str]:
        """See `Regulator.arrive`."""
        return self._pass_on("arrive", self.inner.arrive, now, agent, options)

    def begin_step(self, agent: str, now: float, **options: Any) -> list[str]:
        """See `Regulator.begin_step`."""
        return self._pass_on("begin_step", self.inner.begin_step, now, agent, options)

    def leave(self, agent: str, now: float) -> list[str]:
        """See `Regulator.leave`."""
        return self._pass_on("leave", self.inner.leave, now, agent, {})

    def end_step(self, agent: str, now: float, usage: Usage | None, **options: Any) -> list[str]:
        """See `Regulator.end_step`."""
        options["usage"] = usage
        return self._pass_on("end_step", self.inner.end_step, now, agent, options)

    def retry_step(self, agent: str, now: float, **options: Any) -> list[str]:
        """See `Regulator.retry_step`."""
        return self._pass_on("retry_step", self.inner.retry_step, now, agent, options)

    def withdraw_step(self, agent: str, now: float) -> list[str]:
        """See `Regulator.withdraw_step`."""
        return self._pass_on("withdraw_step", self.inner.withdraw_step, now, agent, {})

    def suspend(self, agent: str, now: float) -> list[str]:
        """See `Regulator.suspend`."""
        return self._pass_on("suspend", self.inner.suspend, now, agent, {})

    def resume(self, agent: str, now: float) -> list[str]:
        """See `Regulator.resume`."""
        return self._pass_on("resume", self.inner.resume, now, agent, {})

    def advance(self, now: float) -> list[str]:
        """See `Regulator.advance`."""
        asked = self._take_asked()
        let_in = self.inner.advance(now)
        self._note(
            RecordedCall(
                name="advance",
                now=now,
                let_in=tuple(let_in),
                reason=self._changed(),
                asked=asked,
            )
        )
        return let_in

    def view(self, now: float) -> View:
        """See `Regulator.view`."""
        self._ask("view", now)
        return self.inner.view(now)

    def explain(self, agent: str, now: float) -> Reason:
        """See `Regulator.explain`."""
        self._ask("explain", now, agent)
        return self.inner.explain(agent, now)

    def why(self, agent: str, now: float) -> Reason | None:
        """See `Regulator.why`."""
        self._ask("why", now, agent)
        return self.inner.why(agent, now)

    def next_wake(self, now: float) -> float | None:
        """See `Regulator.next_wake`."""
        if not any(name == "next_wake" for name, _, _ in self._asked):  # the answer stands
            self._ask("next_wake", now)
        return self.inner.next_wake(now)

    def tick(self, reading: Reading | None, now: float) -> list[str]:
        """See `Regulator.tick`."""
        asked = self._take_asked()
        before = self.inner.last_snapshot
        let_in = self.inner.tick(reading, now)
        snapshot = self.inner.last_snapshot
        fresh = None if snapshot is before else snapshot
        if self.shadow_law is not None and self.shadow is not None and fresh is not None:
            state = self.shadow_law.decide(self.shadow.state, fresh)
            self.shadow = Shadow(law=self.shadow_law.name, state=state)
        if self.note is not None:
            tick = Tick(
                state=self.inner.state.to_dict(),
                view=self.inner.view(now),
                snapshot=fresh,
                shadow=None if self.shadow is None else self.shadow.state.to_dict(),
            )
            self._note(
                RecordedCall(
                    name="tick",
                    now=now,
                    options={"reading": reading},
                    let_in=tuple(let_in),
                    reason=self._changed(),
                    tick=tick,
                    asked=asked,
                )
            )
        return let_in

    def _pass_on(
        self,
        name: str,
        call: Callable[..., list[str]],
        now: float,
        agent: str,
        options: dict[str, Any],
    ) -> list[str]:
        asked = self._take_asked()
        try:
            let_in = call(agent, now, **options)
        except Exception as error:
            kind = type(error).__name__
            self._note(
                RecordedCall(
                    name=name, now=now, agent=agent, options=options, error=kind, asked=asked
                )
            )
            raise
        why: str | None = None
        if self.note is not None and name in _DOORS and agent not in let_in:
            reason = self.inner.why(agent, now)
            why = None if reason is None else reason.numbers
        self._note(
            RecordedCall(
                name=name,
                now=now,
                agent=agent,
                options=options,
                let_in=tuple(let_in),
                reason=self._changed(),
                why=why,
                asked=asked,
            )
        )
        return let_in

    def _ask(self, question: str, now: float, agent: str | None = None) -> None:
        if self.note is not None:
            if len(self._asked) >= _MOST_QUESTIONS:
                self._note(RecordedCall(name="ask", now=now, asked=self._take_asked()))
            self._asked.append((question, now, agent))

    def _take_asked(self) -> tuple[Question, ...]:
        asked, self._asked = tuple(self._asked), []
        return asked

    def _note(self, call: RecordedCall) -> None:
        if self.note is not None:
            self.note(call)

    def _changed(self) -> str | None:
        reason = self.inner.reason
        if reason == self._reason:
            return None
        self._reason = reason
        return reason


def record(
    regulator: Regulator,
    path: str | os.PathLike[str],
    *,
    start_s: float = 0.0,
    shadow: Law | None = None,
    max_bytes: int = MAX_BYTES,
    **options: Any,
) -> tuple[RecordingRegulator, Recorder]:
    """A recorded Regulator, for hosts of your own; a `Governor` has `record=`.

    Args:
        regulator: a fresh one; from here on call the returned `RecordingRegulator` in its place.
        path: see `Recorder`.
        start_s: what it was made with [s].
        shadow: a law that decides beside its own, without effect.
        max_bytes: see `Recorder`.
        options: what else it was made with, by name: `max_wait_s`, `order`, ...

    Returns:
        What to call, and what to close at the end.
    """
    header = Header(
        start_s=start_s,
        now=start_s,
        unix_s=time.time(),
        law=describe_law(regulator.law),
        regulator=options,
        shadow=None if shadow is None else describe_law(shadow),
    )
    recorder = Recorder(path, header, max_bytes=max_bytes)
    return RecordingRegulator(regulator, recorder.note, shadow=shadow), recorder
