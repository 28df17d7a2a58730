"""Reads the engine, and remembers how well that went.

A metrics outage is ours to live with, not the agents': whatever a probe raises ends here, as an
error that can be seen and a reading that is missing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from concur_agents.core import Reading
from concur_agents.errors import ConfigError, ProbeError
from concur_agents.recording import scrub
from concur_agents.runtime.events import told
from concur_agents.runtime.poll_thread import Backoff

if TYPE_CHECKING:
    from concur_agents.probes import Probe

logger = logging.getLogger("concur_agents")


class EnginePoller:
    """What a governor knows of its engine.

    Args:
        url: the endpoint, for a probe of its own; None: there is none, or a probe was given.
        probe: reads the engine in place of one made from `url`.
        api_key: sent to the endpoint as a bearer token.
        interval_s: time [s] between readings.
        jitter: whether to wait a little longer at random after a failure.
        clock: monotonic time [s].
    """

    def __init__(
        self,
        url: str | None,
        probe: Probe | None,
        *,
        api_key: str | None,
        interval_s: float,
        jitter: bool,
        clock: Callable[[], float],
    ) -> None:
        self._url: str | None = url if url is not None else getattr(probe, "url", None)
        self.url = None if self._url is None else scrub(self._url)
        """The endpoint, without user, password and query; None: there is none."""
        self.owns_probe = url is not None
        self._api_key = api_key
        self._clock = clock
        self._interval_s = interval_s
        self._jitter = jitter
        self.probe = self._make_probe() if self.owns_probe else probe
        self.begin_anew()

    def begin_anew(self) -> None:
        """Nothing has been read."""
        self.last_reading: Reading | None = None
        self.failures = 0  # in a row
        self.failures_total = 0
        self.error: str | None = None
        self.sighted_s: float | None = None  # last good reading, or first attempt
        self._backoff = Backoff(self._interval_s, jitter=self._jitter)

    def after_fork(self) -> None:
        """Open connections did not survive it; a fork handler should do little."""
        if self.owns_probe:
            self.probe = None  # made when first needed
        self.begin_anew()

    @property
    def reads(self) -> bool:
        """Whether there is anything to read."""
        return self.probe is not None or self.owns_probe

    @property
    def own_probe(self) -> Probe | None:
        """The probe made from `url`, which is ours to close; None: there is none."""
        return self.probe if self.owns_probe else None

    @property
    def engine(self) -> str | None:
        """What kind of engine it is; None: not known (yet)."""
        return getattr(self.probe, "engine", None)

    def blind_s(self, now: float) -> float:
        """Time [s] since the last good reading, or since the first attempt; 0: no endpoint."""
        if self.sighted_s is None or not self.reads:
            return 0.0
        return max(0.0, now - self.sighted_s)

    def check(self) -> Reading:
        """Reads the engine once, now, for those who want to know before they start.

        Raises:
            ProbeError: it cannot be read; the message says what to do.
            ConfigError: there is no endpoint to read.
        """
        if not self.reads:
            raise ConfigError("there is no endpoint to read: give the Governor a url")
        return self._read()

    def poll(self) -> Reading | None:
        """Reads the engine as a matter of routine. Never raises; None: it could not be read."""
        if self.sighted_s is None:
            self.sighted_s = self._clock()
        try:
            reading = self._read()
        except Exception as error:  # a probe may be the user's own
            self._missed(error)
            return None
        if self.failures:
            dark_s = self._clock() - self.sighted_s
            recovered = told("poll_recovered", url=self.url, waited_s=dark_s)
            logger.info("the engine can be read again, after %.0f s", dark_s, extra=recovered)
        self.failures = 0
        self.error = None
        self.last_reading = reading
        self.sighted_s = self._clock()
        return reading

    def rest_s(self) -> float:
        """Time [s] until the next reading."""
        return self._backoff.after(self.failures)

    def close(self) -> None:
        """Closes a probe of its own."""
        close = getattr(self.own_probe, "close", None)
        if close is not None:
            close()

    def _missed(self, error: Exception) -> None:
        self.failures += 1
        self.failures_total += 1
        self.error = scrub(str(error)) or type(error).__name__
        if self.failures == 1:
            logger.warning(
                "cannot read the engine%s; agents go on, and it is tried again: %s",
                f" at {self.url}" if self.url else "",
                self.error,
                exc_info=None if isinstance(error, ProbeError) else error,
                extra=told("poll_failed", url=self.url, error=self.error),
            )

    def _read(self) -> Reading:
        if not self.reads:  # the law lives on usage alone, and still needs its ticks
            return Reading(at_s=self._clock())
        if self.probe is None:
            self.probe = self._make_probe()
        return self.probe.read()

    def _make_probe(self) -> Probe:
        from concur_agents.probes import HttpProbe

        assert self._url is not None
        return HttpProbe(self._url, api_key=self._api_key, clock=self._clock)
