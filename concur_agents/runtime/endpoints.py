"""The engines of one governor: how each is read, and which pools each has."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from concur_agents.core import Fleet, Regulator
from concur_agents.errors import ConfigError
from concur_agents.recording import scrub
from concur_agents.runtime.poller import EnginePoller


class Address(NamedTuple):
    """Where the calls of a pool's agents go."""

    url: str
    """As the user gave it."""
    rank: int | None = None
    """Of several engines behind one address: which one; None: there is one."""


@dataclass(slots=True)
class Endpoint:
    """One address, and its pools."""

    poller: EnginePoller
    pools: dict[str, str] | None
    """The regulator's names of its pools, by rank; None: the governor has one pool in all."""
    unread: dict[str | None, str] = field(default_factory=dict)
    """Of them, those without a reading the last time, and why; None: the one pool."""


@dataclass(slots=True)
class Endpoints:
    """All engines.  With one pool a `Regulator` governs it, with several a `Fleet` does.

    Args:
        urls: their addresses; empty: there is none, or a probe was given.
        ranks: data-parallel engines behind each address.
        make_poller: makes what reads an address; None as the address: the one probe or nothing.

    Raises:
        ConfigError: an address is there twice, or `ranks` is out of its range.
    """

    urls: list[str]
    ranks: int
    make_poller: Callable[[str | None], EnginePoller]
    all: list[Endpoint] = field(init=False, default_factory=list)
    addresses: dict[str, Address] = field(init=False, default_factory=dict)
    """By the names of the pools; empty: there is one pool."""

    def __post_init__(self) -> None:
        ranks: object = self.ranks  # whatever its annotation says
        if isinstance(ranks, bool) or not isinstance(ranks, int) or ranks < 1:
            raise ConfigError(f"ranks must be at least 1 engine, got {self.ranks!r}")
        if self.ranks > 1 and not self.urls:
            raise ConfigError("ranks says how many engines an address has: give the url too")
        if len(self.urls) * self.ranks <= 1:
            url = self.urls[0] if self.urls else None
            self.all.append(Endpoint(self.make_poller(url), None))
            return
        for url in self.urls:
            self.add(url)

    @property
    def is_fleet(self) -> bool:
        """Whether there are several pools, or may be."""
        return bool(self.addresses)

    @property
    def first(self) -> EnginePoller:
        """What reads the first address."""
        return self.all[0].poller

    def add(self, url: str) -> Endpoint:
        """One more address of a fleet.

        Raises:
            ConfigError: it is there already.
        """
        name = scrub(url)
        pools = {str(rank): f"{name}#{rank}" for rank in range(self.ranks)}
        if self.ranks == 1:
            pools = {"0": name}
        if any(endpoint.poller.url == name for endpoint in self.all):
            raise ConfigError(f"{name} is there twice: each address is given once")
        for rank, pool in pools.items():
            self.addresses[pool] = Address(url, int(rank) if self.ranks > 1 else None)
        endpoint = Endpoint(self.make_poller(url), pools)
        self.all.append(endpoint)
        return endpoint

    def remove(self, url: str) -> Endpoint:
        """An address is read no longer; its pools keep their addresses while agents are there.

        Raises:
            ConfigError: there is no such address, or no other.
        """
        name = scrub(url)
        for endpoint in self.all:
            if endpoint.poller.url == name and endpoint.pools is not None:
                if len(self.all) == 1:
                    raise ConfigError(f"{name} is the last address: add another first")
                self.all.remove(endpoint)
                return endpoint
        raise ConfigError(f"there is no address {name}")

    def regulator(self, law: Any, start_s: float, options: dict[str, Any]) -> Any:
        """What decides: a `Regulator`, or a `Fleet` behind the same door."""
        if self.is_fleet:
            return Fleet(law, list(self.addresses), start_s, **options)
        return Regulator(law, start_s, **options)

    def after_fork(self) -> None:
        """Drops the open connections, which did not survive, and pools that were removed."""
        live = {pool for endpoint in self.all for pool in (endpoint.pools or {}).values()}
        self.addresses = {name: at for name, at in self.addresses.items() if name in live}
        for endpoint in self.all:
            endpoint.poller.after_fork()
            endpoint.unread.clear()

    def close(self) -> None:
        """Closes probes of its own."""
        for endpoint in self.all:
            endpoint.poller.close()


def addresses_in(url: str | Iterable[str] | None) -> list[str]:
    """`url` as a governor takes it, as a list.

    Raises:
        ConfigError: it is empty, or holds something else than text.
    """
    if url is None:
        return []
    urls: list[object] = [url] if isinstance(url, str) else list(url)
    if not urls or not all(isinstance(each, str) and each for each in urls):
        raise ConfigError(f"url is an address or a list of addresses, got {url!r}")
    return [str(each) for each in urls]
