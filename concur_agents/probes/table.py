"""The small language in which name tables say where a number is on a metrics page.

A table (`vllm.py`, `sglang.py`, `dynamo.py`) maps each field of a `Reading` to *metric references*,
in order of preference; the first one that the page has gives the number. A reference knows names
and labels only: no text, no network, no clock. A number that the page lacks is None, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias


class Sample(NamedTuple):
    """One line of a metrics page: name, labels, value."""

    name: str
    labels: Mapping[str, str]
    value: float


class Series:
    """The samples of one KV pool or of a whole page, by name."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._by_name: dict[str, list[Sample]] = {}
        for sample in samples:
            self._by_name.setdefault(sample.name, []).append(sample)

    def __bool__(self) -> bool:
        return bool(self._by_name)

    def named(self, name: str) -> Sequence[Sample]:
        """All samples of that name, in page order; empty if the page has none."""
        return self._by_name.get(name, ())


@dataclass(frozen=True)
class Total:
    """The sum over all series of a name: for counters, and for gauges that count requests.

    `where` keeps only the series whose label has one of the given values. If the page has the name
    but no such series, the sum is 0, because engines create a labelled series at its first
    increment.
    """

    name: str
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Peak:
    """The largest value of several names: shares of one pool, whose fullest part counts."""

    name: str
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Label:
    """A number in a label of an info metric, such as `num_gpu_blocks="300"`.

    The smallest of several, because too small a pool costs throughput, but too large a pool costs
    the cache.
    """

    name: str
    label: str


@dataclass(frozen=True)
class Smallest:
    """The smallest positive value of a gauge that is set once: a size, a length. 0: not set."""

    name: str


@dataclass(frozen=True)
class Times:
    """The product of two references: blocks x tokens per block. None if either is missing."""

    left: MetricRef
    right: MetricRef


@dataclass(frozen=True)
class Plus:
    """A reference, plus others where they exist. None if the first is missing."""

    first: MetricRef
    others: tuple[MetricRef, ...]


@dataclass(frozen=True)
class Ratio:
    """The first reference over the second: bytes per token. None if either is missing or 0."""

    over: MetricRef
    under: MetricRef


@dataclass(frozen=True)
class Scaled:
    """A reference in another unit: GiB as bytes."""

    ref: MetricRef
    factor: float


MetricRef: TypeAlias = Total | Peak | Label | Smallest | Times | Plus | Ratio | Scaled
"""A place on a page that may hold one number."""


def value_at(ref: MetricRef, series: Series) -> float | None:
    """The number of a reference; None: the page does not have it."""
    match ref:
        case Total(name, where):
            samples = series.named(name)
            values = _finite(
                sample.value
                for sample in samples
                if all(sample.labels.get(label) in wanted for label, wanted in where.items())
            )
            return sum(values) if values else 0.0 if where and samples else None
        case Peak(name, others):
            if not series.named(name):
                return None
            return max(
                _finite(s.value for each in (name, *others) for s in series.named(each)),
                default=None,
            )
        case Label(name, label):
            texts = (sample.labels.get(label) for sample in series.named(name))
            return min(_finite(_number(text) for text in texts), default=None)
        case Smallest(name):
            values = _finite(sample.value for sample in series.named(name))
            return min((value for value in values if value > 0), default=None)
        case Times(left, right):
            factors = value_at(left, series), value_at(right, series)
            return None if factors[0] is None or factors[1] is None else factors[0] * factors[1]
        case Plus(first, others):
            start = value_at(first, series)
            more = (value_at(other, series) or 0.0 for other in others)
            return None if start is None else sum(more, start)
        case Ratio(over, under):
            top, bottom = value_at(over, series), value_at(under, series)
            return top / bottom if top and bottom else None
        case Scaled(ref, factor):
            value = value_at(ref, series)
            return None if value is None else factor * value


def names_at(ref: MetricRef) -> tuple[str, ...]:
    """The metric names of a reference, for tables and error messages."""
    match ref:
        case Label(name, label):
            return (f"{name}{{{label}}}",)
        case Peak(name, others):
            return (name, *others)
        case Times(left, right) | Ratio(left, right):
            return names_at(left) + names_at(right)
        case Scaled(ref, _):
            return names_at(ref)
        case Plus(first, others):
            return names_at(first) + tuple(name for other in others for name in names_at(other))
        case Total(name, where):
            only = ",".join(f"{label}={'|'.join(wanted)}" for label, wanted in where.items())
            return (f"{name}{{{only}}}" if only else name,)
        case Smallest(name):
            return (name,)


def text_at(ref: Label, series: Series) -> str | None:
    """The text of a label of an info metric; None: the page does not have it."""
    given = (sample.labels.get(ref.label) for sample in series.named(ref.name))
    return next((text for text in given if text is not None), None)


def first_of(refs: Iterable[MetricRef], series: Series) -> tuple[float, MetricRef] | None:
    """The first reference that the page has, with its number."""
    for ref in refs:
        value = value_at(ref, series)
        if value is not None:
            return value, ref
    return None


class HitRefs(NamedTuple):
    """Cached prompt tokens, and all prompt tokens: both are read, or neither."""

    hit: MetricRef
    query: MetricRef


@dataclass(frozen=True)
class NameTable:
    """What is known about the page of one engine.

    Attributes:
        engine: Short name.
        prefix: Prefix of all its metrics.
        pool_labels: Labels that separate KV pools (data-parallel rank, replica).
        model_label: Label that names the model.
        shard_labels: Labels of the shards of *one* pool (tensor and pipeline ranks). All report the
            same; only the lowest is read.
        part_labels: Labels whose non-empty values mark parts of a series that the page also has as
            a total; the parts are not read.
        hits: References of the two hit counters, in order of preference.
        fields: References of every other field of a Reading, in order of preference.
        block_size: Tokens per KV block.
        max_model_len: Longest context, in tokens.
        prefix_caching: Label that shows whether prefix caching is on.
    """

    engine: str
    prefix: str
    pool_labels: tuple[str, ...]
    model_label: str
    hits: tuple[HitRefs, ...]
    fields: Mapping[str, tuple[MetricRef, ...]]
    shard_labels: tuple[str, ...] = ()
    part_labels: tuple[str, ...] = ()
    block_size: tuple[MetricRef, ...] = ()
    max_model_len: tuple[MetricRef, ...] = ()
    prefix_caching: Label | None = None


def _number(text: str | None) -> float:
    try:
        return float(text) if text is not None else math.nan
    except ValueError:  # engines write "None" for a value that is not set
        return math.nan


def _finite(values: Iterable[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]
