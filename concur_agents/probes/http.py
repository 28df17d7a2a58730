"""Fetches the metrics page of an engine over HTTP, with one GET per reading.

All network exceptions become `ProbeError` here and nowhere else. Redirects are never followed,
because the key would go with them. Encoded pages are refused, because a few hundred bytes of nested
gzip can hold gigabytes.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, Self
from urllib.parse import urlsplit, urlunsplit

from concur_agents._outside import is_from_handler
from concur_agents._text import printable
from concur_agents.core.types import Reading
from concur_agents.errors import ConfigError, ProbeError
from concur_agents.probes.connection import (
    Headers,
    Verify,
    certificate_trouble,
    read_headers,
    read_verify,
)
from concur_agents.probes.page import PageReading, parse_page
from concur_agents.probes.sglang import LOADS_PATH

METRICS_PATH: Final = "/metrics"
TIMEOUT_S: Final = 2.0
"""Longest wait [s] for a page by default."""
# The largest page of one engine has 80 kB; a router in front of a hundred sends some MB.
MAX_PAGE_BYTES: Final = 32 * 1024 * 1024
_ABSENT: Final = (404, 405, 501)
_MOST_TEXT: Final = 1000  # characters of a message


class HttpProbe:
    """Reads a vLLM, SGLang or Dynamo endpoint, and recognises which it is.

    Thread-safe. `close` or a `with` block closes its connection.

    Args:
        url: address of the engine, with or without `/v1`: `http://localhost:8000`. An address that
            ends in `/metrics` is used as it is, for pages elsewhere.
        api_key: sent as a bearer token, if the engine needs one.
        model: read only this model, on a page of several.
        timeout_s: longest wait for the whole answer [s].
        headers: sent with each request, as a gateway in front of the engine may need them.
        verify: an SSL context, or the file or folder of the CA that signed the certificate of the
            engine; False: any certificate is trusted.
        clock: the host's monotonic clock [s]; gives `at_s`.

    Raises:
        ConfigError: `url` is not an http(s) address, `timeout_s` is not above 0, a header or
            `verify` cannot be used, or a proxy or certificate of the environment cannot.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        model: str | None = None,
        timeout_s: float = TIMEOUT_S,
        headers: Headers | None = None,
        verify: Verify = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._http = Http(url, api_key=api_key, timeout_s=timeout_s, headers=headers, verify=verify)
        self.timeout_s = timeout_s
        """Longest wait for the whole answer [s]; a governor abandons a reading after twice that."""
        self._model = model
        self._clock = clock
        self._engine: str | None = None
        self.last_page: PageReading | None = None
        """The last page that was read; None: none was yet."""

    @property
    def url(self) -> str:
        """The address of the engine, without `/v1` and without credentials."""
        return self._http.shown

    @property
    def engine(self) -> str | None:
        """The engine of the last page; None: no page was read yet."""
        return self._engine

    def read(self) -> Reading:
        """The whole endpoint now.

        Raises:
            ProbeError: the endpoint cannot be reached, read or recognised; the message says what
                to do.
        """
        return self.read_page().reading

    def read_page(self) -> PageReading:
        """The endpoint now, with everything that the page reports; raises like `read`."""
        text, path = self.fetch()
        at_s = self._clock()
        try:
            page = parse_page(text, at_s, model=self._model)
        except ProbeError as error:
            raise ProbeError(printable(f"{self.url}{path}: {error}", _MOST_TEXT)) from error
        self._engine, self.last_page = page.engine, page
        return page

    def fetch(self) -> tuple[str, str]:
        """The page as text, and its path; raises like `read`."""
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
            if self._http.is_keyed:
                return f"{where} refuses the key that was given (HTTP {answer.status})"
            return f"{where} needs a key (HTTP {answer.status}): give api_key= (--api-key)"
        if 300 <= answer.status < 400:
            to = printable(answer.headers.get("location", "elsewhere"), 200)
            return (
                f"{where} redirects to {to}; redirects are not followed: give that address instead"
            )
        return f"{where} answered HTTP {answer.status}: is the engine still starting, or broken?"

    def interrupt(self) -> None:
        """End a reading that hangs in another thread; later readings use a new connection."""
        self._http.interrupt()

    def close(self) -> None:
        """Closes the connection; a second call does nothing."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<HttpProbe {self.url}: {self._engine or 'not read yet'}>"


class HttpResponse(NamedTuple):
    """The answer of a server."""

    status: int
    text: str
    headers: Mapping[str, str]


class Http:
    """A small sync client of one server; every network failure becomes a ProbeError."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = TIMEOUT_S,
        headers: Headers | None = None,
        verify: Verify = True,
    ) -> None:
        if not timeout_s > 0:
            raise ConfigError(f"timeout_s must be above 0 seconds, got {timeout_s}")
        self._timeout_s = timeout_s
        self._base, self.shown, self.metrics_path = _split(url)
        self._httpx = _httpx()
        self._headers = {
            "accept": "application/json, text/plain;version=0.0.4;q=0.9, */*;q=0.1",
            "accept-encoding": "identity",
            **read_headers(headers),
        }
        self.is_keyed = bool(api_key)
        if api_key:
            self._headers["authorization"] = f"Bearer {api_key}"
        self._verify = read_verify(verify)
        self._closed = False
        self._client = self._connect()

    def _connect(self) -> Any:
        try:
            return self._httpx.Client(
                headers=self._headers,
                timeout=self._timeout_s,
                follow_redirects=False,
                verify=self._verify,
            )
        except Exception as error:  # httpx reads proxies and certificates from the environment
            if is_from_handler(error):
                raise
            raise ConfigError(
                f"no client can be made for {self.shown} ({printable(str(error), 200)}): do "
                "HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE and SSLKEYLOGFILE of this "
                "environment say what they should?"
            ) from error

    def interrupt(self) -> None:
        """Close the connection under a request that hangs in another thread."""
        # A server that sends one byte a second keeps every single read within its timeout. The
        # next read of a closed socket fails, so the other thread ends within that timeout.
        client = self._client
        if not self._closed:
            self._client = self._connect()
        client.close()

    def get(self, path: str) -> HttpResponse:
        """Gets a path below the address."""
        return self._send("GET", path, None)

    def post(
        self, path: str, body: Mapping[str, Any], *, headers: Mapping[str, str] | None = None
    ) -> HttpResponse:
        """Posts JSON to a path below the address."""
        return self._send("POST", path, body, headers)

    def _send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        headers: Mapping[str, str] | None = None,
    ) -> HttpResponse:
        url, shown = self._base + path, self.shown + path
        # The client's timeout is per chunk, so a server that sends slowly would never hit it.
        deadline_s = time.monotonic() + self._timeout_s
        content = bytearray()
        try:
            with self._stream(method, url, json=body, headers=headers) as response:
                encoding = response.headers.get("content-encoding", "").strip().lower()
                if encoding not in ("", "identity"):
                    if response.status_code != 200:  # the status says enough
                        return HttpResponse(response.status_code, "", dict(response.headers))
                    raise ProbeError(
                        f"{shown} sent an encoded page ({printable(encoding, 40)}), although plain "
                        "text was asked for: switch compression off in the proxy before it, or "
                        "give the engine's own address"
                    )
                for chunk in response.iter_raw():
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
            if trouble := certificate_trouble(error):
                raise ProbeError(
                    f"the certificate of {shown} is not trusted ({printable(trouble, 200)}): give "
                    "the file of the CA that signed it, or of the certificate itself, as "
                    "metrics_verify= of the Governor (CONCUR_METRICS_VERIFY) or verify= of the "
                    "HttpProbe; False trusts any certificate"
                ) from error
            if "WRONG_VERSION_NUMBER" in str(error):
                raise ProbeError(
                    f"{shown} does not speak https ({printable(str(error))}): is it http://?"
                ) from error
            raise ProbeError(
                f"nothing answers at {shown} ({printable(str(error))}): is the server running, "
                "and are host and port right?"
            ) from error
        # InvalidURL and a few others are not subclasses of HTTPError
        except (self._httpx.HTTPError, self._httpx.InvalidURL, ValueError) as error:
            raise ProbeError(f"{shown} could not be read: {printable(str(error))}") from error

    @contextmanager
    def _stream(self, method: str, url: str, **options: Any) -> Iterator[Any]:
        """A request of the client; its connection ends with it if the client was closed meanwhile.

        A client that is closed while it makes a connection closes all but that one, and forgets it.
        """
        client, connection = self._client, None
        try:
            with client.stream(method, url, **options) as response:
                connection = response.extensions.get("network_stream")
                yield response
        finally:
            if connection is not None and (self._closed or client is not self._client):
                connection.close()

    def close(self) -> None:
        """Closes the connection, also one that is being made in another thread."""
        self._closed = True
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def base_of(url: str) -> str:
    """The address of the engine as a probe of `url` shows it; raises ConfigError."""
    return _split(url)[1]


def _split(url: str) -> tuple[str, str, str]:
    """An address -> base address, the same without credentials, path of the metrics page."""
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
        # `/metrics/` stays as it is, because some servers redirect one form to the other
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
    """httpx2, which openai 3 installs, or httpx, which openai 2 installs; same interface."""
    try:
        return importlib.import_module("httpx2")
    except ModuleNotFoundError:
        return importlib.import_module("httpx")
