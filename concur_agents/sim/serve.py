"""Serves simulated engines from the main thread, until Ctrl-C or until the parent is gone.

    python -m concur_agents.sim.serve      # the process of an `EmbeddedServer(process=True)`

That process reads its options from the first line of its standard input, because arguments and
environments are for all to see, and ends when that closes: also if its parent was killed.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace

from concur_agents.errors import ConfigError
from concur_agents.sim.listener import guarded, listen, url_of, uvicorn_server
from concur_agents.sim.server import READY, EmbeddedServer
from concur_agents.sim.server_options import ServerOptions

__all__ = ["main", "serve"]


def serve(
    options: ServerOptions,
    *,
    replicas: int = 1,
    ready: Callable[[list[str]], None] = lambda _: None,
) -> None:
    """Serve in this thread until interrupted.

    Args:
        options: what, and where.
        replicas: servers of the same kind; they listen on the port of the options and those that
            follow, or on any free ones.
        ready: gets their addresses once they listen.

    Raises:
        ConfigError: `replicas` is out of its range, or a port is taken.
        ImportError: the ``server`` extra is not installed.
    """
    if replicas < 1:
        raise ConfigError(f"replicas must be at least 1, got {replicas}")
    first = options.make_app()
    listener = listen(options.host, options.port)
    with ExitStack() as others, listener:
        urls = [url_of(listener)]
        for number in range(1, replicas):
            port = options.port and options.port + number
            server = EmbeddedServer(**vars(replace(options, port=port)))
            urls.append(others.enter_context(server).url)
        main_server = uvicorn_server(
            guarded(first.app, options.token), ready=lambda: ready(urls), closing=first.close
        )
        with suppress(KeyboardInterrupt):
            main_server.run([listener])


def main() -> None:
    """``python -m concur_agents.sim.serve``."""
    options = ServerOptions.from_json(sys.stdin.readline())
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        serve(options, ready=lambda urls: _say(f"{READY} {urls[0]}"))
    except ConfigError as error:
        _say(str(error))  # the parent shows it


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _end_with_stdin() -> None:
    while sys.stdin.read(4096):
        pass
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    main()
