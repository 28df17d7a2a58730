"""What requests to one address have in common: scheme, host, port and leading path."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from concur_agents.errors import ConfigError
from concur_agents.probes.http import base_of
from concur_agents.runtime.endpoints import Address


class Base(NamedTuple):
    """The part of an address that all requests to it have in common."""

    scheme: str
    host: str
    port: int | None
    """None: the usual one of the scheme."""
    path: str
    """Without a slash at its end, and without `/v1`."""
    userinfo: str = ""

    def below(self, former: Base, url: str) -> str:
        """`url`, which lies below `former`, below this one, with its user and password."""
        rest = urlsplit(url).path.removeprefix(former.path)
        scheme, _, where = str(self).partition("://")
        return f"{scheme}://{self.userinfo}{'@' if self.userinfo else ''}{where}{rest}"

    @property
    def origin(self) -> tuple[str, str, int | None]:
        """What connections are made to."""
        return self.scheme, self.host, self.port

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port is None else f":{self.port}"
        return f"{self.scheme}://{host}{port}{self.path}"


@lru_cache(maxsize=1024)
def base(url: str) -> Base | None:
    """What requests to an address have in common; None: it is no http(s) address."""
    try:
        parts = urlsplit(base_of(url))
        userinfo, has, _ = urlsplit(url.strip()).netloc.rpartition("@")
        port = parts.port
    except (ConfigError, ValueError):
        return None
    if port == {"http": 80, "https": 443}.get(parts.scheme):
        port = None
    return Base(parts.scheme, parts.hostname or "", port, parts.path, userinfo if has else "")


def base_of_request(url: Any) -> Base:
    """Of the address in a request, with its whole path."""
    path = url.raw_path.partition(b"?")[0].decode("ascii", "replace")
    return Base(url.scheme, url.host, url.port, path)


def bases_of(addresses: Iterable[Address]) -> Iterator[Base]:
    """Each once."""
    urls = dict.fromkeys(address.url for address in addresses)
    return (found for found in map(base, urls) if found is not None)


def innermost(asked: Base, addresses: Iterable[Address]) -> Base | None:
    """The address that a request belongs to: of several, the one with the longest path."""
    path = f"{asked.path}/"
    found = [
        each
        for each in bases_of(addresses)
        if each.origin == asked.origin and path.startswith(f"{each.path}/")
    ]
    return max(found, key=lambda each: len(each.path), default=None)
