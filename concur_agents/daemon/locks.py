"""One daemon for each engine: a second one would give away the same places once more."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from typing import IO

from concur_agents._sockets import make_private, own_folder
from concur_agents.errors import ConfigError
from concur_agents.runtime.daemon_address import digest_of


def locked_urls(
    url: str | Iterable[str] | None, pools: Iterable[str] | Mapping[str, str] | None
) -> list[str]:
    """The engines of a daemon with these options of a governor, and the router before them."""
    urls = [url] if isinstance(url, str) else list(url or ())
    return [*urls, *(pools.values() if isinstance(pools, Mapping) else pools or ())]


def take_locks(urls: Iterable[str], where: str) -> list[IO[str]]:
    """Takes the lock of each engine, for as long as the files are open.

    They are the user's: a daemon of another user, or on another machine, is not noticed.

    Args:
        urls: the engines.
        where: this daemon's address, for the message of a second one.

    Raises:
        ConfigError: a daemon has one of them.
    """
    try:
        import fcntl
    except ImportError:  # a system without these locks
        return []
    folder = own_folder()
    make_private(folder)
    taken: list[IO[str]] = []
    for url in sorted(set(urls)):
        file = (folder / f"engine-{digest_of([url])}.lock").open("a+")
        taken.append(file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            owner = file.read(500).strip() or "another process"
            for each in taken:
                each.close()
            raise ConfigError(
                f"a daemon decides about {url} already ({owner}): connect to that one, or end it"
            ) from None
        with contextlib.suppress(OSError):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {where}")
            file.flush()
    return taken
