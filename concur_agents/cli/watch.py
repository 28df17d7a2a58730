"""`concur watch`: endpoints with what a law would do about each, or a governor at work."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import typer

from concur_agents.cli.watch_endpoint import watch_endpoints
from concur_agents.cli.watch_recording import watch_recording
from concur_agents.cli.watch_socket import watch_socket
from concur_agents.errors import ConfigError


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
    last reading failed). With one pool, pool is null and pools is empty.
    """
    with suppress(KeyboardInterrupt):
        first = what[0] if what else ""
        others = [each for each in what or () if is_socket(each) or is_path(each)]
        if len(what or ()) > 1 and others:
            raise ConfigError(
                f"of several arguments each is an endpoint, and {others[0]} is none: watch "
                "recordings and sockets one by one"
            )
        if not first or is_socket(first):
            watch_socket(first, interval_s=interval, count=count, as_json=as_json)
        elif is_path(first):
            watch_recording(
                Path(first), interval_s=interval, count=count, speed=speed, as_json=as_json
            )
        else:
            urls = list(dict.fromkeys(what))
            watch_endpoints(urls, law, interval_s=interval, count=count, as_json=as_json)


def is_socket(text: str) -> bool:
    """Whether this names a socket."""
    return text.endswith(".sock") or Path(text).is_socket()


def is_path(text: str) -> bool:
    """Whether this names a file and not an endpoint."""
    return "://" not in text and (
        Path(text).exists() or text.endswith(".jsonl") or text.startswith(("/", "./"))
    )
