"""The engines of one governor: how each is read, and which pools each has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from concur_agents.core import Fleet, Regulator, without_fleet_options
from concur_agents.errors import ConfigError
from concur_agents.recording import scrub
from concur_agents.runtime.poller import EnginePoller


class Address(NamedTuple):
    """Where the calls of a pool's agents go."""

    url: str
    """As the user gave it."""
    rank: int | None = None
    """Of several engines behind one address: which one calls are pinned to; None: there is one."""
    by_body: bool = False
    """Calls are pinned by a field in their body, and not by a header."""
    worker: str | None = None
    """Behind a router: the engine's own address; None: `url` is that."""
    served_rank: int | None = None
    """The rank that answers may name; None: there is one."""


@dataclass(slots=True, eq=False)
class Endpoint:
    """One address, and its pools."""

    poller: EnginePoller
    url: str | None
    """As the user gave it; None: there is none, or a probe was given."""
    name: str = ""
    """Of its pool, and of those of its ranks up to `#`."""
    ranks: int = 1
    """Engines there that are to be pools of their own; 1: all that are there are one pool."""
    by_body: bool = False
    """See `Address.by_body`."""
    pools: dict[str, str] | None = None
    """The regulator's names of its pools, by rank; None: the governor has one pool in all."""
    unread: dict[str | None, str] = field(default_factory=dict)
    """Of them, those without a reading the last time, and why; None: the one pool."""
    summed: list[EnginePoller] = field(default_factory=list)
    """Others whose readings count with this one, as those of one pool."""
    is_sum: bool = False
    """Whatever engines there are, they are governed as one pool: so it was asked for, or calls
    cannot be pinned."""

    @property
    def names(self) -> list[str | None]:
        """The regulator's names of its pools; None: the one pool in all."""
        return [None] if self.pools is None else list(self.pools.values())

    def named(self) -> dict[str, str]:
        """Its pools by rank, if they are not all there is."""
        if self.ranks == 1:
            return {"0": self.name}
        return {str(rank): f"{self.name}#{rank}" for rank in range(self.ranks)}


@dataclass(slots=True)
class Endpoints:
    """All engines.  With one pool a `Regulator` governs it, with several a `Fleet` does.

    Args:
        urls: their addresses; empty: there is none, or a probe was given.
        ranks: data-parallel engines behind each address; None: as many as can be proved to be
            pools of their own, and one until then.
        make_poller: makes what reads an address; None as the address: the one probe or nothing.
        router: all calls go there, and it picks; None: they go to the addresses themselves.
        labels: names of the addresses, where they are others than these.
        are_given: which pools there are is said by a daemon, and not found out here.

    Raises:
        ConfigError: an address is there twice, or `ranks` is out of its range.
    """

    urls: list[str]
    ranks: int | None
    make_poller: Callable[[str | None], EnginePoller]
    router: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    are_given: bool = False
    all: list[Endpoint] = field(init=False, default_factory=list)
    addresses: dict[str, Address] = field(init=False, default_factory=dict)
    """By the names of the pools; empty: there is one pool."""
    _has_several: bool = field(init=False, default=False)
    """There are several addresses, or have been."""
    _is_joined: bool = field(init=False, default=False)
    """All are governed as one pool."""

    def __post_init__(self) -> None:
        ranks: object = self.ranks  # whatever its annotation says
        if ranks is not None and (isinstance(ranks, bool) or not isinstance(ranks, int)):
            raise ConfigError(f"ranks must be at least 1 engine, got {self.ranks!r}")
        if self.ranks is not None and self.ranks < 1:
            raise ConfigError(f"ranks must be at least 1 engine, got {self.ranks!r}")
        if self.ranks not in (None, 1) and not self.urls:
            raise ConfigError("ranks says how many engines an address has: give the url too")
        self._has_several = len(self.urls) > 1
        for url in self.urls or (None,):
            self._open(url)
        self.apply(self.layout())

    @property
    def is_fleet(self) -> bool:
        """Whether there are several pools, or may be."""
        return bool(self.addresses)

    @property
    def first(self) -> EnginePoller:
        """What reads the first address."""
        return self.all[0].poller

    def layout(self) -> dict[str, Address]:
        """Where the calls of each pool are to go, by name; empty: there is one pool."""
        if self._is_joined or (not self._has_several and self.all[0].ranks == 1):
            return {}
        return {
            pool: self._address_of(endpoint, int(rank) if endpoint.ranks > 1 else None)
            for endpoint in self.all
            for rank, pool in endpoint.named().items()
        }

    def _address_of(self, endpoint: Endpoint, rank: int | None) -> Address:
        url = str(endpoint.url)
        if self.router is None:
            return Address(url, rank, endpoint.by_body, served_rank=rank)
        return Address(self.router, worker=url, served_rank=rank)

    def unpin(self, url: str) -> bool:
        """Calls to an address cannot be pinned to its ranks: wishes for one pool of them.

        Returns:
            Whether that is new. It comes into force on a beat.
        """
        for endpoint in self.all:
            if endpoint.url == url and endpoint.ranks > 1 and self.router is None:
                endpoint.ranks, endpoint.is_sum = 1, True
                return True
        return False

    def join(self) -> bool:
        """Wishes for one pool of all; likewise."""
        if self._is_joined:
            return False
        self._is_joined = True
        for endpoint in self.all:
            endpoint.ranks, endpoint.is_sum = 1, True
        return True

    @property
    def is_due(self) -> bool:
        """Whether the pools are to be others than they are."""
        layout = self.layout()
        if self.are_given:
            return False
        if not layout:
            return self.is_fleet
        is_same = all(self.addresses.get(pool) == address for pool, address in layout.items())
        return not is_same or any(each.ranks != len(each.pools or "1") for each in self.all)

    def apply(self, layout: dict[str, Address]) -> None:
        """From here on the pools are those of `layout`."""
        first, *others = self.all
        for endpoint in self.all:
            # Of several that are one pool the first reports for all.
            endpoint.pools = endpoint.named() if layout else None if endpoint is first else {}
            endpoint.summed = []
            known = endpoint.unread.items()
            endpoint.unread = {pool: why for pool, why in known if pool in endpoint.names}
        if not layout:
            first.summed = [endpoint.poller for endpoint in others]
        self.addresses = layout

    def add(self, url: str) -> Endpoint:
        """One more address of a fleet.

        Raises:
            ConfigError: it is there already.
        """
        endpoint = self._open(url)
        self._has_several = True
        self.apply({**self.addresses, **self.layout()})
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

    def _open(self, url: str | None) -> Endpoint:
        if url is not None and any(each.poller.url == scrub(url) for each in self.all):
            raise ConfigError(f"{scrub(url)} is there twice: each address is given once")
        name = self.labels.get(url or "", scrub(url or ""))
        endpoint = Endpoint(
            self.make_poller(url), url, name, self.ranks or 1, is_sum=self.ranks == 1
        )
        self.all.append(endpoint)
        return endpoint

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


def make_regulator(law: Any, start_s: float, options: dict[str, Any], pools: Sequence[str]) -> Any:
    """What decides: a `Regulator`, or a `Fleet` behind the same door.

    Args:
        law: in force.
        start_s: the host's clock now [s].
        options: of a regulator.
        pools: their names; empty: there is one pool.
    """
    if pools:
        return Fleet(law, pools, start_s, **options)
    return Regulator(law, start_s, **without_fleet_options(options))


def behind(router: object, pools: Iterable[str] | Mapping[str, str]) -> dict[str, str]:
    """`pools` as a governor takes them: the names of the addresses behind a router, by address.

    Raises:
        ConfigError: there is no router or more than one, or an address is given twice.
    """
    if not isinstance(router, str):
        raise ConfigError(
            "pools= are the engines behind a router, and url= is its address: give one, such as "
            'Governor("http://router:8000", pools=["http://gpu1:8000", "http://gpu2:8000"])'
        )
    urls = addresses_in(pools.values() if isinstance(pools, Mapping) else pools)
    names = list(pools) if isinstance(pools, Mapping) else [scrub(url) for url in urls]
    if len({*urls}) < len(urls) or len({*names}) < len(names):
        raise ConfigError(f"pools= names an address twice: {', '.join(names)}")
    return dict(zip(urls, names, strict=True))


def addresses_in(url: str | Iterable[str] | None) -> list[str]:
    """`url` as a governor takes it, as a list.

    Raises:
        ConfigError: it is empty, or holds something else than text.
    """
    if url is None:
        return []
    if not isinstance(url, str | Iterable):
        raise ConfigError(
            f"url is an address or a list of addresses, got {url!r}; a fixed cap is limit={url!r}"
            if isinstance(url, int)
            else f"url is an address or a list of addresses, got {url!r}"
        )
    urls: list[object] = [url] if isinstance(url, str) else list(url)
    if not urls or not all(isinstance(each, str) and each for each in urls):
        raise ConfigError(f"url is an address or a list of addresses, got {url!r}")
    return [str(each) for each in urls]
