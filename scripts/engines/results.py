"""One table, one picture and one file from several replays of the same workload.

    python3 scripts/engines/results.py main docs/benchmarks/h200 results/lane-*/main-*.json

writes ``docs/benchmarks/h200/main.json.gz`` and ``main.png`` and prints the table. Every file must
hold the same agents on a pool of the same size; their rounds count as rounds of one experiment, so
that lanes and sittings become replicates. ``--note`` keeps words (model, GPU, engine) with them.
``--no-steps`` leaves out single steps, for recordings that may not be published.
"""

import argparse
import gzip
import json
import math
import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from concur_agents.lab.replay import ArmRun, read_round, summarize, table, work_agrees
from concur_agents.lab.replay.plots import draw

UNSIZED = ("none", "requests", "fixed", "cache_aimd")  # where prompt lengths change nothing
SAME = ("agents", "steps", "prompt_tokens", "output_tokens", "capacity_tokens")


def merge(files: list[Path]) -> tuple[dict[str, Any], list[ArmRun]]:
    """One record of the rounds of all files, and the rounds as runs.

    Raises:
        SystemExit: two files are not about the same work.
    """
    records = [json.loads(file.read_text("utf-8")) for file in files]
    first = records[0]
    for file, record in zip(files, records, strict=True):
        for name in SAME:
            if record["endpoint"][name] != first["endpoint"][name]:
                sys.exit(
                    f"{file}: {name} is {record['endpoint'][name]}, "
                    f"in {files[0]} it is {first['endpoint'][name]}: not the same work"
                )
    rounds: list[dict[str, Any]] = []
    seen: dict[str, int] = {}
    for file, record in zip(files, records, strict=True):
        for made in record["rounds"]:
            if made["outcome"] == "skipped":
                continue
            arm = made["arm"]
            lengths = record["options"]["lengths"]
            if lengths != "estimated" and arm.partition(":")[0] not in UNSIZED:
                arm += f" ({lengths})"
            seen[arm] = seen.get(arm, -1) + 1
            rounds.append(
                made | {"arm": arm, "round": seen[arm], "from": f"{file.parent.name}/{file.stem}"}
            )
    # reference arms first, so that tables read alike whatever the order of the runs was
    rounds.sort(key=lambda made: (_rank(made["arm"]), made["round"]))
    runs = [read_round(made) for made in rounds]
    merged = {
        "made_by": first["made_by"],
        "commands": [" ".join(record["command"]) for record in records],
        "began_unix_s": min(record["began_unix_s"] for record in records),
        "endpoint": first["endpoint"],
        "workload": first["workload"],
        "work_agrees": work_agrees(runs),
        "summary": [asdict(row) for row in summarize(runs)],
        "rounds": rounds,
    }
    return merged, runs


def _rank(arm: str) -> tuple[int, int, str]:
    kind, _, setting = arm.partition(":")
    order = (*UNSIZED, "working_set")
    return (
        order.index(kind) if kind in order else len(order),
        int(setting) if setting.isdecimal() else 0,
        arm,
    )


def _most_done_s(run: ArmRun) -> float:
    """When nine in ten agents were done: the makespan without the tail of the batch [s]."""
    done_s = sorted(run.agent_done_s)
    return done_s[math.ceil(0.9 * len(done_s)) - 1]


def main() -> None:
    """Read, merge, write, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("folder", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--note", default="")
    parser.add_argument("--no-steps", action="store_true")
    options = parser.parse_args()
    merged, runs = merge(options.files)
    merged["note"] = options.note
    if options.no_steps:
        for made in merged["rounds"]:
            made["steps"] = {}
    options.folder.mkdir(parents=True, exist_ok=True)
    out = options.folder / f"{options.name}.json.gz"
    packed = gzip.compress(json.dumps(merged, separators=(",", ":")).encode(), mtime=0)
    out.write_bytes(packed)
    draw(merged, out.with_name(f"{options.name}.png"))
    print(f"{out}: {len(packed) / 1e3:.0f} kB")
    print(table(summarize(runs)))
    by_arm: dict[str, list[ArmRun]] = {}
    for run in runs:
        by_arm.setdefault(run.arm, []).append(run)
    for arm, replicates in by_arm.items():
        spans_s = [run.span_s for run in replicates]
        spread_s = statistics.stdev(spans_s) if len(spans_s) > 1 else 0.0
        each = ", ".join(f"{span_s:.1f}" for span_s in spans_s)
        print(f"{arm}: mean {statistics.fmean(spans_s):.1f} s, sd {spread_s:.1f} s; {each}")
        most_s = [_most_done_s(run) for run in replicates if run.finished]
        if most_s:
            print(f"  nine in ten agents done after {statistics.fmean(most_s):.1f} s on average")
    if not merged["work_agrees"]:
        sys.exit("finished arms did not generate the same number of tokens: do not compare them")


if __name__ == "__main__":
    main()
