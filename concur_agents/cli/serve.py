"""`concur serve`: the daemon that decides for many processes."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable

import typer

from concur_agents.cli.options import with_governor_options
from concur_agents.cli.terminal import say
from concur_agents.daemon import Daemon, listen, log_to_stderr
from concur_agents.daemon.locks import locked_urls, take_locks
from concur_agents.errors import ConfigError
from concur_agents.governor import Governor
from concur_agents.runtime.config import Setting, governor_options
from concur_agents.runtime.daemon_address import AUTO, daemon_address
from concur_agents.wire.hub import SETTLE_S


@with_governor_options
def serve_command(
    found: dict[str, Setting],
    where: list[str] = typer.Option(
        [AUTO],
        "--listen",
        metavar="ADDRESS",
        help="unix:PATH, tcp://HOST:PORT (with --token or CONCUR_TOKEN), or 'auto': where "
        'Governor(url, shared="auto") of this user looks for it. May be given several times.',
    ),
    metrics: str = typer.Option(
        "",
        "--metrics",
        metavar="[HOST:]PORT",
        help="Serve the numbers of all processes for Prometheus. A daemon with a token asks the "
        "scraper for it, and on another host than 127.0.0.1 it has to have one.",
    ),
) -> None:
    """Decide for many processes, each of which has a Governor(shared=ADDRESS).

    --engine URL, given several times, names several engines. It runs until SIGTERM or Ctrl-C; the
    agents of its clients go on then. `concur watch` shows it. A second daemon for one of its
    engines is refused.
    """
    options = governor_options(found)
    token = options.pop("token")
    if options.pop("shared") is not None:
        raise ConfigError("a daemon decides itself: leave shared (CONCUR_SHARED) out")
    urls = options["url"] or ()
    urls = [urls] if isinstance(urls, str) else list(urls)
    options["socket"] = options["socket"] or AUTO
    addresses = [daemon_address(each, urls) for each in where]
    log_to_stderr()
    with contextlib.ExitStack() as stack:
        for lock in take_locks(
            locked_urls(options["url"], options["pools"]), ", ".join(map(str, addresses))
        ):
            stack.enter_context(lock)
        governor = stack.enter_context(Governor(**options))
        listeners = [(listen(address, token)[0], address) for address in addresses]
        daemon = Daemon(governor, settle_s=SETTLE_S, token=token)
        for address in addresses:
            say(f'concur: serving Governor(shared="{address}")', sys.stderr)
        if metrics:
            stack.callback(_serve_metrics(governor, metrics, token))
        asyncio.run(daemon.serve(listeners))


def _serve_metrics(governor: Governor, where: str, token: str | None) -> Callable[[], object]:
    """Serves a governor's numbers; returns the function that ends that.

    Raises:
        ConfigError: `where` is no address, or cannot be listened to.
    """
    from prometheus_client import CollectorRegistry

    from concur_agents.observe.metrics import export, serve

    host, _, port = where.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"--metrics is [HOST:]PORT, such as 9464, got {where!r}")
    registry = CollectorRegistry()
    export(governor, registry)
    served = serve(registry, host=host or "127.0.0.1", port=int(port), token=token)
    say(f"concur: metrics at {served.url}/metrics", sys.stderr)
    return served
