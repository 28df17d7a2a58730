"""Requests that empty an engine's cache, as trainers send them when the weights change.

They go through the same clients as the agents' calls, so that the governor need not be told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from concur_agents.adapters.addresses import Base, base, innermost
from concur_agents.errors import ConfigError
from concur_agents.runtime.agent import Governing

_EMPTYING = frozenset(
    (
        *("reset_prefix_cache", "sleep"),  # vLLM
        *("flush_cache", "release_memory_occupation"),  # SGLang
        "clear_kv_blocks",  # Dynamo
    )
)
"""Last segments of the paths after which an engine's cache is empty."""


@contextmanager
def hold_if_emptying(
    governor: Governing, method: str, path: str
) -> Iterator[Callable[[int, Base | None], None]]:
    """The block in which a request is sent that is no LLM call; a `hold` if it empties the cache.

    SGLang flushes only while nothing runs, and an agent that passed a boundary now would find
    nothing of its own.

    Args:
        governor: of the client that sends it.
        method: of the request.
        path: of the request, without the query.

    Yields:
        To be called with the status of the answer, and with the address that sent it.
    """
    if not empties_cache(method, path):
        yield _nothing
        return

    def answered(status: int, sender: Base | None) -> None:
        if status < 400:
            for pool in _pools_at(governor, sender):
                with suppress(ConfigError):  # the pool has just been removed
                    governor.flushed(pool)

    with governor.hold():
        yield answered


def empties_cache(method: str, path: str) -> bool:
    """Whether an engine's cache is empty after a request.

    Args:
        method: of the request.
        path: of the request, without the query.
    """
    last = path.rstrip("/").rpartition("/")[2]
    return last in _EMPTYING and method.upper() in ("POST", "GET")


def _pools_at(governor: Governing, address: Base | None) -> list[str | None]:
    """The pools of an address; [None]: all of them."""
    addresses = governor.addresses
    there = None if address is None else innermost(address, addresses.values())
    if there is None or governor.router is not None:
        return [None]
    return [name for name, each in addresses.items() if base(each.url) == there]


def _nothing(_: int, __: Base | None) -> None:
    pass
