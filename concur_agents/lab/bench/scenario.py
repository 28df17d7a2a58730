"""Scenarios: one TOML file is one batch of agents against one engine, and what goes wrong.

A file is either a scenario::

    # What ought to happen, in a sentence or two.
    family = "miniswe"                  # scenarios of one family share a picture
    quick = true                        # also part of `--quick`
    profile = "h100-qwen3-8b"           # engine: a bundled profile, or the path of one
    kv_tokens = 160_000                 # size of the KV pool; left out: the profile's
    host_tier_tokens = 480_000          # of a tier in the host's memory behind it; none
    restore_tokens_per_s = 9.3e5        # how fast that gives back; the profile's
    arrival = "burst"                   # or "staggered:2", "poisson:0.5"
    staleness = 3                       # of a trainer's rollouts: most weight updates within one
    horizon_s = 1800                    # cut there: agents finished per hour count, no makespan
    replicas = 4                        # a fleet of such engines, with arms of its own
    shares = [2, 1, 2, 1]               # how large their pools are beside each other; equal
    [[batch]]                           # several are mixed
    source = "miniswe-gemini3pro"       # bundled recording, path of one, "synthetic", or "samples"
    agents = 48
    max_context = 32_000                # agents end before they outgrow this
    max_steps = 30
    group = "prompt-7"                  # in a fleet: these belong together
    tools = "recorded"                  # or "constant:0.1", "lognormal:4,1,20", "heavy:1,1.1,600"
    [[faults]]
    kind = "metrics_lost"               # see `FAULTS` in cases.py
    from_s = 100

or a variant of others, in which something about the world or the law is different::

    of = ["miniswe-mid", "weka-mid"]
    measure = "tau_double"              # the figure that variant and original give together
    [working_set]                       # options of a law, by its name
    interval_s = 20
    [scale.working_set]                 # the same, as multiples of what they are
    hold_scale = 2.0
    [regulator]                         # options of the Regulator
    max_wait_s = 60
    wrong_price = 2.0                   # what the law believes about a prefill, times this
    sizes_told = false                  # the gate does not hear beforehand how large a prompt is
    closes_sessions = true              # the engine hears which agents are done

Variants of `x` in file `y.toml` are called `y@x`. Everything is checked when it is read, and
complaints name the file and the key.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatch
from importlib import resources
from pathlib import Path
from typing import Any

from concur_agents.core import law_names
from concur_agents.errors import ConfigError
from concur_agents.lab.bench.cases import FAULTS, Case, Options, build_case, make_fault
from concur_agents.sim.profile import load_profile
from concur_agents.sim.timing import parse_arrival, parse_tools

__all__ = ["Scenario", "load_suite", "parse_suite", "select"]

_METRICS_FAULTS = frozenset({"metrics_lost", "capacity_hidden", "cached_hidden"})
"""What only a gate that listens can notice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """See the top of this file. Plain values only: it travels to worker processes."""

    name: str
    family: str
    expect: str
    """What ought to happen, from the comment on top of the file."""
    profile: str
    kv_tokens: int | None = None
    host_tier_tokens: int = 0
    restore_tokens_per_s: float | None = None
    arrival: str = "burst"
    poll_interval_s: float = 1.0
    horizon_s: float | None = None
    """The run is cut so long after the first arrival [s], and what counts is how many agents have
    finished. None: it ends when all are done.
    """
    batch: tuple[Options, ...] = ()
    faults: tuple[Options, ...] = ()
    quick: bool = False
    of: str | None = None
    """The scenario that this one is a variant of."""
    measure: str | None = None
    laws: Mapping[str, Options] = field(default_factory=dict)
    """Options of laws, by their names."""
    scales: Mapping[str, Options] = field(default_factory=dict)
    """Factors on options of laws, by their names."""
    regulator: Options = field(default_factory=dict)
    wrong_price: float = 1.0
    sizes_told: bool = True
    """Whether a law hears how large prompts are before they are sent."""
    closes_sessions: bool = False
    """Whether the engine hears which agents are done, with a law."""
    replicas: int | None = None
    """Engines of a fleet; None: there is one engine, and the arms are those of one engine."""
    staleness: int | None = None
    """Most weight updates between a rollout's first call and its end; None: no bound."""
    shares: tuple[float, ...] = ()
    """Sizes of the replicas' pools beside each other; empty: all alike."""

    @property
    def alters_law(self) -> bool:
        """The law is not as a user gets it, so this one says nothing about how good the law is."""
        altered = self.laws or self.scales or self.regulator or self.closes_sessions
        return bool(altered) or self.wrong_price != 1.0

    @property
    def has_tenant(self) -> bool:
        """Another tenant uses the engine too."""
        return any(fault["kind"] == "second_tenant" for fault in self.faults)

    @property
    def trains(self) -> bool:
        """Its agents are a trainer's rollouts, in groups: such a scenario has arms of its own."""
        return any(part["source"] == "samples" for part in self.batch)

    def world(self, *, listening: bool) -> str:
        """A digest of all that a run depends on but the gate. With `listening=False`: of what a
        gate that hears no metrics can notice.
        """
        faults = [f for f in self.faults if listening or f["kind"] not in _METRICS_FAULTS]
        facts: dict[str, Any] = {
            "profile": asdict(load_profile(self.profile)),
            "kv_tokens": self.kv_tokens,
            "arrival": self.arrival,
            "poll_interval_s": self.poll_interval_s if listening else None,
            "batch": [dict(part) for part in self.batch],
            "faults": [dict(fault) for fault in faults],
            "sizes_told": self.sizes_told or not listening,
            "horizon_s": self.horizon_s,
        }
        if self.host_tier_tokens:
            tier = self.host_tier_tokens, self.restore_tokens_per_s
            facts |= {"host_tier": tier}
        if self.closes_sessions and listening:
            facts["closes_sessions"] = True
        if self.trains:
            facts["staleness"] = self.staleness
        if self.replicas is not None:
            facts |= {"replicas": self.replicas, "shares": self.shares}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def case(self, seed: int) -> Case:
        """Draw the agents.

        Raises:
            ConfigError: a value does not fit.
            TraceError: a recording cannot be read.
        """
        return build_case(
            profile=self.profile,
            kv_tokens=self.kv_tokens,
            host_tier_tokens=self.host_tier_tokens,
            restore_tokens_per_s=self.restore_tokens_per_s,
            arrival=self.arrival,
            batch=self.batch,
            faults=self.faults,
            seed=seed,
            replicas=self.replicas,
            shares=self.shares,
        )


def load_suite(folder: Path | None = None) -> list[Scenario]:
    """All scenarios of a folder, variants after their originals; default: the bundled suite.

    Raises:
        ConfigError: a file is not a scenario; says which, and what to do.
    """
    where = resources.files("concur_agents.lab.bench") / "scenarios" if folder is None else folder
    if not where.is_dir():
        raise ConfigError(f"{where}: no such folder; name one that holds scenario .toml files")
    texts = {
        file.name.removesuffix(".toml"): file.read_text(encoding="utf-8")
        for file in where.iterdir()
        if file.name.endswith(".toml")
    }
    if not texts:
        raise ConfigError(f"{where}: holds no .toml file; name a folder of scenarios")
    return parse_suite(texts)


def parse_suite(texts: Mapping[str, str]) -> list[Scenario]:
    """Scenarios from texts by file name (without its ending).

    Raises:
        ConfigError: as `load_suite`.
    """
    files = {name: _File(name, text) for name, text in sorted(texts.items())}
    plain = {name: file.scenario() for name, file in files.items() if not file.is_variant}
    variants = [
        variant for file in files.values() if file.is_variant for variant in file.variants(plain)
    ]
    return [*plain.values(), *variants]


def select(suite: Iterable[Scenario], patterns: Sequence[str]) -> list[Scenario]:
    """Those whose name or family matches one of the patterns (`*` and `?` as in a shell).

    Raises:
        ConfigError: a pattern matches nothing.
    """
    suite = list(suite)
    chosen: dict[str, Scenario] = {}
    for pattern in patterns:
        hits = [s for s in suite if fnmatch(s.name, pattern) or fnmatch(s.family, pattern)]
        if not hits:
            names = ", ".join(s.name for s in suite)
            raise ConfigError(f"no scenario or family matches {pattern!r}; there are {names}")
        chosen.update((s.name, s) for s in hits)
    return [s for s in suite if s.name in chosen]


# --- files ---------------------------------------------------------------------------------------

_BATCH_KEYS: dict[str, type | tuple[type, ...]] = {
    "source": str,
    "agents": int,
    "tools": str,
    "max_steps": int,
    "max_context": int,
    "tool_cap_s": (int, float),
    "scale": (int, float),
    "group": str,
}
_SYNTHETIC_KEYS: dict[str, type | tuple[type, ...]] = {
    "source": str,
    "agents": int,
    "tools": str,
    "steps": int,
    "first": list,
    "gen": list,
    "obs": list,
    "steps_range": list,
    "steps_tail": (int, float),
    "shared": int,
    "group": str,
}
_SAMPLES_KEYS: dict[str, type | tuple[type, ...]] = {
    "source": str,
    "prompts": int,
    "per_prompt": int,
    "prompt": list,
    "turns": list,
    "gen": list,
    "obs": list,
    "shared": int,
    "tools": str,
    "waves": int,
    "wave_s": (int, float),
}
_SCENARIO_KEYS: dict[str, type | tuple[type, ...]] = {
    "family": str,
    "quick": bool,
    "profile": str,
    "kv_tokens": int,
    "host_tier_tokens": int,
    "restore_tokens_per_s": (int, float),
    "arrival": str,
    "poll_interval_s": (int, float),
    "horizon_s": (int, float),
    "replicas": int,
    "staleness": int,
    "shares": list,
    "batch": list,
    "faults": list,
}
_VARIANT_KEYS: dict[str, type | tuple[type, ...]] = {
    "of": list,
    "measure": str,
    "family": str,
    "quick": bool,
    "faults": list,
    "kv_tokens": int,
    "arrival": str,
    "shares": list,
    "regulator": dict,
    "scale": dict,
    "wrong_price": (int, float),
    "sizes_told": bool,
    "closes_sessions": bool,
}

_POSITIVE = (
    "agents",
    "prompts",
    "per_prompt",
    "waves",
    "kv_tokens",
    "host_tier_tokens",
    "restore_tokens_per_s",
    "max_steps",
    "steps",
    "steps_tail",
    "poll_interval_s",
    "horizon_s",
    "replicas",
)

MEASURES = (
    "capacity_unknown",
    "sizes_unknown",
    "max_wait",
    "tau_half",
    "tau_double",
    "price_half",
    "price_double",
    "unequal",
    "stale_bound",
    "sessions_closed",
)
"""Figures that a variant and its original give together."""


class _File:
    """One file, checked as it is read."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        try:
            self.keys = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise self.error(f"is not valid TOML ({error})") from error
        comment = [
            line.lstrip("# ") for line in text[: text.find("=")].splitlines() if line[:1] == "#"
        ]
        if not comment:
            raise self.error("has no comment on top; say there what ought to happen")
        self.expect = " ".join(comment)
        self.is_variant = "of" in self.keys

    def error(self, what: str) -> ConfigError:
        return ConfigError(f"scenario {self.name}.toml: {what}")

    def scenario(self) -> Scenario:
        keys = self.checked(self.keys, _SCENARIO_KEYS, "", needed=("family", "profile", "batch"))
        keys["batch"] = tuple(self.part(part, i) for i, part in enumerate(keys["batch"]))
        if not keys["batch"]:
            raise self.error("batch is empty; give at least one [[batch]]")
        keys["faults"] = tuple(self.fault(fault) for fault in keys.get("faults", ()))
        keys["shares"] = self.numbers(keys, ())
        scenario = Scenario(name=self.name, expect=self.expect, **keys)
        self.readable(scenario)
        return scenario

    def variants(self, plain: Mapping[str, Scenario]) -> list[Scenario]:
        known: dict[str, Any] = {**_VARIANT_KEYS, **dict.fromkeys(law_names(), dict)}
        keys = self.checked(self.keys, known, "", needed=("of", "measure"))
        laws = {law: keys.pop(law) for law in law_names() if law in keys}
        of_laws = dict.fromkeys(law_names(), dict)
        scales = self.checked(keys.pop("scale", {}), of_laws, "scale: ", needed=())
        faults = tuple(self.fault(fault) for fault in keys.pop("faults", ()))
        if keys["measure"] not in MEASURES:
            raise self.error(
                f"measure must be one of {', '.join(MEASURES)}, got {keys['measure']!r}"
            )
        made = []
        for original in keys.pop("of"):
            if original not in plain:
                known_names = ", ".join(plain)
                raise self.error(f"of names {original!r}, but there is only {known_names}")
            base = plain[original]
            keys["shares"] = self.numbers(keys, base.shares)
            variant = replace(
                base,
                name=f"{self.name}@{original}",
                expect=self.expect,
                of=original,
                faults=(*base.faults, *faults),
                laws=laws,
                scales=scales,
                **{"family": "variants", **keys},
            )
            self.readable(variant)
            made.append(variant)
        return made

    def part(self, part: Any, i: int) -> Options:
        where = f"batch {i}: "
        if not isinstance(part, dict):
            raise self.error(f"{where}is not a table; write [[batch]]")
        if part.get("source") == "synthetic":
            return self.checked(part, _SYNTHETIC_KEYS, where, needed=("agents", "steps"))
        if part.get("source") == "samples":
            return self.checked(part, _SAMPLES_KEYS, where, needed=("prompts",))
        return self.checked(part, _BATCH_KEYS, where, needed=("source", "agents"))

    def fault(self, fault: Any) -> Options:
        kind = fault.get("kind") if isinstance(fault, dict) else None
        if kind not in FAULTS:
            raise self.error(f"fault kind must be one of {', '.join(FAULTS)}, got {kind!r}")
        try:
            make_fault(fault)
        except TypeError as error:
            raise self.error(f"fault {kind}: {error}") from error
        return dict(fault)

    def checked(
        self,
        keys: Mapping[str, Any],
        known: Mapping[str, Any],
        where: str,
        *,
        needed: Sequence[str],
    ) -> dict[str, Any]:
        if missing := [key for key in needed if key not in keys]:
            raise self.error(f"{where}lacks {', '.join(missing)}")
        for key, value in keys.items():
            if key not in known:
                raise self.error(f"{where}unknown key {key!r}; known are {', '.join(known)}")
            wanted = known[key]
            if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
                kinds = wanted if isinstance(wanted, tuple) else (wanted,)
                names = " or ".join(kind.__name__ for kind in kinds)
                raise self.error(f"{where}{key} must be of type {names}, got {value!r}")
        for key in _POSITIVE:
            if key in keys and not keys[key] > 0:
                raise self.error(f"{where}{key} must be above 0, got {keys[key]}")
        return dict(keys)

    def numbers(self, keys: Mapping[str, Any], default: tuple[float, ...]) -> tuple[float, ...]:
        shares = keys.get("shares", default)
        if not all(isinstance(share, int | float) for share in shares):
            raise self.error(f"shares must be numbers, got {shares}")
        return tuple(shares)

    def readable(self, scenario: Scenario) -> None:
        try:
            load_profile(scenario.profile)
            parse_arrival(scenario.arrival)
            for part in scenario.batch:
                parse_tools(part.get("tools", "recorded"))
        except ConfigError as error:
            raise self.error(str(error)) from error
        shares, replicas = scenario.shares, scenario.replicas
        rate = scenario.restore_tokens_per_s or load_profile(scenario.profile).restore_tokens_per_s
        if scenario.host_tier_tokens and not rate:
            raise self.error(
                "host_tier_tokens needs restore_tokens_per_s: the profile does not say how fast"
            )
        if shares and len(shares) != replicas:
            raise self.error(f"shares has {len(shares)} numbers for {replicas or 'no'} replicas")
        if not all(share > 0 for share in shares):
            raise self.error(f"shares must be above 0, got {list(shares)}")
        for fault in scenario.faults:
            if fault["kind"] == "replica_dies" and fault["replica"] not in range(replicas or 0):
                raise self.error(f"there is no replica {fault['replica']} that could die")
            if fault["kind"] == "second_tenant" and replicas is not None:
                raise self.error("a fleet has no second tenant: the simulator cannot say where")
