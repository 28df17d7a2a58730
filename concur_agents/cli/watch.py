"""`concur watch`: endpoints with what a law would do about each, or a governor at work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path

import typer

from concur_agents.cli.show import Show, show_frames
from concur_agents.cli.watch_endpoint import watch_endpoints
from concur_agents.cli.watch_recording import watch_recording
from concur_agents.cli.watch_socket import watch_socket
from concur_agents.errors import ConfigError
from concur_agents.observe.frame import Frame, Point


def watch_command(
    what: list[str] = typer.Argument(
        None,
        metavar="[URL...|RECORDING|SOCKET]",
        help="An endpoint or several, the recording of a governor (record=), or the socket of a "
        'living one (socket=). Default: your governor that has socket="auto".',
    ),
    law: str = typer.Option(
        "working_set", help="Endpoint: the law to run dry; `concur laws` lists them."
    ),
    interval: float = typer.Option(1.0, min=0.05, help="Time between two frames [s]."),
    count: int = typer.Option(0, min=0, help="Stop after this many frames; 0: until Ctrl-C."),
    speed: float = typer.Option(
        0.0, min=0.0, help="Recording: play it from its beginning, this many times as fast."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object per frame."),
    web: bool = typer.Option(
        False, "--web", help="Governor: show it as a page in a browser, until it ends."
    ),
    host: str = typer.Option("127.0.0.1", help="Page: where to listen; elsewhere with a token."),
    port: int = typer.Option(8765, min=0, max=65535, help="Page: its port; 0: any free one."),
    token: str = typer.Option(
        "",
        envvar="CONCUR_WATCH_TOKEN",
        show_envvar=True,
        help="Page: the password that a browser asks for.",
    ),
) -> None:
    """Show endpoints with what a law would do about each (dry run), or a governor at work.

    A governor opens no socket by itself: start it with socket="auto", and `concur watch` finds it.
    Or start it with record="run.jsonl" and watch that file, live or later.

    Endpoint: a failed reading is shown, and the next one is tried. With --json there is a line for
    each endpoint and reading, with the keys url, at_s, ok, error, engine, kv_usage,
    capacity_tokens, hit_rate, running, waiting, preemptions_total, law, limit_agents, limit_tokens
    and reason; null: unknown, or no bound. Exit code 1: no reading succeeded.

    Governor: --json lines have the keys at_s, law, reasoning, acting, paused, queued, suspended,
    done_total, pressure_tokens, capacity_tokens, reasoning_tokens, faded_tokens, limit_tokens,
    limit_agents, reason, hit_rate, hit_deficit, pauses_total, overdue_total, longest_wait_s,
    stalls_total, reported_tokens, blind, closed, url, waiting (agent, state, waited_s, why, pool),
    active (agent, state, for_s, tokens, steps, pool) and pools (pool, active, waiting,
    pressure_tokens, capacity_tokens, limit_tokens, limit_agents, hit_rate, reason, unread: why its
    last reading failed). With one pool, pool is null and pools is empty. With --web there is one
    line, with the key url.
    """
    first = what[0] if what else ""
    others = [each for each in what or () if is_socket(each) or is_path(each)]
    if len(what or ()) > 1 and others:
        raise ConfigError(
            f"of several arguments each is an endpoint, and {others[0]} is none: watch "
            "recordings and sockets one by one"
        )
    if web and first and not others:
        raise ConfigError(
            "--web shows a governor: name its socket or its recording, or start it with "
            'socket="auto" and name nothing'
        )
    on_page = _on_page(host, port, token or None, as_json=as_json) if web else None

    def show(frames: Iterator[Frame], trail: Callable[[], Sequence[Point]], title: str) -> None:
        frames = islice(frames, count or None)
        if on_page is not None:
            on_page(frames, trail, title)
        else:
            show_frames(frames, trail, title, as_json=as_json)

    with suppress(KeyboardInterrupt):
        if not first or is_socket(first):
            watch_socket(first, show, interval_s=interval)
        elif is_path(first):
            watch_recording(Path(first), show, interval_s=interval, speed=speed)
        else:
            urls = list(dict.fromkeys(what))
            watch_endpoints(urls, law, interval_s=interval, count=count, as_json=as_json)


def is_socket(text: str) -> bool:
    """Whether this names a socket."""
    return text.endswith(".sock") or Path(text).is_socket()


def _on_page(host: str, port: int, token: str | None, *, as_json: bool) -> Show:
    """What shows frames in a browser.

    Raises:
        ConfigError: other machines could connect without a token.
        ImportError: the ``server`` extra is not installed.
    """
    from concur_agents.cli.watch_web import WebAddress, serve_frames

    return partial(serve_frames, address=WebAddress(host, port, token), as_json=as_json)


def is_path(text: str) -> bool:
    """Whether this names a file and not an endpoint."""
    return "://" not in text and (
        Path(text).exists() or text.endswith(".jsonl") or text.startswith(("/", "./"))
    )
