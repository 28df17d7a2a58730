"""Runs scenarios x seeds x arms in parallel processes, and remembers references on disk.

A run depends on nothing but its scenario, seed, arm and our own source, so its outcome can be kept
under a digest of these. References do not depend on `core/`: they stay when a law changes, and a
second call then costs that law's runs only.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from concur_agents.errors import ConcurError, ConfigError
from concur_agents.lab.bench.arms import REFERENCES, ArmOutcome, LawArm, run_law, run_reference
from concur_agents.lab.bench.cases import Case
from concur_agents.lab.bench.fleet_arms import (
    FLEET_REFERENCES,
    run_fleet_law,
    run_fleet_reference,
)
from concur_agents.lab.bench.scenario import Scenario, load_suite
from concur_agents.lab.bench.trainer_arms import TRAINER_REFERENCES, run_trainer_reference

__all__ = ["ALL_REFERENCES", "DEFAULT_ARMS", "TIER_HIDDEN", "evaluate", "law_arm"]

ALL_REFERENCES = (*REFERENCES, *FLEET_REFERENCES, *TRAINER_REFERENCES)
DEFAULT_ARMS = (*ALL_REFERENCES, "cache_aimd", "working_set")
TIER_HIDDEN = "_tier_hidden"
"""What the name of an arm ends with if its law is not told of the host tier."""
_SEARCHES = ("best_fixed", "best_request", "cap_per_replica")

Progress = Callable[[int, int], None]


def law_arm(name: str, settings: Mapping[str, Mapping[str, Any]] | None = None) -> LawArm:
    """The law called `name` with its defaults, or with `settings` under `name` and `regulator`.

    With `TIER_HIDDEN` at the end of `name` its readings say nothing of a host tier.
    """
    settings = settings or {}
    law = name.removesuffix(TIER_HIDDEN)
    return LawArm(
        name=name,
        law=law,
        options=settings.get(law, {}),
        regulator=settings.get("regulator", {}),
        tier_hidden=law != name,
    )


def evaluate(
    laws: Sequence[LawArm] = (),
    *,
    references: Sequence[str] = ALL_REFERENCES,
    scenarios: Sequence[Scenario] | None = None,
    seeds: Sequence[int] = (1, 2, 3),
    workers: int | None = None,
    cache_dir: Path | None = None,
    progress: Progress = lambda done, total: None,
) -> list[ArmOutcome]:
    """Run every arm on every draw of every scenario; outcomes in that order.

    A variant whose law is altered runs with laws only: its references are its original's. The
    free-tier bound is left out where a second tenant uses the engine, because it does not know of
    tenants, and where the run is cut, because it serves every agent alike and so finishes none.
    A fleet has references of its own.

    Args:
        laws: arms that are laws.
        references: arms that are not, of `ALL_REFERENCES`.
        scenarios: default: the bundled suite.
        seeds: of the draws of agents, tool times, arrivals and polls.
        workers: processes; default: one per core that we may use. 1: in this process.
        cache_dir: where outcomes are kept between calls; None: nowhere.
        progress: gets how many of all jobs are done.

    Raises:
        ConfigError: an arm or a scenario that cannot be run.
    """
    for name in references:
        if name not in ALL_REFERENCES:
            raise ConfigError(f"no reference {name!r}; there are {', '.join(ALL_REFERENCES)}")
    names = [*references, *(law.name for law in laws)]
    if doubled := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"arm {doubled.pop()!r} is given twice; give each its own name")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds must be different numbers, at least one, got {list(seeds)}")
    scenarios = load_suite() if scenarios is None else scenarios
    for law in laws:
        for scenario in scenarios:
            law.within(scenario).regulate()
    arms: list[str | LawArm] = [*references, *laws]
    jobs = [
        Job(scenario, seed, arm)
        for scenario in scenarios
        for seed in seeds
        for arm in arms
        if not isinstance(arm, str) or _has_reference(scenario, arm)
    ]
    alike: dict[str, list[Job]] = {}
    for job in jobs:
        alike.setdefault(job.digest, []).append(job)
    store = _Store(cache_dir)
    found = {digest: kept for digest in alike if (kept := store.read(digest)) is not None}
    progress(len(found), len(alike))
    todo = {digest: same[0] for digest, same in alike.items() if digest not in found}
    for digest, outcome in _run(todo, workers or _cores()):
        found[digest] = outcome
        store.keep(digest, outcome)
        progress(len(found), len(alike))
    return [job.named(found[job.digest]) for job in jobs]


def _has_reference(scenario: Scenario, arm: str) -> bool:
    """Whether `arm` means something there."""
    if scenario.alters_law or (arm in FLEET_REFERENCES) != (scenario.replicas is not None):
        return False
    if arm in TRAINER_REFERENCES and not scenario.trains:
        return False
    return arm != "free_tier" or not (scenario.has_tenant or scenario.horizon_s is not None)


@dataclass(frozen=True, eq=False)
class Job:
    """One arm on one draw."""

    scenario: Scenario
    seed: int
    arm: str | LawArm

    def run(self) -> ArmOutcome:
        """Here and now."""
        try:
            case = _case(self.scenario, self.seed)
            in_fleet = self.scenario.replicas is not None
            if isinstance(self.arm, str):
                refer = run_fleet_reference if in_fleet else run_reference
                if self.arm in TRAINER_REFERENCES:
                    refer = run_trainer_reference
                return refer(self.scenario, case, self.seed, self.arm)
            run = run_fleet_law if in_fleet else run_law
            return run(self.scenario, case, self.seed, self.arm)
        except ConcurError as error:
            arm = self.arm if isinstance(self.arm, str) else self.arm.name
            raise ConfigError(
                f"scenario {self.scenario.name}, seed {self.seed}, {arm}: {error}"
            ) from error

    def named(self, outcome: ArmOutcome) -> ArmOutcome:
        """The outcome of a job with the same digest, as ours."""
        arm = self.arm if isinstance(self.arm, str) else self.arm.name
        return replace(outcome, scenario=self.scenario.name, seed=self.seed, arm=arm)

    @functools.cached_property
    def digest(self) -> str:
        """Equal for jobs whose outcomes are equal but for the names of scenario and arm."""
        in_fleet = self.scenario.replicas is not None
        listening = in_fleet  # a reference hears nothing; routers and the sum do
        if isinstance(self.arm, str):
            arm: Any = self.arm
            listening = listening or self.arm == "prime_rl"
            sources = _sources(
                "sim",
                "lab/bench/arms.py",
                "lab/bench/search.py",
                "lab/bench/cases.py",
                "lab/bench/peer_gates.py",
            )
            if self.arm in TRAINER_REFERENCES:
                sources += _sources("sim/trainer_gates.py", "lab/bench/trainer_arms.py")
            if self.arm == "sum":
                sources += _sources("core")
        else:
            listening = True
            arm = asdict(self.arm.within(self.scenario))
            del arm["name"]
            sources = _sources("sim", "lab/bench/arms.py", "lab/bench/cases.py", "core")
            sources += _source_of(self.arm.law)
        if in_fleet:
            sources += _sources("sim/replicas.py", "lab/bench/fleet_arms.py")
        facts = [self.scenario.world(listening=listening), self.seed, arm, sources]
        text = json.dumps(facts, sort_keys=True, default=repr)
        return hashlib.sha256(text.encode()).hexdigest()


_drawn: dict[tuple[str, int], Case] = {}


def _case(scenario: Scenario, seed: int) -> Case:
    """Drawn once per process for jobs in a row that share it."""
    key = scenario.world(listening=True), seed
    if key not in _drawn:
        _drawn.clear()
        _drawn[key] = scenario.case(seed)
    return _drawn[key]


def _run(jobs: Mapping[str, Job], workers: int) -> Iterator[tuple[str, ArmOutcome]]:
    if workers == 1 or len(jobs) < 2:
        for digest, job in jobs.items():
            yield digest, job.run()
        return
    # Spawned, not forked: the caller may have threads, and the same holds on every system.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(workers, len(jobs)), mp_context=context, initializer=_end_with_parent
    ) as pool:
        # Searches take the longest: first, so that none is left for the end.
        slow_first = sorted(jobs, key=lambda digest: jobs[digest].arm not in _SEARCHES)
        running: dict[Future[ArmOutcome], str] = {
            pool.submit(jobs[digest].run): digest for digest in slow_first
        }
        try:
            for future in as_completed(running):
                yield running[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Store:
    """Outcomes on disk, one small file each."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def read(self, digest: str) -> ArmOutcome | None:
        if self._folder is None:
            return None
        path = self._folder / f"{digest}.json"
        if not path.exists():
            return None
        kept = json.loads(path.read_text(encoding="utf-8"))
        kept["tried"] = {int(cap): time_s for cap, time_s in kept["tried"].items()}
        return ArmOutcome(**kept)

    def keep(self, digest: str, outcome: ArmOutcome) -> None:
        if self._folder is None:
            return
        path = self._folder / f"{digest}.json"
        half = path.with_suffix(f".{os.getpid()}")  # another bench may be reading
        half.write_text(json.dumps(asdict(outcome)), encoding="utf-8")
        half.replace(path)


# The parts of the simulator that no run in virtual time against one engine goes through.
_NOT_IN_A_RUN = (
    "answers.py",
    "app.py",
    "client_clock.py",
    "listener.py",
    "measured_gates.py",
    "pages.py",
    "realtime.py",
    "replicas.py",
    "server.py",
    "shapes.py",
    "text.py",
    "trainer_gates.py",
)


@functools.cache
def _sources(*parts: str) -> str:
    """A digest of our own source."""
    package = resources.files("concur_agents")
    digest = hashlib.sha256()
    for part in parts:
        for name, text in _texts(package / part):
            if part != "sim" or name.rpartition("/")[2] not in _NOT_IN_A_RUN:
                digest.update(name.encode() + text)
    return digest.hexdigest()


@functools.cache
def _source_of(law: str) -> str:
    """A digest of the file of a law that is not ours."""
    module_name, colon, _ = law.partition(":")
    spec = importlib.util.find_spec(module_name) if colon else None
    if spec is None or spec.origin is None:
        return ""
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()


def _texts(at: Traversable, name: str = "") -> Iterator[tuple[str, bytes]]:
    if at.is_file():
        if at.name.endswith((".py", ".gz")):
            yield f"{name}/{at.name}", at.read_bytes()
        return
    for child in sorted(at.iterdir(), key=lambda child: child.name):
        yield from _texts(child, f"{name}/{at.name}")
