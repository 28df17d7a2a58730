"""Reads the engine, and remembers how well that went.

A metrics outage must not stop the agents: every exception of a probe ends here, as an error that
can be seen and a reading that is missing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from enum import Enum
from typing import TYPE_CHECKING, Final, Literal

from concur_agents.core import Reading
from concur_agents.errors import ConfigError, ProbeError
from concur_agents.recording import scrub
from concur_agents.runtime.attempt import Attempt
from concur_agents.runtime.events import told
from concur_agents.runtime.poll_thread import Backoff

if TYPE_CHECKING:
    from concur_agents.probes import Probe
    from concur_agents.probes.connection import Headers, Verify
    from concur_agents.probes.http import Http, HttpProbe
    from concur_agents.probes.pinning import PinProof

logger = logging.getLogger("concur_agents")

READING_S = 10.0
"""Longest reading [s] of a probe that has no `timeout_s` of its own; with one: twice that."""

CALL_S = 60.0
"""Longest tiny call [s] of `check_pinning`."""

_SIMULATED_S = 60.0
"""Longest reading [s] in simulated time, where a second of a busy machine says nothing."""

CLOSE_S = 5.0
"""Longest call [s] that closes a session."""

_MOST_HANGING = 4
"""So many checks may hang, each with its thread, because a name server cannot be interrupted."""


class _Pending(Enum):
    """The type of `PENDING`."""

    PENDING = "pending"


PENDING: Final = _Pending.PENDING
"""No result yet: a reading is under way."""


class EnginePoller:
    """What a governor knows of its engine.

    Args:
        url: the endpoint, for a probe of its own; None: there is none, or a probe was given.
        probe: reads the engine in place of one made from `url`.
        api_key: sent to the endpoint as a bearer token.
        headers: sent to the endpoint.
        verify: how its certificate is checked; see `HttpProbe`.
        interval_s: time [s] between readings.
        background: readings run in a thread of their own, and a random time is added to the rest
            after a failure. False: readings run in the calling thread (simulated time), and may
            take long on the wall.
        clock: monotonic time [s].
    """

    def __init__(
        self,
        url: str | None,
        probe: Probe | None,
        *,
        api_key: str | None,
        headers: Headers | None = None,
        verify: Verify = True,
        interval_s: float,
        background: bool,
        clock: Callable[[], float],
    ) -> None:
        self._url: str | None = url if url is not None else getattr(probe, "url", None)
        self.url = None if self._url is None else scrub(self._url)
        """The endpoint, without user, password and query; None: there is none."""
        self.owns_probe = url is not None
        self.background = background
        self._api_key = api_key
        self._headers, self._verify = headers, verify
        self._clock = clock
        self._interval_s = interval_s
        self.probe = self._make_probe() if self.owns_probe else probe
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forgets all readings."""
        self.last_reading: Reading | None = None
        self.failures = 0  # in a row
        self.failures_total = 0
        self.error: str | None = None
        self.sighted_s: float | None = None  # last good reading, or first attempt
        self._attempt: Attempt[Reading] | None = None
        self._checks: list[Attempt[Reading]] = []
        self._backoff = Backoff(self._interval_s, jitter=self.background)

    def after_fork(self) -> None:
        """Drops the open connections, which did not survive; a fork handler should do little."""
        if self.owns_probe:
            self.probe = None  # made when first needed
        self.begin_anew()

    @property
    def reads(self) -> bool:
        """Whether there is anything to read."""
        return self.probe is not None or self.owns_probe

    @property
    def own_probe(self) -> Probe | None:
        """The probe made from `url`, which the governor closes; None: there is none."""
        return self.probe if self.owns_probe else None

    @property
    def engine(self) -> str | None:
        """What kind of engine it is; None: not known (yet)."""
        return getattr(self.probe, "engine", None)

    @property
    def due_s(self) -> float | None:
        """When the reading under way counts as failed [s]; None: none is under way."""
        attempt = self._attempt
        return None if attempt is None or attempt.abandoned else attempt.due_s

    def blind_s(self, now: float) -> float:
        """Time [s] since the last good reading, or since the first attempt; 0: no endpoint."""
        if self.sighted_s is None or not self.reads:
            return 0.0
        return max(0.0, now - self.sighted_s)

    def check(self) -> Reading:
        """Reads the engine once, now.

        Raises:
            ProbeError: it cannot be read; the message says what to do.
            ConfigError: there is no endpoint to read.
        """
        if not self.reads:
            raise ConfigError("there is no endpoint to read: give the Governor a url")
        if not self.background:
            return self._read()
        longest_s = self._longest_s()
        self._checks = [each for each in self._checks if not each.over]
        if len(self._checks) >= _MOST_HANGING:
            raise self._too_long(longest_s)
        attempt = Attempt(self._read, lambda: None, due_s=0.0)
        self._checks.append(attempt)
        attempt.join(longest_s)
        if attempt.error is not None:
            raise attempt.error
        if attempt.result is None:
            self._interrupt()
            raise self._too_long(longest_s)
        return attempt.result

    def hidden_ranks(self) -> int:
        """Data-parallel engines that SGLang says it has, whatever its page shows."""
        from concur_agents.probes.pinning import hidden_ranks

        with self._http() as http:
            return hidden_ranks(http)

    def keeps_sessions(self) -> bool:
        """Whether SGLang's cache goes by sessions."""
        from concur_agents.probes.sessions import keeps_sessions

        with self._http() as http:
            return keeps_sessions(http)

    def close_sessions(self, names: Iterable[str]) -> None:
        """What these sessions used goes first from here on.

        Raises:
            ProbeError: the engine cannot be reached, or refuses.
        """
        from concur_agents.probes.sessions import close_session

        with self._http(CLOSE_S) as http:
            for name in names:
                close_session(http, name)

    def check_pinning(self, ranks: int | None, model: str | None) -> PinProof:
        """Proves with a few tiny calls that the rank header pins calls to the engine's ranks.

        Args:
            ranks: data-parallel engines there; None: as many as the page shows.
            model: serves the calls; None: the first one that is served.
        """
        from concur_agents.probes.pinning import prove_pinning

        with self._http() as http, self._make_probe() as probe:
            return prove_pinning(http, probe, ranks=ranks, model=model)

    def _http(self, timeout_s: float = CALL_S) -> Http:
        from concur_agents.probes.http import Http

        assert self._url is not None
        return Http(
            self._url,
            timeout_s=timeout_s,
            api_key=self._api_key,
            headers=self._headers,
            verify=self._verify,
        )

    def poll(self) -> Reading | None:
        """Reads the engine in this thread. Never raises; None: it could not be read."""
        self._note_attempt()
        try:
            reading = self._read()
        except Exception as error:  # a probe may be the user's own
            self._missed(error)
            return None
        return self._heard(reading)

    def begin(self, done: Callable[[], object]) -> Reading | Literal[_Pending.PENDING] | None:
        """Starts a reading in a thread of its own. Never raises.

        While a reading that was counted as failed still hangs, no other one is started.

        Args:
            done: called once `collect` has a result, in any thread.

        Returns:
            `PENDING` while it is under way, and otherwise the result as of `poll`.
        """
        if not self.reads:
            return self.poll()
        self._note_attempt()
        longest_s = self._longest_s()
        if self._attempt is not None and not self._attempt.over:
            self._missed(self._too_long(longest_s))
            return None
        try:
            self._attempt = Attempt(self._read, done, due_s=self._clock() + longest_s)
        except RuntimeError as error:
            self._missed(error)
            return None
        return PENDING

    def collect(self) -> Reading | Literal[_Pending.PENDING] | None:
        """The result of the reading that was begun; `PENDING`: there is none (yet).

        A reading past its deadline is abandoned and counts as failed.
        """
        attempt = self._attempt
        if attempt is None or attempt.abandoned:
            return PENDING
        if not attempt.over:
            if self._clock() < attempt.due_s:
                return PENDING
            attempt.abandoned = True
            self._interrupt()
            self._missed(self._too_long(self._longest_s()))
            return None
        self._attempt = None
        if attempt.result is None:
            self._missed(attempt.error or ProbeError("the probe returned no reading"))
            return None
        return self._heard(attempt.result)

    def rest_s(self) -> float:
        """Time [s] until the next reading."""
        return self._backoff.after(self.failures)

    def close(self) -> None:
        """Closes a probe of its own."""
        close = getattr(self.own_probe, "close", None)
        if close is not None:
            close()

    def join(self, timeout_s: float) -> None:
        """Waits for the end of a reading under way, for at most this long [s]."""
        attempt = self._attempt
        if attempt is not None:
            attempt.join(timeout_s)

    def _note_attempt(self) -> None:
        if self.sighted_s is None:
            self.sighted_s = self._clock()

    def _heard(self, reading: Reading) -> Reading:
        if self.failures:
            dark_s = self._clock() - (self.sighted_s or 0.0)
            recovered = told("poll_recovered", url=self.url, waited_s=dark_s)
            logger.info("the engine can be read again, after %.0f s", dark_s, extra=recovered)
        self.failures = 0
        self.error = None
        self.last_reading = reading
        self.sighted_s = self._clock()
        return reading

    def _missed(self, error: BaseException) -> None:
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

    def _longest_s(self) -> float:
        """A reading that takes longer [s] counts as failed."""
        timeout_s: float | None = getattr(self.probe, "timeout_s", None)
        return READING_S if timeout_s is None else 2 * timeout_s

    def _too_long(self, longest_s: float) -> ProbeError:
        return ProbeError(
            f"{self.url or 'the probe'} gave no complete answer in {longest_s:g} s: is the server "
            "overloaded, or is this not the engine's own address?"
        )

    def _interrupt(self) -> None:
        """Ends a reading that hangs, where the probe can do so."""
        interrupt = getattr(self.probe, "interrupt", None)
        if interrupt is not None:
            interrupt()

    def _read(self) -> Reading:
        if not self.reads:  # the law uses only what calls report, and still needs its ticks
            return Reading(at_s=self._clock())
        if self.probe is None:
            self.probe = self._make_probe()
        return self.probe.read()

    def _make_probe(self) -> HttpProbe:
        from concur_agents.probes.http import TIMEOUT_S, HttpProbe

        assert self._url is not None
        return HttpProbe(
            self._url,
            timeout_s=TIMEOUT_S if self.background else _SIMULATED_S,
            api_key=self._api_key,
            headers=self._headers,
            verify=self._verify,
            clock=self._clock,
        )
