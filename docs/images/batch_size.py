"""Draws batch_size.png for docs/benchmarks/history.md: the same pool, ever larger batches.

python docs/images/batch_size.py
"""

import math
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from matplotlib.figure import Figure

from concur_agents.lab.bench.arms import LawArm
from concur_agents.lab.bench.search import best_cap
from concur_agents.sim.profile import load_profile
from concur_agents.sim.runner import AgentCap, RegulatorGate, Ungoverned, simulate
from concur_agents.sim.workload import Uniform, synthetic

ENGINE = load_profile("h200-qwen3-8b").replace(kv_blocks=21_875)
BATCHES = range(64, 201, 8)
SEEDS = (1, 2, 3)
SAME_CAP = 32
"""The best cap for 96 agents."""
MEASURED = {96: 0.94, 112: 1.03}
"""On a GPU, against the best cap of those tried there (docs/benchmarks/history.md)."""
LAW, CAP, FAINT = "#1f6feb", "#c8553d", "#d5dae1"


def makespans_s(case: tuple[int, int]) -> dict[str, float]:
    """The law, the best cap, always the same cap and `cache_aimd` on one batch [s]."""
    agents, seed = case
    plans = synthetic(agents, 8, tools=Uniform(0.5, 2.5), seed=seed)

    def run(gate: Ungoverned | RegulatorGate) -> float:
        return simulate(plans, ENGINE, gate, seed=seed, record_series=False).makespan_s

    def law(name: str) -> float:
        return run(RegulatorGate(LawArm(name=name, law=name).regulate()))

    cap, tried = best_cap(lambda cap: run(AgentCap(cap)), agents, least=16)
    return {
        "working_set": law("working_set"),
        "cache_aimd": law("cache_aimd"),
        "best cap": tried[cap],
        "same cap": tried.get(SAME_CAP) or run(AgentCap(SAME_CAP)),
    }


def main() -> None:
    """Simulate on all cores, print and draw."""
    cases = [(agents, seed) for agents in BATCHES for seed in SEEDS]
    with ProcessPoolExecutor() as pool:
        runs = dict(zip(cases, pool.map(makespans_s, cases), strict=True))
    times_as_fast = {
        other: [
            math.prod(runs[n, s][other] / runs[n, s]["working_set"] for s in SEEDS)
            ** (1 / len(SEEDS))
            for n in BATCHES
        ]
        for other in ("best cap", "same cap", "cache_aimd")
    }
    for other, ratios in times_as_fast.items():
        mean = math.prod(ratios) ** (1 / len(ratios))
        each = "  ".join(f"{n}: {ratio:.2f}" for n, ratio in zip(BATCHES, ratios, strict=True))
        print(f"working_set over {other}: {mean:.3f} on average; {each}")

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.axhline(1.0, color="#57606a", linewidth=1, linestyle=":")
    axes.plot(BATCHES, times_as_fast["best cap"], color=LAW, label="the best cap of that batch")
    axes.plot(BATCHES, times_as_fast["same cap"], color=CAP, label=f"a cap of {SAME_CAP}")
    axes.plot(MEASURED.keys(), MEASURED.values(), "o", color=LAW, label="best cap, on an H200")
    axes.set_title("working_set is so many times as fast as ...", fontsize=10)
    axes.set_xlabel("agents in the batch (pool of 350,000 tokens)")
    axes.legend(frameon=False, fontsize=9)
    axes.grid(color=FAINT, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=150)


if __name__ == "__main__":
    main()
