"""What a bench run says: statistics over seeds and scenarios, and the goals they are held against.

Ratios of makespans are averaged geometrically, first over the seeds of a scenario, then over
scenarios. `speedup` of A over B is B's makespan over A's: above 1, A is faster. Where a run is cut
at a horizon, it is the ratio of the agents finished; those scenarios have figures of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal

from concur_agents.lab.bench.arms import REFERENCES, ArmOutcome
from concur_agents.lab.bench.figure import Better, Figure, geomean, make_figure, short
from concur_agents.lab.bench.figure_texts import COST_GOALS, TEXTS
from concur_agents.lab.bench.fleet_arms import FLEET_REFERENCES
from concur_agents.lab.bench.scenario import Scenario
from concur_agents.lab.bench.trainer_arms import TRAINER_REFERENCES

__all__ = ["Figure", "Report", "best_cap_of", "geomean"]

Regime = Literal["fits", "between", "thrashes"]

_FITS_DEFICIT = 0.02
"""Ungoverned, next to nothing was recomputed."""
_THRASHES_DEFICIT = 0.5
"""Ungoverned, most of what could have been cached was computed again ..."""
_THRASHES_LOSS = 2.0
"""... and that cost time: so many times the makespan of the free-tier bound."""

_MEANS = (
    "useful_tokens_per_s",
    "output_tokens_per_s",
    "hit_rate",
    "hit_deficit",
    "pauses",
    "gini_pauses",
    "agents_per_min",
    "finish_mean_s",
    "finish_p90_s",
    "most_open",
    "mean_active",
    "wait_p50_s",
    "wait_p99_s",
    "preemptions",
    "oversubscription",
    "step_p50_s",
    "step_p99_s",
)
_WORST = ("wait_worst_s", "pause_worst_s")


def best_cap_of(scenario: Scenario) -> str:
    """The arm that is the best cap on agents there."""
    return "best_fixed" if scenario.replicas is None else "cap_per_replica"


def _kind(scenario: Scenario) -> Literal["one", "fleet", "training"]:
    """Scenarios of different kinds have different arms, and count for different figures."""
    if scenario.trains:
        return "training"
    return "one" if scenario.replicas is None else "fleet"


class Report:
    """All outcomes of one bench run, by scenario, arm and seed."""

    def __init__(self, scenarios: Sequence[Scenario], outcomes: Sequence[ArmOutcome]) -> None:
        self.scenarios = list(scenarios)
        self.outcomes = list(outcomes)
        self.arms = list(dict.fromkeys(outcome.arm for outcome in outcomes))
        self.seeds = list(dict.fromkeys(outcome.seed for outcome in outcomes))
        self._by_name = {scenario.name: scenario for scenario in scenarios}
        self._at: dict[tuple[str, str], dict[int, ArmOutcome]] = {}
        for outcome in outcomes:
            self._at.setdefault((outcome.scenario, outcome.arm), {})[outcome.seed] = outcome

    def of(self, scenario: Scenario, arm: str) -> list[ArmOutcome]:
        """What `arm` did in `scenario`, one per seed; empty: it did not run there.

        A variant that alters the law has its original's references.
        """
        found = self._at.get((scenario.name, arm))
        if found is None and scenario.of is not None and scenario.alters_law:
            found = self._at.get((scenario.of, arm))
        return list(found.values()) if found else []

    def speedups(self, scenario: Scenario, arm: str, over: str) -> list[float]:
        """How many times as fast `arm` was as `over`, per seed."""
        pairs = zip(self.of(scenario, arm), self.of(scenario, over), strict=False)
        return [other.time_s / one.time_s for one, other in pairs]

    def speedup(self, scenario: Scenario, arm: str, over: str) -> float | None:
        """The geometric mean of `speedups`; None: one of them did not run."""
        values = self.speedups(scenario, arm, over)
        return geomean(values) if values else None

    def tables(self) -> list[tuple[list[Scenario], list[str]]]:
        """Scenarios that share their arms, and these: those of one engine, those of fleets."""
        tables = []
        one_engine = tuple(REFERENCES)
        for kind, others in (
            ("one", (*FLEET_REFERENCES, *TRAINER_REFERENCES)),
            ("fleet", (*one_engine, *TRAINER_REFERENCES)),
            ("training", FLEET_REFERENCES),
        ):
            scenarios = [s for s in self.scenarios if _kind(s) == kind]
            if scenarios:
                tables.append((scenarios, [arm for arm in self.arms if arm not in others]))
        return tables

    def regime(self, scenario: Scenario) -> Regime | None:
        """What happens without any limit; None: ungoverned or nothing to compare it with ran."""
        without = "ungoverned" if scenario.replicas is None else "sticky"
        ungoverned = self.of(scenario, without)
        could = "free_tier" if self.of(scenario, "free_tier") else best_cap_of(scenario)
        loss = self.speedup(scenario, could, without)
        if not ungoverned or loss is None:
            return None
        deficit = _mean(outcome.metrics["hit_deficit"] for outcome in ungoverned)
        if deficit <= _FITS_DEFICIT:
            return "fits"
        if deficit >= _THRASHES_DEFICIT and loss >= _THRASHES_LOSS:
            return "thrashes"
        return "between"

    def figures(self, arm: str) -> list[Figure]:
        """The verdict on `arm`."""
        in_fleets = [s for s in self.scenarios if _kind(s) == "fleet" and not s.alters_law]
        training = [s for s in self.scenarios if _kind(s) == "training" and not s.alters_law]
        unaltered = [s for s in self.scenarios if _kind(s) == "one" and not s.alters_law]
        own = [s for s in unaltered if s.horizon_s is None]
        endless = [s for s in unaltered if s.horizon_s is not None]
        fits = [s for s in own if self.regime(s) == "fits"]
        thrashes = [s for s in own if self.regime(s) == "thrashes"]
        figures = [
            self._mean(own, arm, "best_fixed", "vs_best_fixed_geomean", 1.25),
            self._least(own, arm, "best_fixed", "vs_best_fixed_worst", 0.97),
            self._mean(own, arm, "cache_aimd", "vs_cache_aimd_geomean", 1.25),
            self._least(own, arm, "cache_aimd", "vs_cache_aimd_worst", 0.97),
            self._mean(own, arm, "best_request", "vs_best_request_geomean", None),
            *self._of_peers(own, arm),
            self._mean(thrashes, arm, "ungoverned", "vs_ungoverned_thrashing_geomean", 3.0),
            self._least(fits, arm, "ungoverned", "vs_ungoverned_fitting_worst", 0.99),
            self._least(own, arm, "ungoverned", "vs_ungoverned_worst", 0.97),
            self._mean(own, "free_tier", arm, "free_tier_distance_geomean", 1.25, "lower"),
            self._mean(own, "free_tier", "best_fixed", "free_tier_vs_best_fixed_geomean", None),
            self._mean(
                thrashes,
                "free_tier",
                "ungoverned",
                "free_tier_vs_ungoverned_thrashing_geomean",
                None,
            ),
            self._mean(endless, arm, "best_fixed", "endless_vs_best_fixed_geomean", 1.0),
            self._least(endless, arm, "best_fixed", "endless_vs_best_fixed_worst", 0.97),
            self._finish(own, arm),
            self._breadth(unaltered, arm),
            *self._of_fleets(in_fleets, arm),
            *self._of_training(training, arm),
        ]
        for measure, goal in COST_GOALS.items():
            figures += self._costs(arm, measure, goal)
        figures.append(self._longest_wait(arm))
        return figures

    def to_dict(self) -> dict[str, Any]:
        """Everything, JSON-able; the keys are described in docs/bench-laws.md and stay."""
        references = {*REFERENCES, *FLEET_REFERENCES, *TRAINER_REFERENCES}
        laws = [arm for arm in self.arms if arm not in references]
        return {
            "format": 1,
            "seeds": self.seeds,
            "arms": self.arms,
            "figures": {
                law: {figure.key: figure.to_dict() for figure in self.figures(law)} for law in laws
            },
            "scenarios": {s.name: self._scenario(s) for s in self.scenarios},
        }

    # -- figures

    def _mean(
        self,
        scenarios: Sequence[Scenario],
        arm: str,
        over: str,
        key: str,
        goal: float | None,
        better: Better = "higher",
    ) -> Figure:
        values = self._values(scenarios, lambda s: self.speedup(s, arm, over))
        return make_figure(key, values, goal, better, mean=True)

    def _least(
        self, scenarios: Sequence[Scenario], arm: str, over: str, key: str, goal: float
    ) -> Figure:
        values = self._values(scenarios, lambda s: self.speedup(s, arm, over))
        return make_figure(key, values, goal, "higher")

    def _of_peers(self, scenarios: Sequence[Scenario], arm: str) -> list[Figure]:
        """Against the gates of other projects, by makespan and by nine in ten agents done."""
        figures = []
        for peer in ("program_gate", "lease_gate"):
            figures.append(self._mean(scenarios, arm, peer, f"vs_{peer}_geomean", 1.10))
            p90 = self._values(scenarios, partial(self._finish_ratio, arm=peer, over=arm))
            figures.append(make_figure(f"vs_{peer}_p90_geomean", p90, 1.0, "higher", mean=True))
        return figures

    def _of_fleets(self, scenarios: Sequence[Scenario], arm: str) -> list[Figure]:
        """Against one governor on the sum of the pools, a sticky router and the best cap."""
        thrashes = [s for s in scenarios if self.regime(s) == "thrashes"]
        fits = [s for s in scenarios if self.regime(s) == "fits"]

        def nine_in_ten(over: str) -> dict[str, float]:
            return self._values(thrashes, lambda s: self._finish_ratio(s, over, arm, "p90"))

        return [
            self._mean(thrashes, arm, "sum", "fleet_vs_sum_geomean", 1.25),
            make_figure("fleet_vs_sum_p90_geomean", nine_in_ten("sum"), 1.8, "higher", mean=True),
            self._mean(thrashes, arm, "sticky", "fleet_vs_sticky_geomean", 2.0),
            make_figure(
                "fleet_vs_sticky_p90_geomean", nine_in_ten("sticky"), 3.0, "higher", mean=True
            ),
            self._mean(scenarios, arm, "cap_per_replica", "fleet_vs_best_cap_geomean", None),
            self._least(fits, arm, "sticky", "fleet_fitting_vs_sticky_worst", 0.995),
        ]

    def _of_training(self, scenarios: Sequence[Scenario], arm: str) -> list[Figure]:
        """Against the limiters that trainers bring along, and the best cap."""
        full = [s for s in scenarios if self.regime(s) != "fits"]
        fits = [s for s in scenarios if self.regime(s) == "fits"]

        def prefills(scenario: Scenario) -> float | None:
            found = self.of(scenario, arm)
            return max(one.metrics["first_prefills"] for one in found) if found else None

        return [
            *(
                self._mean(full, arm, stack, f"training_vs_{stack}_geomean", 1.15)
                for stack in TRAINER_REFERENCES
            ),
            self._mean(full, arm, "best_fixed", "training_vs_best_cap_geomean", 1.0),
            self._least(fits, arm, "ungoverned", "training_fitting_worst", 0.99),
            make_figure(
                "training_first_prefills_worst", self._values(scenarios, prefills), 1.1, "lower"
            ),
            self._stale(arm),
        ]

    def _stale(self, arm: str) -> Figure:
        """Rollouts that are too stale with `max_wait_s`, less those with slime's limiter."""
        bounded = [
            s for s in self.scenarios if s.trains and s.staleness and "max_wait_s" in s.regulator
        ]

        def excess(scenario: Scenario) -> float | None:
            pairs = list(zip(self.of(scenario, arm), self.of(scenario, "slime"), strict=False))
            values = [a.metrics["stale_agents"] - b.metrics["stale_agents"] for a, b in pairs]
            return float(max(values)) if values else None

        return make_figure("training_stale_worst", self._values(bounded, excess), 0.0, "lower")

    def _finish_ratio(
        self, scenario: Scenario, arm: str, over: str, which: Literal["mean", "p90"] = "p90"
    ) -> float | None:
        """An arm's time to finish over that of another; None: one of them did not run."""
        key = f"finish_{which}_s"
        pairs = zip(self.of(scenario, arm), self.of(scenario, over), strict=False)
        ratios = [one.metrics[key] / other.metrics[key] for one, other in pairs]
        return geomean(ratios) if ratios else None

    def _finish(self, scenarios: Sequence[Scenario], arm: str) -> Figure:
        """Mean time to finish over that with the best fixed cap."""
        values = self._values(scenarios, lambda s: self._finish_ratio(s, arm, "best_fixed", "mean"))
        return make_figure("finish_mean_vs_best_fixed_geomean", values, None, "lower", mean=True)

    def _breadth(self, scenarios: Sequence[Scenario], arm: str) -> Figure:
        """Most agents open at once, as a multiple of the best fixed cap."""

        def multiple(scenario: Scenario) -> float | None:
            pairs = zip(self.of(scenario, arm), self.of(scenario, "best_fixed"), strict=False)
            ratios = [law.metrics["most_open"] / cap.cap for law, cap in pairs if cap.cap]
            return max(ratios, default=None)

        values = self._values(scenarios, multiple)
        return make_figure("most_open_vs_best_cap_worst", values, None, "lower")

    def _costs(self, arm: str, measure: str, goal: float) -> list[Figure]:
        """Makespan of variants over that of their originals."""
        variants = [s for s in self.scenarios if s.measure == measure]
        values = self._values(variants, lambda s: self._cost(s, arm))
        mean, worst = f"{measure}_cost_geomean", f"{measure}_cost_worst"
        return [
            make_figure(mean, values, goal, "lower", mean=True, text=f"{TEXTS[measure]}, geomean"),
            make_figure(worst, values, goal, "lower", text=f"{TEXTS[measure]}, worst"),
        ]

    def _cost(self, variant: Scenario, arm: str) -> float | None:
        original = self._by_name.get(variant.of or "")
        if original is None:
            return None
        pairs = list(zip(self.of(variant, arm), self.of(original, arm), strict=False))
        return geomean(v.time_s / o.time_s for v, o in pairs) if pairs else None

    def _longest_wait(self, arm: str) -> Figure:
        """How far beyond the bound and one step an agent that had begun has waited [s].

        One step is the median one of the same run: the first agent at a boundary makes room.
        """

        def excess_s(scenario: Scenario) -> float | None:
            bound_s = scenario.regulator["max_wait_s"]
            waits_s = [
                outcome.metrics["pause_worst_s"] - bound_s - outcome.metrics["step_p50_s"]
                for outcome in self.of(scenario, arm)
            ]
            return max(waits_s, default=None)

        variants = [s for s in self.scenarios if s.measure == "max_wait"]
        return make_figure("max_wait_excess_s", self._values(variants, excess_s), 0.0, "lower")

    @staticmethod
    def _values(
        scenarios: Sequence[Scenario], value: Callable[[Scenario], float | None]
    ) -> dict[str, float]:
        return {s.name: found for s in scenarios if (found := value(s)) is not None}

    # -- one scenario

    def _scenario(self, scenario: Scenario) -> dict[str, Any]:
        return {
            "family": scenario.family,
            "expect": scenario.expect,
            "of": scenario.of,
            "measure": scenario.measure,
            "horizon_s": scenario.horizon_s,
            "regime": self.regime(scenario),
            "arms": {
                arm: self._arm(scenario, arm)
                for arm in self.arms
                if (scenario.name, arm) in self._at
            },
        }

    def _arm(self, scenario: Scenario, arm: str) -> dict[str, Any]:
        outcomes = self.of(scenario, arm)
        values: dict[str, Any] = {
            "makespan_s": short(geomean(outcome.metrics["makespan_s"] for outcome in outcomes)),
            "speedup_over": {
                other: short(value)
                for other in (
                    *("best_fixed", "cache_aimd", "ungoverned", "free_tier"),
                    *FLEET_REFERENCES,
                )
                if other != arm and (value := self.speedup(scenario, arm, other)) is not None
            },
        }
        for key in _MEANS:
            seeds = [outcome.metrics[key] for outcome in outcomes]
            values[key] = None if None in seeds else short(_mean(seeds))
        for key in _WORST:
            values[key] = short(max(outcome.metrics[key] for outcome in outcomes))
        values["runs"] = {str(outcome.seed): _run(outcome) for outcome in outcomes}
        return values


def _run(outcome: ArmOutcome) -> dict[str, Any]:
    run: dict[str, Any] = {key: short(value) for key, value in outcome.metrics.items()}
    if outcome.cap is not None:
        run["cap"] = outcome.cap
        run["makespan_s_by_cap"] = {str(cap): short(s) for cap, s in outcome.tried.items()}
    return run


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return math.fsum(values) / len(values)
