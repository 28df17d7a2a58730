"""`concur doctor URL`: examines an endpoint and says how to begin."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import typer
from rich.markup import escape
from rich.table import Column, Table

from concur_agents._sockets import sockets
from concur_agents.cli.advice import pool_advice, stall_advice
from concur_agents.cli.console import Console
from concur_agents.cli.stack import show_stack
from concur_agents.errors import ConfigError, WatchError
from concur_agents.observe.frame import Frame
from concur_agents.observe.socket_client import SocketClient
from concur_agents.probes.diagnosis import CacheProof, Diagnosis, Finding
from concur_agents.probes.doctor import diagnose
from concur_agents.probes.http import base_of
from concur_agents.probes.page import TIER_SIGNALS

VERDICTS = {
    "good": "[bold green]good[/]: it has everything that a governor can use",
    "usable": "[bold yellow]usable[/]: a governor can use it, with the warnings above",
    "unusable": "[bold red]not usable[/] as it is",
}
MARKS = {"info": "[blue]note[/]", "warning": "[yellow]warning[/]", "error": "[red]error[/]"}


def doctor_command(
    urls: list[str] = typer.Argument(
        None, metavar="URL...", help="The endpoint, with or without /v1; several: each is examined."
    ),
    model: str = typer.Option("", help="Model to test; default: the first one served."),
    api_key: str = typer.Option(
        "", envvar="CONCUR_API_KEY", show_envvar=True, help="Sent as a bearer token."
    ),
    timeout: float = typer.Option(30.0, min=0.1, help="Longest wait for one answer [s]."),
    metrics_headers: str = typer.Option(
        "",
        envvar="CONCUR_METRICS_HEADERS",
        show_envvar=True,
        help="Headers to send, as name=value,name=value.",
    ),
    metrics_verify: str = typer.Option(
        "true",
        envvar="CONCUR_METRICS_VERIFY",
        show_envvar=True,
        help="File of the CA that signed its certificate; false: any certificate.",
    ),
    stack: str = typer.Option("", help="What a trainer or grader needs: verl, slime, skyrl, ..."),
    send: bool = typer.Option(True, help="Send two tiny completions to test cached tokens."),
    as_json: bool = typer.Option(False, "--json", help="Print the diagnosis as one JSON object."),
) -> None:
    """Examine an endpoint: its engine, its signals, and the flags that would improve them.

    Sends two one-token completions with the same prompt, to see whether the answers report cached
    tokens. Exit code 0: good; 1: usable, with warnings; 2: not usable. Several endpoints, for one
    governor of them all, are compared in a table; the exit code is that of the worst.

    With --stack NAME it says how that stack is connected: which of its functions become agents and
    steps, which flags to set, what a weight update needs, and whether several engines or processes
    need pools or one shared governor. An endpoint is then examined if one is given.

    A governor of yours that reads this endpoint and was started with socket="auto" adds what it has
    seen: stalls, a pool that is larger than the engine reports, and pools that are down.

    With --json the keys are url, engine, backend, version, model, models, max_model_len,
    capacity_tokens, smallest_capacity_tokens, pools, block_size, prefix_caching, signals (name,
    meaning, value, sources), proof (prompt_tokens, first_cached_tokens, second_cached_tokens,
    first_s, second_s, hit_counter_rose_tokens; or null), pinning (ranks, verdict, text; or null),
    findings (level, text, flag), flags, code, verdict and exit_code; null: not reported. Of several
    endpoints: a list of such objects.
    """
    if stack:
        show_stack(stack, Console())
        if not urls:
            return
    if not urls:
        raise ConfigError("give the URL of an endpoint, or --stack NAME")
    diagnoses = []
    for url in dict.fromkeys(urls):
        diagnosis = diagnose(
            url,
            api_key=api_key or None,
            model=model or None,
            timeout_s=timeout,
            send=send,
            headers=metrics_headers or None,
            verify=metrics_verify,
        )
        seen = governor_findings(diagnosis.url)
        diagnoses.append(replace(diagnosis, findings=(*diagnosis.findings, *seen)))
    if as_json:
        found = [diagnosis.as_dict() for diagnosis in diagnoses]
        print(json.dumps(found if len(found) > 1 else found[0], indent=2))
    elif len(diagnoses) > 1:
        show_several(diagnoses, Console())
    else:
        show(diagnoses[0], Console())
    raise typer.Exit(max(diagnosis.exit_code for diagnosis in diagnoses))


def show_several(diagnoses: Sequence[Diagnosis], console: Console) -> None:
    """Prints the diagnoses of the engines of one governor: a table, then what was found where."""
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    widest = max(len(each.url) for each in diagnoses)
    # On less than 80 columns, addresses that stay whole would push the verdict off the edge.
    whole = widest <= 26 and console.width >= 80
    table.add_column("endpoint", no_wrap=whole, overflow="fold")
    table.add_column("engine", overflow="fold")
    table.add_column("model", overflow="fold")
    table.add_column("KV pool", justify="right", no_wrap=True)
    table.add_column("pools", justify="right", no_wrap=True)
    table.add_column("cached", justify="right")
    table.add_column("verdict", no_wrap=True)
    for each in diagnoses:
        verdict = VERDICTS[each.verdict].split(":")[0].split("[/]")[0] + "[/]"
        proof = each.proof
        cached = (
            "-"
            if proof is None or proof.second_cached_tokens is None
            else (f"{proof.second_cached_tokens:,} of {proof.prompt_tokens:,}")
        )
        table.add_row(
            escape(each.url),
            escape(f"{each.engine or 'not recognised'} {each.version or ''}".strip()),
            escape(each.model or ", ".join(each.models) or "-"),
            _number(each.capacity_tokens, missing="-"),
            str(each.pools or "-"),
            cached,
            verdict,
        )
    console.print(table)
    texts: dict[tuple[str, str, str | None], list[str]] = {}
    for each in diagnoses:
        for finding in each.findings:
            key = (finding.level, finding.text, finding.flag)
            texts.setdefault(key, []).append(each.url)
    if texts:
        console.print()
    for (level, text, flag), urls in texts.items():
        where = "" if len(urls) == len(diagnoses) else f" ({', '.join(urls)})"
        add = f"  add [bold]{escape(flag)}[/]" if flag else ""
        console.print(f"{MARKS[level]}: {escape(text + where)}{add}", soft_wrap=True)
    models = {each.model for each in diagnoses if each.model}
    if len(models) > 1:
        text = "warning: they serve different models, and a call for one fails at another"
        console.print(f"[yellow]{text}[/]", soft_wrap=True)
    usable = [each for each in diagnoses if each.verdict != "unusable"]
    if len(usable) > 1:
        addresses = ", ".join(json.dumps(each.url) for each in usable)
        console.print("\n    import concur_agents as ca\n", markup=False)
        pinned = {
            each.pinning.ranks if each.pinning and each.pinning.works else 1 for each in usable
        }
        ranks = f", ranks={pinned.pop()}" if len(pinned) == 1 and pinned != {1} else ""
        console.print(f"    gov = ca.Governor([{addresses}]{ranks})", markup=False, soft_wrap=True)


def governor_findings(url: str) -> list[Finding]:
    """What the governors of this user that read `url` have seen, through their sockets."""
    findings = []
    with suppress(WatchError, OSError):  # an examination of the endpoint needs no governor
        for path in sockets():
            with suppress(WatchError, OSError), SocketClient(path) as client:
                findings += frame_findings(client.look(), url)
    return findings


def frame_findings(frame: Frame, url: str) -> list[Finding]:
    """What a governor has seen, if it reads `url`."""
    read = {pool.pool.partition("#")[0] for pool in frame.pools}
    if frame.url is not None:
        read.add(frame.url)
    if url not in {base_of(each) for each in read}:
        return []
    texts = []
    if frame.stalls_total:
        texts.append(stall_advice(frame.stalls_total))
    reported, used = frame.reported_tokens, frame.capacity_tokens
    if reported is not None and used is not None and used > reported:
        texts.append(pool_advice(reported, used))
    texts += [
        f"{pool.pool} is down: {pool.unread}"
        for pool in frame.pools
        if pool.reason == "down" and pool.unread and base_of(pool.pool.partition("#")[0]) == url
    ]
    return [Finding(level="warning", text=f"A running governor: {text}") for text in texts]


def show(diagnosis: Diagnosis, console: Console) -> None:
    """Prints a diagnosis."""
    console.print(_facts(diagnosis))
    if any(signal.sources for signal in diagnosis.signals):
        console.print()
        console.print(_signals(diagnosis))
    if diagnosis.findings:
        console.print()
    for finding in diagnosis.findings:
        flag = f"  add [bold]{escape(finding.flag)}[/]" if finding.flag else ""
        console.print(f"{MARKS[finding.level]}: {escape(finding.text)}{flag}", soft_wrap=True)
    console.print(f"\nVerdict: {VERDICTS[diagnosis.verdict]}")
    if diagnosis.code:
        console.print()
        for line in diagnosis.code:
            console.print(f"    {line}", markup=False, soft_wrap=True)


def _facts(diagnosis: Diagnosis) -> Table:
    engine = " on ".join(filter(None, [diagnosis.engine, diagnosis.backend])) or "not recognised"
    pool = _number(diagnosis.capacity_tokens, " tokens")
    if diagnosis.pools > 1:
        smallest = _number(diagnosis.smallest_capacity_tokens)
        pool += f" in {diagnosis.pools} pools, {smallest} in the smallest"
    if diagnosis.block_size:
        pool += f", blocks of {diagnosis.block_size}"
    caching = {True: "on", False: "OFF", None: "not reported"}[diagnosis.prefix_caching]
    facts = {
        "endpoint": diagnosis.url,
        "engine": f"{engine} {diagnosis.version or ''}".strip(),
        "model": diagnosis.model or ", ".join(diagnosis.models) or "not reported",
        "longest context": _number(diagnosis.max_model_len, " tokens"),
        "KV pool": pool,
        "prefix caching": caching,
        "cached tokens": _proof(diagnosis.proof),
    }
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        table.add_row(name, escape(value))
    return table


def _proof(proof: CacheProof | None) -> str:
    if proof is None:
        return "not tested"
    if proof.second_cached_tokens is None:
        return "not reported in answers"
    return (
        f"{proof.second_cached_tokens:,} of {proof.prompt_tokens:,} the second time "
        f"({proof.first_s:.2f} s, then {proof.second_s:.2f} s)"
    )


def _signals(diagnosis: Diagnosis) -> Table:
    read_from = Column("read from", overflow="fold")
    table = Table("signal", "now", read_from, box=None, pad_edge=False)
    for signal in diagnosis.signals:
        if signal.name in TIER_SIGNALS and not signal.sources:
            continue  # most engines have no tier
        source = escape(", ".join(signal.sources)) if signal.sources else "[dim]not reported[/]"
        table.add_row(signal.name, _number(signal.value, missing="-"), source)
    return table


def _number(value: float | None, unit: str = "", missing: str = "not reported") -> str:
    if value is None:
        return missing
    return f"{value:,.0f}{unit}" if value == int(value) else f"{value:,.3f}{unit}"
