"""`concur serve-sim`: the simulated engine as a server to try things against."""

from __future__ import annotations

import json
import math
from enum import StrEnum

import typer

from concur_agents.cli.terminal import say
from concur_agents.sim.profile import load_profile
from concur_agents.sim.serve import serve
from concur_agents.sim.server_options import ServerOptions

TOKEN_VARIABLE = "CONCUR_ENGINE_TOKEN"


class Metrics(StrEnum):
    """In whose words the metrics page speaks."""

    vllm = "vllm"
    sglang = "sglang"


class RankHeader(StrEnum):
    """What a header that asks for an engine does."""

    honour = "honour"
    refuse = "refuse"
    ignore = "ignore"


def serve_sim_command(
    profile: str = typer.Option("h100-qwen3-8b", help="Engine: a name, or a path of a .toml."),
    kv_blocks: int = typer.Option(0, min=0, help="Size of the KV pool; 0: the profile's."),
    host: str = typer.Option("127.0.0.1", help="Where to listen; elsewhere only with a token."),
    port: int = typer.Option(8000, min=0, max=65535, help="Port; 0: any free one."),
    replicas: int = typer.Option(
        1, min=1, help="Servers of this kind, on the port and those that follow."
    ),
    token: str = typer.Option(
        "",
        envvar=TOKEN_VARIABLE,
        show_envvar=True,
        help="Clients send it as their API key.",
    ),
    time_scale: float = typer.Option(1.0, help="Simulated seconds per second; 'inf': no time."),
    metrics: Metrics = typer.Option(Metrics.vllm, help="Whose metric names to use."),
    model: str = typer.Option("", help="Name of the model; default: the profile's."),
    seed: int = typer.Option(0, help="Seed of the replies."),
    engines: int = typer.Option(1, min=1, help="Data-parallel engines behind the port."),
    rank_header: RankHeader = typer.Option(
        RankHeader.honour, help="What X-data-parallel-rank does; refuse: all but rank 0."
    ),
    worker_header: bool = typer.Option(
        False, "--worker-header", help="Answers name their engine: x-smg-routed-worker-id."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object, once it listens."),
) -> None:
    """Serve the simulated engine on loopback: OpenAI API and /metrics, until Ctrl-C.

    On another address than 127.0.0.1 it asks for a token, which clients send as their API key.
    With --json it prints one line with the keys url (the first), urls, profile, model,
    capacity_tokens (of each engine), engines (at each address) and time_scale (null: answers take
    no time).
    """
    engine = load_profile(profile)
    if kv_blocks:
        engine = engine.replace(kv_blocks=kv_blocks)
    options = ServerOptions(
        profile=engine,
        model=model or None,
        time_scale=time_scale,
        metrics=metrics.value,
        host=host,
        port=port,
        token=token or None,
        seed=seed,
        engines=engines,
        rank_header=rank_header.value,
        worker_header=worker_header,
    )
    announce = _print_json if as_json else _print_words
    serve(options, replicas=replicas, ready=lambda urls: announce(options, urls))


def _print_json(options: ServerOptions, urls: list[str]) -> None:
    facts = {
        "url": urls[0],
        "urls": urls,
        "profile": options.profile.name,
        "model": options.name,
        "capacity_tokens": options.profile.capacity_tokens,
        "engines": options.engines,
        "time_scale": options.time_scale if math.isfinite(options.time_scale) else None,
    }
    print(json.dumps(facts), flush=True)


def _print_words(options: ServerOptions, urls: list[str]) -> None:
    pool = f"{options.profile.capacity_tokens:,} tokens of KV cache"
    if options.engines > 1:
        pool = f"{options.engines} engines with {pool} each"
    if len(urls) > 1:
        pool = f"each {pool}"
    where = ", ".join(f"{url}/v1" for url in urls)
    say(f"{options.name} at {where} ({options.profile.name}, {pool}). Ctrl-C ends it.")
