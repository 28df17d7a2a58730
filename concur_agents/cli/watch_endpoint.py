"""`concur watch URL...`: reads endpoints once per interval, and shows them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict

import typer

from concur_agents.cli.endpoint import EndpointFrame, EndpointWatcher
from concur_agents.cli.endpoint_board import EndpointBoard
from concur_agents.cli.options import import_law_from_here
from concur_agents.cli.show import show
from concur_agents.probes import HttpProbe


def watch_endpoints(
    urls: Sequence[str], law: str, *, interval_s: float, count: int, as_json: bool
) -> None:
    """Shows endpoints until Ctrl-C or `count` readings of each.

    Raises:
        ConfigError: there is no such law, or one is not an http(s) address.
        typer.Exit: code 1, if no reading succeeded.
    """
    import_law_from_here(law)
    with ExitStack() as stack:
        probes = [stack.enter_context(HttpProbe(url)) for url in urls]
        watchers = [EndpointWatcher(probe, law) for probe in probes]
        read: Callable[..., Iterator[EndpointFrame]] = map
        if len(watchers) > 1:  # all at once, because one that is down may take seconds to say so
            read = stack.enter_context(ThreadPoolExecutor(len(watchers))).map
        looks = each_interval(
            lambda: list(read(EndpointWatcher.look, watchers)),
            interval_s=interval_s,
            count=count,
        )
        succeeded = _print_json(looks) if as_json else _show_live(looks)
    if not succeeded:
        raise typer.Exit(1)


def each_interval(
    look: Callable[[], list[EndpointFrame]], *, interval_s: float, count: int
) -> Iterator[list[EndpointFrame]]:
    """One look per `interval_s`; a late one comes at once, and no interval has two."""
    done, due = 0, time.monotonic()
    while True:
        yield look()
        done += 1
        if done == count:
            return
        now = time.monotonic()
        due = max(due + interval_s, now)
        time.sleep(due - now)


def _print_json(looks: Iterator[list[EndpointFrame]]) -> bool:
    succeeded = False
    for frames in looks:
        for frame in frames:
            print(json.dumps(asdict(frame)), flush=True)
            succeeded |= frame.ok
    return succeeded


def _show_live(looks: Iterator[list[EndpointFrame]]) -> bool:
    board = EndpointBoard()
    show(looks, board.draw)
    return board.succeeded
