"""Draws room_to_grow.png for docs/laws.md: one burst, with and without room left to grow.

python docs/images/room_to_grow.py
"""

from pathlib import Path

from matplotlib.figure import Figure

from concur_agents.core import Regulator, make_law
from concur_agents.sim.profile import load_profile
from concur_agents.sim.runner import RegulatorGate, simulate
from concur_agents.sim.workload import Uniform, synthetic

ENGINE = load_profile("h200-qwen3-32b").replace(kv_blocks=10_000)
AGENTS = synthetic(
    48, 14, first=(1500, 3000), gen=(30, 60), obs=(300, 600), tools=Uniform(0.2, 1.0), seed=1
)
RUNS = {
    "filled to nine tenths at once": ("#c8553d", {"entry_low": 0.9}),
    "with room left to grow": ("#1f6feb", {}),
}
FAINT = "#d5dae1"


def main() -> None:
    """Simulate and draw."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for label, (color, options) in RUNS.items():
        gate = RegulatorGate(Regulator(make_law("working_set", **options)))
        result = simulate(AGENTS, ENGINE, gate)
        t_s = [sample.t_s for sample in result.series]
        left.plot(t_s, [1e-3 * sample.pressure_tokens for sample in result.series], color=color)
        right.plot(t_s, [sample.active for sample in result.series], color=color, label=label)
        print(f"{label}: {result.makespan_s:.0f} s, {result.pauses} pauses")
    left.axhline(1e-3 * ENGINE.capacity_tokens, color="#57606a", linewidth=1, linestyle=":")
    left.text(0, 1e-3 * ENGINE.capacity_tokens, " pool", va="bottom", color="#57606a")
    left.set_ylim(top=1.15e-3 * ENGINE.capacity_tokens)
    left.set_title("what the agents inside hold [thousand tokens]", fontsize=10)
    right.set_title("agents inside", fontsize=10)
    right.legend(frameon=False, fontsize=9)
    for axes in (left, right):
        axes.set_xlabel("time [s]")
        axes.set_ylim(bottom=0)
        axes.grid(color=FAINT, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=150)


if __name__ == "__main__":
    main()
