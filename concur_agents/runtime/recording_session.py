"""A governor's tape: what the flight recorder is told, and when that begins and ends.

The regulator is recorded by what stands in for it (`recording.RecordingRegulator`), which also
hosts a shadow law; what happens beside the regulator's calls comes from the events.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from concur_agents.errors import ConfigError
from concur_agents.recording import (
    Happening,
    Header,
    Recorder,
    RecordingRegulator,
    Shadow,
    describe_law,
    standing_of,
)

if TYPE_CHECKING:
    from concur_agents.core import Law, Regulator
    from concur_agents.runtime.events import Dispatcher, Event
    from concur_agents.runtime.monitor import Monitor

_HAPPENINGS = frozenset(
    (
        "suspended",
        "resume_asked",
        "tool_began",
        "tool_ended",
        "poll_failed",
        "poll_recovered",
        "closed",
    )
)
"""What a recording holds beside the calls of the regulator."""


class RecordingSession:
    """At most one recording at a time of one monitor, and its shadow law.

    Args:
        monitor: whose decisions are recorded.
        dispatcher: tells what else happens.
        law: the law in force.
        shadow: a law that decides beside it, without effect; None: none.
        start_s: when the regulator began [s].
        options: what else it was made with.
        url: the endpoint that is read, without passwords; None: none.
    """

    def __init__(
        self,
        monitor: Monitor,
        dispatcher: Dispatcher,
        *,
        law: Law,
        shadow: Law | None,
        start_s: float,
        options: Mapping[str, Any],
        url: str | None,
    ) -> None:
        self._monitor = monitor
        self._dispatcher = dispatcher
        self._law = law
        self._shadow_law = shadow
        self._start_s = start_s
        self._options = options
        self._url = url
        self.recording_regulator: RecordingRegulator | None = None
        """What stands in for the regulator; None: nothing does yet."""
        self.recorder: Recorder | None = None
        """What is being written; None: nothing is."""
        self._unwatch: Callable[[], None] = lambda: None
        if shadow is not None:
            self._recording()

    @property
    def shadow(self) -> Shadow | None:
        """The shadow law, and where it stands; None: there is none."""
        return None if self.recording_regulator is None else self.recording_regulator.shadow

    def begin(self, path: str | os.PathLike[str], max_bytes: int) -> Callable[[], None]:
        """Records everything from here on; returns the function that ends it.

        Raises:
            ConfigError: it cannot be written, or there is a recording already.
        """
        if self.recorder is not None:
            raise ConfigError(
                f"this governor is being recorded to {self.recorder.path} already: end that "
                "recording first, with the function that `record` returned"
            )
        recorder = self.recorder = self._monitor.look(lambda now: self._open(path, max_bytes, now))

        def watch(event: Event) -> None:
            if event.kind in _HAPPENINGS:
                recorder.note(
                    Happening(
                        kind=event.kind,
                        now=event.at_s,
                        agent=event.agent,
                        reason=event.reason,
                        waited_s=event.waited_s,
                        pool=event.pool,
                    )
                )

        self._unwatch = self._dispatcher.subscribe(watch)
        return lambda: self._end(recorder)

    def end(self) -> None:
        """Ends the recording, if there is one."""
        if self.recorder is not None:
            self._end(self.recorder)

    def _end(self, recorder: Recorder) -> None:
        if self.recorder is not recorder:
            return
        self._unwatch()
        self.recorder = None
        if self.recording_regulator is not None:
            self.recording_regulator.note = None
        recorder.close()

    def _open(self, path: str | os.PathLike[str], max_bytes: int, now: float) -> Recorder:
        """Under the lock: a recorder that misses nothing after this moment."""
        sessions = self._monitor.sessions
        priorities = {session.id: session.priority for session in sessions.by_id.values()}
        header = Header(
            start_s=self._start_s,
            now=now,
            unix_s=time.time(),
            law=describe_law(self._law),
            regulator=dict(self._options),
            from_start=not self._monitor.used,
            shadow=None if self._shadow_law is None else describe_law(self._shadow_law),
            url=self._url,
            agents=standing_of(sessions.regulator, priorities, now),
        )
        recorder = Recorder(path, header, max_bytes=max_bytes)
        (self.recording_regulator or self._recording()).note = recorder.note
        return recorder

    def _recording(self) -> RecordingRegulator:
        sessions = self._monitor.sessions
        self.recording_regulator = RecordingRegulator(sessions.regulator, shadow=self._shadow_law)
        sessions.regulator = cast("Regulator", self.recording_regulator)  # it has the whole door
        return self.recording_regulator
