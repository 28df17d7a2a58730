"""Draws break_even.png for docs/laws.md: what it costs to keep an idle context, and for how long.

python docs/images/break_even.py
"""

import math
from pathlib import Path

from matplotlib.figure import Figure

from concur_agents.core.laws import WorkingSet
from concur_agents.sim.profile import load_profile
from concur_agents.sim.traces import load_traces

CONTEXT_TOKENS = 15_000
ENGINE = load_profile("h200-qwen3-32b")
HOLD_SCALE = WorkingSet().hold_scale
PREFILL_S_PER_TOKEN = ENGINE.prefill_s_per_token + ENGINE.prefill_s_per_token2 * CONTEXT_TOKENS / 2
COLORS = ("#1f6feb", "#2e9e6b", "#c8553d")
FAINT = "#d5dae1"


def break_even_s(tokens_in_calls):
    """Idle time [s] after which a context has cost as much room as it would take to prefill."""
    return HOLD_SCALE * PREFILL_S_PER_TOKEN * tokens_in_calls


def gain(gaps_s, tau_s, break_even):
    """What a claim that fades with tau is worth, in prefills per return."""
    kept = sum(math.exp(-gap / tau_s) for gap in gaps_s) / len(gaps_s)
    return kept - tau_s / break_even * (1.0 - kept)


def recorded_gaps(source):
    """Seconds between a call's end and the next call of the same agent."""
    return [
        step.tool_s
        for agent in load_traces(source, max_context=64_000, cut=True)
        for step in agent.steps
        if step.tool_s is not None
    ]


def draw_costs(panel):
    """Keeping grows with time, dropping costs one prefill: they cross at the break-even time."""
    prefill_s = PREFILL_S_PER_TOKEN * CONTEXT_TOKENS
    panel.axhline(prefill_s, color="#22272e", linewidth=1.4, label="drop it: one prefill")
    for tokens, color in zip((50_000, 100_000, 200_000), COLORS, strict=True):
        crossing = break_even_s(tokens)
        label = f"keep it, {tokens // 1000}k tokens in calls"
        panel.plot([0, 20], [0, 20 * prefill_s / crossing], color=color, linewidth=1.8, label=label)
        panel.plot(crossing, prefill_s, "o", color=color)
    panel.set(
        xlim=(0, 20),
        ylim=(0, 7),
        xlabel="idle time [s]",
        ylabel="engine time it costs [s]",
        title=f"One idle context of {CONTEXT_TOKENS:,} tokens",
    )
    panel.legend(edgecolor="none", framealpha=0.9, loc="upper left", fontsize=9)


def draw_gains(panel):
    """The law takes the top of the curve that belongs to the gaps it has seen."""
    crossing = break_even_s(100_000)
    mixes = (
        ("mini-SWE-agent on SWE-bench", recorded_gaps("miniswe-gemini3pro")),
        ("Claude Code sessions", recorded_gaps("weka-claude-code")),
        ("OpenHands on Multi-SWE-bench", recorded_gaps("openhands-multiswe")),
    )
    taus = [crossing * 2.0 ** (k / 8) for k in range(-32, 41)]
    for (name, gaps_s), color in zip(mixes, COLORS, strict=True):
        values = [gain(gaps_s, tau, crossing) for tau in taus]
        panel.plot(taus, values, color=color, linewidth=1.8, label=name)
        best = max(range(len(taus)), key=values.__getitem__)
        if 0 < best < len(taus) - 1:
            panel.plot(taus[best], values[best], "o", color=color)
    panel.axhline(0.0, color="#22272e", linewidth=0.8)
    panel.set_xscale("log")
    panel.set(
        ylim=(-1.0, 1.05),
        xlabel="tau: how slowly the claim fades [s]",
        ylabel="gain [prefills per return]",
        title=f"Many of them, break-even {crossing:.1f} s",
    )
    panel.legend(frameon=False, loc="lower left", fontsize=9)


figure = Figure(figsize=(10, 4), layout="constrained")
left, right = figure.subplots(1, 2)
draw_costs(left)
draw_gains(right)
for each in (left, right):
    each.spines[["top", "right"]].set_visible(False)
    each.grid(color=FAINT, linewidth=0.6)
figure.savefig(Path(__file__).with_suffix(".png"), dpi=120)
