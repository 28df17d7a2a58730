"""Several endpoints, or several data-parallel engines behind each, asked as one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from concur_agents.core import Reading, sum_of
from concur_agents.errors import ConfigError
from concur_agents.lab.replay.endpoint import (
    Completion,
    Endpoint,
    EndpointError,
    Unit,
    Via,
    Vocabulary,
)
from concur_agents.probes import HttpProbe
from concur_agents.runtime.endpoints import Address

__all__ = ["Engines", "Replicas", "SumProbe"]


@dataclass(frozen=True, slots=True)
class Engines:
    """What a gate needs to know where there are several pools.

    Args:
        urls: the endpoints.
        ranks: data-parallel engines behind each.
        api_key: of all of them.
    """

    urls: tuple[str, ...]
    ranks: int = 1
    api_key: str | None = None

    def __post_init__(self) -> None:
        if len(set(self.urls)) < len(self.urls):
            raise ConfigError("an address is given twice; each is one endpoint")

    @property
    def addresses(self) -> list[Address]:
        """Where calls can be sent."""
        ranks: Sequence[int | None] = range(self.ranks) if self.ranks > 1 else [None]
        return [Address(url, rank) for url in self.urls for rank in ranks]


class Replicas:
    """Endpoints that serve the same model.

    Args:
        endpoints: by their addresses, as `Engines` has them.
    """

    def __init__(self, endpoints: dict[str, Endpoint]) -> None:
        self._endpoints = endpoints
        self._first = next(iter(endpoints.values()))
        self._turn = itertools.cycle(endpoints.values())

    async def open(self) -> None:
        """Open all of them.

        Raises:
            EndpointError: one cannot be used, or they differ.
        """
        for endpoint in self._endpoints.values():
            await endpoint.open()
            for what in ("model", "dialect"):
                one, other = getattr(self._first, what), getattr(endpoint, what)
                if one != other:
                    raise EndpointError(
                        f"{endpoint.base} has {what} {other!r}, {self._first.base} has {one!r}: "
                        "replicas must be alike"
                    )

    async def close(self) -> None:
        """Drop the connections."""
        for endpoint in self._endpoints.values():
            await endpoint.close()

    @property
    def model(self) -> str:
        """The model that all serve."""
        return self._first.model

    @property
    def dialect(self) -> str:
        """How prompts are sent, in words."""
        return self._first.dialect

    @property
    def tells_ids(self) -> bool:
        """See `Endpoint`."""
        return self._first.tells_ids

    @property
    def max_context_tokens(self) -> int | None:
        """Longest prompt + output that all take; None: unknown."""
        known = [endpoint.max_context_tokens for endpoint in self._endpoints.values()]
        return min((tokens for tokens in known if tokens is not None), default=None)

    def vocabulary(self, salt: str) -> Vocabulary:
        """See `Endpoint`."""
        return self._first.vocabulary(salt)

    async def complete(
        self, prompt: Sequence[Unit], output_tokens: int, at: Address | Via | None = None
    ) -> Completion:
        """One call; without an address the endpoints take turns, and each picks its engine."""
        if isinstance(at, Via):
            return await self._first.complete(prompt, output_tokens, at)
        if at is None:
            return await next(self._turn).complete(prompt, output_tokens)
        return await self._endpoints[at.url].complete(prompt, output_tokens, at)

    async def reset_cache(self) -> bool:
        """Empty all prefix caches; False if one could not be."""
        done = [await endpoint.reset_cache() for endpoint in self._endpoints.values()]
        return all(done)


class SumProbe:
    """Reads several endpoints as one: sums, and the largest usage."""

    def __init__(self, probes: Sequence[HttpProbe]) -> None:
        self._probes = probes

    def read(self) -> Reading:
        """The sum.

        Raises:
            ProbeError: one cannot be read.
        """
        readings = [probe.read() for probe in self._probes]
        return readings[0] if len(readings) == 1 else sum_of(readings, readings[-1].at_s)

    def close(self) -> None:
        """Drop the connections."""
        for probe in self._probes:
            probe.close()
