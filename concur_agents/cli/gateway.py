"""`concur gateway`: an address that governs the agents who call it, in any language."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

import typer

from concur_agents._text import printable
from concur_agents.cli.options import with_governor_options
from concur_agents.cli.terminal import say
from concur_agents.gateway.app import PORT, Gateway
from concur_agents.governor import Governor
from concur_agents.runtime.config import Setting, governor_options

TOKEN_VARIABLE = "CONCUR_GATEWAY_TOKEN"


class Log(StrEnum):
    """The lines that go to stderr."""

    warnings = "warnings"
    text = "text"
    json = "json"


@with_governor_options
def gateway_command(
    found: dict[str, Setting],
    host: str = typer.Option("127.0.0.1", help="Where to listen; elsewhere only with a token."),
    port: int = typer.Option(PORT, min=0, max=65535, help="Port; 0: any free one."),
    client_token: str = typer.Option(
        "",
        envvar=TOKEN_VARIABLE,
        show_envvar=True,
        help="Clients send it as their API key, or as sk-agent-ID:TOKEN.",
    ),
    guess: bool = typer.Option(
        True, help="Guess the agent of a call that names none, by its first messages."
    ),
    log: Log = typer.Option(
        Log.warnings, help="On stderr: warnings, or also a line for each request."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object, once it listens."),
) -> None:
    """Govern agents that call an address, until Ctrl-C: OpenAI's and Anthropic's APIs.

    It passes requests on to --engine URL, given several times if there are several engines, and
    holds each call until its agent may run. An agent is named by the path /agent/ID/v1, by the key
    sk-agent-ID, by a header of its session, or guessed. --api-key is the engines' key; keys of
    agents are not passed on. DELETE /agent/ID ends an agent; /healthz and /metrics are pages.
    """
    options = governor_options(found)
    with Governor(**options) as governor, _logging(log):
        gateway = Gateway(
            governor,
            options["url"] or (),
            key=options["api_key"],
            host=host,
            port=port,
            token=client_token or None,
            may_guess=guess,
        )
        asyncio.run(_serve(gateway, governor, as_json=as_json))


async def _serve(gateway: Gateway, governor: Governor, *, as_json: bool) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    async with gateway:
        if as_json:
            law = governor.snapshot().law
            print(json.dumps({"url": gateway.url, "law": law}), flush=True)
        else:
            say(f"agents call {gateway.url}/agent/ID/v1, or {gateway.url}/v1. Ctrl-C ends it.")
        await ended.wait()


@contextmanager
def _logging(log: Log) -> Iterator[None]:
    """What the governor and the gateway log goes to stderr."""
    logger = logging.getLogger("concur_agents")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if log is Log.json else _Text())
    former, requests = logger.level, logging.getLogger("concur_agents.gateway")
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    requests.setLevel(logging.WARNING if log is Log.warnings else logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(former)
        requests.setLevel(logging.NOTSET)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        return printable(f"concur: {record.getMessage()}", 2000)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """One JSON object."""
        line = {
            "at": round(record.created, 3),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        return json.dumps(line | getattr(record, "concur", {}))
