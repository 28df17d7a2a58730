"""`concur replay`: the same agents against a live endpoint, under one gate after another."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import typer

from concur_agents._version import __version__
from concur_agents.cli.options import import_from_here
from concur_agents.errors import ConfigError, ProbeError
from concur_agents.lab.replay import (
    SHAPES,
    ArmRun,
    Endpoint,
    Engines,
    Options,
    Replicas,
    SumProbe,
    WorkloadOptions,
    make_plans,
    parse_arms,
    replay,
    round_record,
    summarize,
    table,
    work_agrees,
)
from concur_agents.lab.replay.plots import draw
from concur_agents.probes import HttpProbe
from concur_agents.sim.workload import AgentPlan

_DAY_S = 86_400.0


def replay_command(
    url: str = typer.Argument("", help="Base address of the endpoint, with or without /v1."),
    urls: list[str] = typer.Option(
        [], "--url", help="Base address of each of several replicas; more than once."
    ),
    ranks: int = typer.Option(
        1, min=1, help="Data-parallel engines behind each address, pinned by header."
    ),
    workload: str = typer.Option(
        "main",
        help=f"A shape ({', '.join(SHAPES)}), a bundled recording, a trace file; several with +.",
    ),
    arms: str = typer.Option(
        "none,fixed:32,working_set",
        help="none, sticky, fixed:N (in each pool), requests:N, cache_aimd[:INTERVAL/START], "
        "proxy:URL[+release], working_set, or any law as LAW:name=number+name=number, LAW a name "
        "or module:Class; comma-separated, run in turn.",
    ),
    agents: int | None = typer.Option(
        None, min=1, help="How many agents (default: the workload's)."
    ),
    overload: float | None = typer.Option(
        None, help="Instead of --agents: all largest contexts together, in KV pools."
    ),
    max_steps: int | None = typer.Option(None, min=1, help="End every agent after so many steps."),
    max_context: int | None = typer.Option(
        None, min=1, help="Cut recorded agents where they exceed this context [tokens]."
    ),
    scale: float = typer.Option(1.0, help="Factor on recorded token counts."),
    tools: str | None = typer.Option(
        None, help="Tool times: recorded, constant:S, uniform:A,B, lognormal:MEDIAN,SIGMA,CAP, ..."
    ),
    arrival: str | None = typer.Option(None, help="burst (default), staggered:S or poisson:PER_S."),
    time_scale: float = typer.Option(1.0, min=0.0, help="Factor on tool times and arrivals."),
    repeat: int = typer.Option(1, min=1, help="Rounds over all arms."),
    lengths: str = typer.Option(
        "estimated",
        help="What gates know of a prompt beforehand: its length estimated from its size, as the "
        "drop-in clients do; told; or unknown.",
    ),
    seed: int = typer.Option(0, help="Of the draw of agents, imputed tool times and content."),
    limit: float = typer.Option(600.0, help="Longest one arm may take [s]; then it is cut."),
    deadline: float = typer.Option(_DAY_S, help="Stop everything after this time [s]."),
    model: str | None = typer.Option(None, help="Model name (default: the first one served)."),
    metrics_url: str | None = typer.Option(
        None, help="Address of the metrics, if not the endpoint's own."
    ),
    api_key: str | None = typer.Option(None, envvar="OPENAI_API_KEY", help="Key of the endpoint."),
    out: Path = typer.Option(
        Path("replay.json"), dir_okay=False, help="JSON with every round, step and sample."
    ),
    plot: bool = typer.Option(True, help="Draw a picture beside the JSON (needs matplotlib)."),
    note: str = typer.Option("", help="Text to keep with the results."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object, nothing else."),
) -> None:
    """Replay agents against a live endpoint under several gates, and compare.

    Every arm does the same work: exact prompt and output lengths, real waits for tools. The prefix
    cache is emptied before each arm if the engine allows it. Writes JSON, a picture and a table.

    With several replicas (--url URL --url URL, or --ranks N) calls of the arm none take turns;
    sticky gives each agent the replica with the fewest; a law governs each pool.

    proxy:URL sends calls through a proxy that schedules agents, as ThunderAgent does: each body has
    a program_id, and with +release the proxy hears when an agent ends. All arms use the chat route
    then.

    With --json the table is one object with the keys files, made_by, command, note, began_unix_s,
    endpoint, workload, options, work_agrees and summary (a list with one object per arm); all
    messages go to stderr.

    Exit code 1: no arm finished, one broke, or finished arms did not generate the same number of
    tokens within 1 %.
    """
    import_from_here()
    addresses = [each.rstrip("/").removesuffix("/v1") for each in (url, *urls) if each]
    if not addresses:
        raise ConfigError("give the address of the endpoint, or of each replica with --url")
    if metrics_url is not None and len(addresses) > 1:
        raise ConfigError("--metrics-url is for one endpoint, and there are several")
    code = asyncio.run(
        _replay(
            engines=Engines(tuple(addresses), ranks, api_key),
            metrics_urls=[metrics_url] if metrics_url else addresses,
            model=model,
            arms=arms,
            choice=WorkloadOptions(
                source=workload,
                agents=agents,
                overload=overload,
                max_steps=max_steps,
                max_context=max_context,
                scale=scale,
                tools=tools,
                arrival=arrival,
                seed=seed,
            ),
            options=Options(
                limit_s=limit,
                deadline_s=deadline,
                time_scale=time_scale,
                repeat=repeat,
                lengths=lengths,  # type: ignore[arg-type]  # checked by Options
                seed=seed,
            ),
            out=out,
            plot=plot,
            note=note,
            as_json=as_json,
        )
    )
    raise typer.Exit(code)


async def _replay(
    *,
    engines: Engines,
    metrics_urls: list[str],
    model: str | None,
    arms: str,
    choice: WorkloadOptions,
    options: Options,
    out: Path,
    plot: bool,
    note: str,
    as_json: bool,
) -> int:
    say = partial(print, file=sys.stderr if as_json else sys.stdout, flush=True)
    chosen = parse_arms(arms)
    key = engines.api_key
    chat_only = any(arm.is_proxy for arm in chosen)
    endpoint = Replicas(
        {url: Endpoint(url, model=model, api_key=key, chat_only=chat_only) for url in engines.urls}
    )
    reader = SumProbe([HttpProbe(url, api_key=key) for url in metrics_urls])
    probe: SumProbe | None = reader
    several = engines if len(engines.addresses) > 1 else None
    capacity_tokens = None
    try:
        capacity_tokens = (await asyncio.to_thread(reader.read)).capacity_tokens
    except ProbeError as error:
        say(f"no metrics: {error}")
        probe = None
    try:
        await endpoint.open()
        plans = make_plans(choice, capacity_tokens)
        record: dict[str, Any] = {
            "made_by": f"concur-agents {__version__}",
            "command": ["concur", *sys.argv[1:]],
            "note": note,
            "began_unix_s": round(time.time()),
            "endpoint": _facts(plans, capacity_tokens, endpoint, len(engines.addresses)),
            "workload": asdict(choice),
            "options": asdict(options),
        }
        say(", ".join(f"{name} {value}" for name, value in record["endpoint"].items()))

        def keep(runs: Sequence[ArmRun]) -> None:
            _write(record | _results(runs), out)

        runs = await replay(endpoint, plans, chosen, probe, options, say, keep, several)
    finally:
        await endpoint.close()
        reader.close()
    record |= _results(runs)
    _write(record, out)
    files = [str(out)]
    if plot:
        with contextlib.suppress(ImportError):
            draw(record, out.with_suffix(".png"))
            files.append(str(out.with_suffix(".png")))
    if as_json:
        del record["rounds"]
        print(json.dumps(record | {"files": files}, indent=1))
    else:
        say("\n".join(f"wrote {file}" for file in files))
        say(table(summarize(runs)))
    return _verdict(runs, say)


def _results(runs: Sequence[ArmRun]) -> dict[str, Any]:
    return {
        "work_agrees": work_agrees(runs),
        "summary": [asdict(row) for row in summarize(runs)],
        "rounds": [round_record(run) for run in runs],
    }


def _write(record: dict[str, Any], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, separators=(",", ":")))


def _verdict(runs: Sequence[ArmRun], say: Callable[[str], object]) -> int:
    """Say what a reader of the table must know; the exit code."""
    for outcome, why in (("skipped", "not run, out of time"), ("broken", "broken, see above")):
        names = [run.arm for run in runs if run.outcome == outcome]
        if names:
            say(f"{why}: {', '.join(names)}")
    begun = [run for run in runs if run.outcome != "skipped"]
    if not all(run.cache_reset for run in begun):
        say("the prefix cache could not be emptied; each arm had content of its own instead")
    if any(run.wrong_lengths for run in begun):
        say("some prompts were not counted as planned; see wrong_lengths in the JSON")
    for run in begun:
        if run.errors:
            say(f"{run.arm}: {', '.join(f'{n} × {kind}' for kind, n in run.errors.items())}")
    agrees = work_agrees(runs)
    if not agrees:
        say("finished arms did not generate the same number of tokens: do not compare them")
    sound = agrees and not any(run.outcome == "broken" for run in runs)
    return 0 if sound and any(run.finished for run in runs) else 1


def _facts(
    plans: list[AgentPlan], capacity_tokens: float | None, endpoint: Replicas, replicas: int
) -> dict[str, Any]:
    contexts = sum(plan.peak_tokens for plan in plans)
    return {
        "model": endpoint.model,
        "dialect": endpoint.dialect,
        "replicas": replicas,
        "capacity_tokens": capacity_tokens,
        "agents": len(plans),
        "steps": sum(len(plan.steps) for plan in plans),
        "prompt_tokens": sum(step.prompt_tokens for plan in plans for step in plan.steps),
        "output_tokens": sum(step.output.tokens for plan in plans for step in plan.steps),
        "largest_contexts_tokens": contexts,
        "overload": round(contexts / capacity_tokens, 2) if capacity_tokens else None,
        "tool_s_mean": round(
            sum(step.tool_s for plan in plans for step in plan.steps[:-1])
            / max(1, sum(len(plan.steps) - 1 for plan in plans)),
            3,
        ),
        "tool_s_longest_agent": round(
            max(sum(step.tool_s for step in plan.steps) for plan in plans), 1
        ),
    }
