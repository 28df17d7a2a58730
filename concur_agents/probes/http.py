"""Fetches an engine's metrics page over HTTP: one GET per reading, nothing remembered.

All foreign network exceptions become :class:`ProbeError` here and nowhere else. Redirects are
never followed: the key would travel with them.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, Self
from urllib.parse import urlsplit, urlunsplit

from concur_agents.core.types import Reading
from concur_agents.errors import ConfigError, ProbeError
from concur_agents.probes.page import PageReading, parse_page
from concur_agents.probes.sglang import LOADS_PATH

METRICS_PATH: Final = "/metrics"
# The largest page seen is 80 kB for one engine; a router in front of a hundred sends some MB.
MAX_PAGE_BYTES: Final = 32 * 1024 * 1024
_ABSENT: Final = (404, 405, 501)


class HttpProbe:
    """Reads a vLLM, SGLang or Dynamo endpoint; recognises which it is.

    Thread-safe. Close it, or use it as a context manager, to give its connection back.

    Args:
        url: Where the engine listens, with or without ``/v1``: ``http://localhost:8000``. An
            address that ends in ``/metrics`` is taken as it is, for pages elsewhere.
        api_key: Sent as a bearer token, where the engine asks for one.
        model: Read only this model, on a page that serves several.
        timeout_s: Longest wait for the whole answer [s].
        clock: The host's monotonic clock [s]; gives ``at_s``.

    Raises:
        ConfigError: the address is no http(s) address, or the timeout is not above 0.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        model: str | None = None,
        timeout_s: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._http = Http(url, api_key=api_key, timeout_s=timeout_s)
        self._model = model
        self._clock = clock
        self._engine: str | None = None

    @property
    def url(self) -> str:
        """The engine's address, without ``/v1`` and without credentials."""
        return self._http.shown

    @property
    def engine(self) -> str | None:
        """The engine of the last page, or None before the first."""
        return self._engine

    def read(self) -> Reading:
        """The whole endpoint as it is now.

        Raises:
            ProbeError: not reached, not read or not recognised; the message says what to do.
        """
        return self.read_page().reading

    def read_page(self) -> PageReading:
        """Like :meth:`read`, with all that the page says: engine, model, ranks, sources."""
        text, path = self.fetch()
        at_s = self._clock()
        try:
            page = parse_page(text, at_s, model=self._model)
        except ProbeError as error:
            raise ProbeError(f"{self.url}{path}: {error}") from error
        self._engine = page.engine
        return page

    def fetch(self) -> tuple[str, str]:
        """The page as text, to be parsed or recorded, and the path it was found at."""
        path = self._http.metrics_path
        answer = self._http.get(path)
        if answer.status in _ABSENT and path == METRICS_PATH:
            loads = self._http.get(LOADS_PATH)
            if loads.status == 200:
                return loads.text, LOADS_PATH
        if answer.status != 200:
            raise ProbeError(self._refusal(path, answer))
        return answer.text, path

    def _refusal(self, path: str, answer: HttpResponse) -> str:
        where = f"{self.url}{path}"
        if answer.status in _ABSENT:
            return (
                f"no metrics at {where} (HTTP {answer.status}). SGLang needs --enable-metrics; "
                "behind a proxy or router, give the engine's own address; a hosted API has none: "
                "use a fixed limit, or a probe of your own"
            )
        if answer.status in (401, 403):
            return f"{where} asks for a key (HTTP {answer.status}): give api_key="
        if 300 <= answer.status < 400:
            to = answer.headers.get("location", "elsewhere")
            return f"{where} redirects to {to}, which is not followed: give that address instead"
        return f"{where} answered HTTP {answer.status}: is the engine still starting, or broken?"

    def close(self) -> None:
        """Give the connection back. Safe to call twice."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<HttpProbe {self.url}: {self._engine or 'not read yet'}>"


class HttpResponse(NamedTuple):
    """What a server said."""

    status: int
    text: str
    headers: Mapping[str, str]


class Http:
    """A small sync client of one server; turns every network failure into a ProbeError."""

    def __init__(self, url: str, *, api_key: str | None = None, timeout_s: float = 2.0) -> None:
        if not timeout_s > 0:
            raise ConfigError(f"timeout_s must be above 0 seconds, got {timeout_s}")
        self._timeout_s = timeout_s
        self._base, self.shown, self.metrics_path = _split(url)
        self._httpx = _httpx()
        headers = {"accept": "application/json, text/plain;version=0.0.4;q=0.9, */*;q=0.1"}
        if api_key:
            headers["authorization"] = f"Bearer {api_key}"
        self._client = self._httpx.Client(
            headers=headers, timeout=timeout_s, follow_redirects=False
        )

    def get(self, path: str) -> HttpResponse:
        """GET a path below the address."""
        return self._send("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any]) -> HttpResponse:
        """POST JSON to a path below the address."""
        return self._send("POST", path, body)

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None) -> HttpResponse:
        url, shown = self._base + path, self.shown + path
        # The client's own timeout is per chunk; a server that drips would hold us for ever.
        deadline_s = time.monotonic() + self._timeout_s
        content = bytearray()
        try:
            with self._client.stream(method, url, json=body) as response:
                for chunk in response.iter_bytes():
                    content += chunk
                    if len(content) > MAX_PAGE_BYTES:
                        raise ProbeError(f"{shown} sent more than {MAX_PAGE_BYTES} bytes")
                    if time.monotonic() > deadline_s:
                        raise ProbeError(
                            f"{shown} was still sending after {self._timeout_s:g} s: "
                            "is this a stream? Give the engine's own address"
                        )
                text = bytes(content).decode("utf-8", "replace")
                return HttpResponse(response.status_code, text, dict(response.headers))
        except self._httpx.TimeoutException as error:
            raise ProbeError(
                f"{shown} did not answer within {self._timeout_s:g} s: is the server overloaded, "
                "or a firewall in between? A longer timeout_s may help"
            ) from error
        except self._httpx.ConnectError as error:
            raise ProbeError(
                f"nothing answers at {shown} ({error}): is the server running, and are host "
                "and port right?"
            ) from error
        # InvalidURL and a few more are no HTTPError, but come from the same place
        except (self._httpx.HTTPError, self._httpx.InvalidURL, ValueError) as error:
            raise ProbeError(f"{shown} could not be read: {error}") from error

    def close(self) -> None:
        """Give the connection back."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _split(url: str) -> tuple[str, str, str]:
    """An address as people write it -> base, the same without credentials, path of the metrics."""
    try:
        parts = urlsplit(url.strip())
        host = parts.hostname
        port = f":{parts.port}" if parts.port else ""
    except ValueError as error:
        raise ConfigError(f"url cannot be read: {error}, got {url!r}") from error
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(f"url must look like 'http://localhost:8000', got {url!r}")
    path = parts.path.rstrip("/")
    metrics = METRICS_PATH
    if path.endswith(METRICS_PATH):
        # `/metrics/` stays as it is: some servers redirect one of the two to the other
        path = path.removesuffix(METRICS_PATH)
        if path or parts.path.endswith("/"):
            path, metrics = "", parts.path
    for tail in ("/chat/completions", "/completions", "/v1"):
        path = path.removesuffix(tail)
    name = f"[{host}]" if ":" in host else host
    return (
        urlunsplit((parts.scheme, parts.netloc, path, "", "")),
        urlunsplit((parts.scheme, f"{name}{port}", path, "", "")),
        metrics,
    )


def _httpx() -> Any:
    """httpx2, which openai 3 brings, or httpx, which openai 2 brings: the same interface."""
    try:
        return importlib.import_module("httpx2")
    except ModuleNotFoundError:
        return importlib.import_module("httpx")
