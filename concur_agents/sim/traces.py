"""Recorded agents, read from JSON lines into plain frozen values.

One line is one agent::

    {"agent_id": "a-7", "source": "my-runs", "group": "issue-7", "shared_prefix_tokens": 117,
     "steps": [{"prompt_tokens": 1662, "output_tokens": 106, "shared_prefix_tokens": 0,
     "tool_seconds": 0.4}, ...]}

``prompt_tokens`` and ``output_tokens`` are one LLM call. A step's ``shared_prefix_tokens`` says how
many leading tokens of the *previous* prompt survive in this one (for a first step: how many it
shares with earlier agents of its ``group``); the agent's own ``shared_prefix_tokens`` is a prefix
common to many agents of the source (system prompt and tools). ``tool_seconds`` is the time between
this call and the next; null is "not recorded". ``user_seconds``, instead, is a person's pause.
Other keys are ignored, so a richer recording loads as it is. Files may be gzipped. What is bundled,
and its recorder: ``data/ATTRIBUTION.md``.
"""

from __future__ import annotations

import gzip
import json
import math
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

from concur_agents.errors import TraceError

__all__ = ["TraceAgent", "TraceStep", "bundled_sources", "load_traces"]

_SUFFIXES = (".jsonl.gz", ".jsonl")


@dataclass(frozen=True, slots=True)
class TraceStep:
    """One LLM call and the pause after it."""

    prompt_tokens: int  # whole prompt, >= 1
    output_tokens: int  # >= 0; 0: the call was cut off before its first token
    shared_prefix_tokens: int  # leading tokens of the previous prompt that survive in this one
    tool_s: (
        float | None
    )  # seconds until the next call; None: not recorded, or this is the last call


@dataclass(frozen=True, slots=True)
class TraceAgent:
    """One recorded agent, first call to last."""

    id: str
    source: str  # which recording
    group: str  # agents of one session or task
    group_shared_tokens: (
        int  # leading tokens common to all agents of the source with this same value; 0: none known
    )
    steps: tuple[TraceStep, ...]  # at least one

    @property
    def peak_tokens(self) -> int:
        """The largest context this agent ever holds: prompt + output [tokens]."""
        return max(s.prompt_tokens + s.output_tokens for s in self.steps)


@dataclass(frozen=True, slots=True)
class _ToolFit:
    """Log-normal of tool seconds for a source that did not record them."""

    mu: float  # mean of ln seconds
    sigma: float  # standard deviation of ln seconds
    cap_s: float

    def draw(self, rng: random.Random) -> float:
        return min(self.cap_s, math.exp(rng.gauss(self.mu, self.sigma)))


# Recordings that know the surviving prefix only in blocks: a prompt whose whole blocks all survived
# is taken to survive whole.
_PREFIX_GRAIN_TOKENS = {"weka-claude-code": 64}

# Log-normals fitted to tool times that were recorded for the like of each source.
_TOOL_FITS = {
    "miniswe-gemini3pro": _ToolFit(
        -1.45, 1.3, 60.0
    ),  # shell commands on SWE-bench Verified: median 0.23 s
    "tau-airline-gpt4o": _ToolFit(-4.6, 0.5, 1.0),  # look-ups in memory: median 10 ms
    "kernelbook-claude-code": _ToolFit(1.6, 0.7, 60.0),  # compile and measure a kernel: median 5 s
}
_ANY_TOOL = _ToolFit(
    -1.2, 2.9, 600.0
)  # 430,000 coding-agent tool calls: median 0.3 s, 4 % over a minute


def bundled_sources() -> list[str]:
    """Names of the recordings that ship with the package, sorted; each can be given to
    ``load_traces``.
    """
    return sorted(
        entry.name.removesuffix(".jsonl.gz")
        for entry in _data().iterdir()
        if entry.name.endswith(".jsonl.gz")
    )


def load_traces(
    path_or_bundled_name: str | Path,
    *,
    max_context: int | None = None,
    cut: bool = False,
    tool_cap_s: float | None = None,
    impute: bool = True,
    user: Literal["drop", "keep"] | float = "drop",
    scale: float = 1.0,
    seed: int = 0,
) -> list[TraceAgent]:
    """Read recorded agents, in the order of the file.

    Args:
        path_or_bundled_name: a ``.jsonl`` or ``.jsonl.gz`` file, a folder of them, or a name of
            ``bundled_sources()``.
        max_context: leave out agents whose prompt + output ever exceeds this many tokens (before
            scaling).
        cut: with ``max_context``: keep such an agent's steps up to there instead, if there are any.
        tool_cap_s: upper bound on every tool time [s].
        impute: fill tool times that were not recorded from a log-normal fitted to a like source.
            Off: they stay None.
        user: a person's pauses: "drop" makes them 0 s, "keep" keeps them, a number caps them [s].
        scale: multiply all token counts (0.1 replays on a small model); what was positive stays at
            least 1.
        seed: of the imputed times. They depend on seed and agent id only, not on which other agents
            are loaded.

    Raises:
        TraceError: the file is missing, is no gzip, or has a line that is no agent; says file, line
            and what to do.
    """
    if scale <= 0 or not math.isfinite(scale):
        raise TraceError(f"scale must be a positive number, got {scale}")
    if not isinstance(user, str) and user < 0:
        raise TraceError(f'user must be "drop", "keep" or a cap of at least 0 seconds, got {user}')
    agents: list[TraceAgent] = []
    seen: dict[str, str] = {}
    for where, line in _lines(path_or_bundled_name):
        raw = _Line(where, line)
        if raw.id in seen:
            raise raw.error(
                f"agent_id {raw.id!r} was already used at {seen[raw.id]}",
                "give each agent its own id",
            )
        seen[raw.id] = where
        steps = raw.steps(user)
        if max_context is not None:
            kept = _leading_that_fit(steps, max_context)
            if not kept or (len(kept) < len(steps) and not cut):
                continue
            steps = kept
        rng = random.Random(f"{seed}:{raw.source}:{raw.id}")
        fit = _TOOL_FITS.get(raw.source, _ANY_TOOL) if impute else None
        agents.append(
            TraceAgent(
                id=raw.id,
                source=raw.source,
                group=raw.group,
                group_shared_tokens=_scaled(raw.shared_tokens, scale),
                steps=tuple(_finish(steps, scale, tool_cap_s, fit, rng)),
            )
        )
    return agents


def _leading_that_fit(steps: list[TraceStep], max_context: int) -> list[TraceStep]:
    kept = []
    for step in steps:
        if step.prompt_tokens + step.output_tokens > max_context:
            break
        kept.append(step)
    return kept


def _finish(
    steps: list[TraceStep],
    scale: float,
    tool_cap_s: float | None,
    fit: _ToolFit | None,
    rng: random.Random,
) -> Iterator[TraceStep]:
    last = len(steps) - 1
    for k, step in enumerate(steps):
        tool_s = None if k == last else step.tool_s
        if tool_s is None and fit is not None and k != last:
            tool_s = fit.draw(rng)
        if tool_s is not None and tool_cap_s is not None:
            tool_s = min(tool_s, tool_cap_s)
        yield TraceStep(
            _scaled(step.prompt_tokens, scale),
            _scaled(step.output_tokens, scale),
            _scaled(step.shared_prefix_tokens, scale),
            tool_s,
        )


def _scaled(tokens: int, scale: float) -> int:
    return max(1, round(tokens * scale)) if tokens else 0


def _data() -> Traversable:
    return resources.files("concur_agents.sim") / "data"


def _lines(path_or_bundled_name: str | Path) -> Iterator[tuple[str, str]]:
    """``(file:line, text)`` of every line that is not empty."""
    for name, file in _files(path_or_bundled_name):
        try:
            with file.open("rb") as raw:
                text = gzip.decompress(raw.read()) if name.endswith(".gz") else raw.read()
        except (OSError, EOFError, zlib.error) as error:
            raise TraceError(
                f"{name}: cannot be read ({error}); copy or download the file again"
            ) from error
        for number, line in enumerate(text.split(b"\n"), start=1):
            if line.strip():
                try:
                    yield f"{name}:{number}", line.decode()
                except UnicodeDecodeError as error:
                    raise TraceError(
                        f"{name}:{number}: is not UTF-8 text; remove or repair this line"
                    ) from error


def _files(path_or_bundled_name: str | Path) -> list[tuple[str, Traversable | Path]]:
    if str(path_or_bundled_name) in bundled_sources():
        name = f"{path_or_bundled_name}.jsonl.gz"
        return [(name, _data() / name)]
    path = Path(path_or_bundled_name)
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.name.endswith(_SUFFIXES))
        if not found:
            raise TraceError(f"{path}: holds no .jsonl or .jsonl.gz file; name a folder that does")
        return [(str(p), p) for p in found]
    if not path.exists():
        names = ", ".join(bundled_sources())
        raise TraceError(
            f"{path}: no such file, and no bundled recording of that name; bundled are {names}"
        )
    return [(str(path), path)]


class _Line:
    """One line of a recording, checked; its complaints name file, line and remedy."""

    def __init__(self, where: str, text: str) -> None:
        self._where = where
        try:
            agent = json.loads(text)
        except ValueError as error:
            raise self.error(f"is not JSON ({error})", "remove or repair this line") from error
        if not isinstance(agent, dict):
            raise self.error("is not a JSON object", "write one object per agent and line")
        self.id = self._text(agent, "agent_id")
        self.source = self._text(agent, "source")
        self.group = self._text(agent, "group") if agent.get("group") is not None else self.id
        self.shared_tokens = self._tokens(agent, "shared_prefix_tokens", "agent", least=0, absent=0)
        steps = agent.get("steps")
        if not isinstance(steps, list) or not steps:
            raise self.error("has no steps", 'give "steps" as a list of at least one LLM call')
        self._steps: list[Any] = steps

    def error(self, what: str, remedy: str) -> TraceError:
        return TraceError(f"{self._where}: {what}; {remedy}")

    def steps(self, user: Literal["drop", "keep"] | float) -> list[TraceStep]:
        steps: list[TraceStep] = []
        grain = _PREFIX_GRAIN_TOKENS.get(self.source, 1)
        for k, raw in enumerate(self._steps):
            step = self._step(raw, f"step {k}", user)
            before = steps[-1].prompt_tokens if steps else 0
            if before and step.shared_prefix_tokens == before // grain * grain:
                step = replace(step, shared_prefix_tokens=before)
            steps.append(step)
        return steps

    def _step(self, step: Any, name: str, user: Literal["drop", "keep"] | float) -> TraceStep:
        if not isinstance(step, dict):
            raise self.error(f"{name} is not a JSON object", "write one object per LLM call")
        tool_s = self._seconds(step, "tool_seconds", name)
        user_s = self._seconds(step, "user_seconds", name)
        if tool_s is None and user_s is not None:
            tool_s = (
                0.0 if user == "drop" else user_s if user == "keep" else min(user_s, float(user))
            )
        return TraceStep(
            self._tokens(step, "prompt_tokens", name, least=1),
            self._tokens(step, "output_tokens", name, least=0),
            self._tokens(step, "shared_prefix_tokens", name, least=0, absent=0),
            tool_s,
        )

    def _text(self, agent: dict[str, Any], key: str) -> str:
        value = agent.get(key)
        if not isinstance(value, str) or not value:
            raise self.error(f"{key} is {value!r}", f'give "{key}" as a non-empty string')
        return value

    def _tokens(
        self, at: dict[str, Any], key: str, name: str, *, least: int, absent: int | None = None
    ) -> int:
        value = at.get(key)
        if value is None and absent is not None:
            return absent
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.error(
                f"{name}: {key} is {value!r}",
                f"it must be a whole number of at least {least} tokens",
            )
        return value

    def _seconds(self, step: dict[str, Any], key: str, name: str) -> float | None:
        value = step.get(key)
        if value is None:
            return None
        if (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or not 0 <= value < math.inf
        ):
            raise self.error(f"{name}: {key} is {value!r}", "it must be null or at least 0 seconds")
        return float(value)
