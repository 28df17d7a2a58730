"""Turns a metrics page into one `Reading` per KV pool and one for the whole endpoint.

Pure: no network, no clock, no memory. The names on the page identify the engine; the tables
(`vllm.py`, `sglang.py`, `dynamo.py`) say what each name means.

Several pools on one page (data-parallel ranks, replicas behind a router) are *never averaged*.
Each has its own `Reading`. The merged one describes the endpoint as the single pool that one
governor governs: counters, requests and capacities are summed, and usage is that of the fullest
pool. The prefix of an agent lives in one pool only, so one agent can use at most
`smallest_capacity_tokens`, never the merged capacity.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from concur_agents.core import Reading
from concur_agents.errors import ProbeError
from concur_agents.probes import dynamo, sglang, vllm
from concur_agents.probes.exposition import parse_samples, quote, sample_lines
from concur_agents.probes.table import (
    MetricRef,
    NameTable,
    Sample,
    Series,
    first_of,
    names_at,
    text_at,
    value_at,
)
from concur_agents.probes.unknown_page import listed, unknown_page

TABLES: Final[tuple[NameTable, ...]] = (vllm.TABLE, sglang.TABLE, dynamo.TABLE)


def _names_in(table: NameTable) -> frozenset[str]:
    refs: list[MetricRef] = [ref for each in table.fields.values() for ref in each]
    refs += [ref for pair in table.hits for ref in pair]
    refs += [*table.block_size, *table.max_model_len]
    refs += [table.prefix_caching] if table.prefix_caching else []
    return frozenset(name.partition("{")[0] for ref in refs for name in names_at(ref))


_WANTED: Final[Mapping[str, frozenset[str]]] = {t.engine: _names_in(t) for t in TABLES}

TIER_SIGNALS: Final = ("host_capacity_tokens", "host_used_tokens", "host_hit_tokens_total")
"""Those of a tier behind the KV pool, which most engines do not have."""

SIGNALS: Final[tuple[str, ...]] = (
    "kv_usage",
    "capacity_tokens",
    "hit_tokens_total",
    "query_tokens_total",
    "running",
    "waiting",
    "preemptions_total",
    "computed_tokens_total",
    "prefill_s_total",
    "generated_tokens_total",
    "decode_s_total",
    *TIER_SIGNALS,
)
"""The fields of a Reading that an engine can report."""


@dataclass(frozen=True)
class PageReading:
    """Everything that one metrics page reports.

    Attributes:
        engine: "vllm", "sglang" or "dynamo".
        reading: The whole endpoint: counters, requests and capacity summed over its pools, usage
            of the fullest pool.
        readings: One Reading per KV pool, by its rank ("0", "1", ...; "model/rank" where several
            models share the page).
        backend: The engine behind a Dynamo worker, "vllm" or "sglang"; None elsewhere.
        version: The engine's version; None: the page does not report it.
        model: The served model; None: the page names several, or none.
        models: All models the page names.
        block_size: Tokens per KV block.
        max_model_len: Longest context [tokens].
        prefix_caching: Whether prefix caching is on; None: the page does not report it.
        smallest_capacity_tokens: KV pool of the smallest rank: the most that one agent can use.
        sources: Field of the Reading -> names of the metrics that it was read from.
    """

    engine: str
    reading: Reading
    readings: Mapping[str, Reading]
    backend: str | None = None
    version: str | None = None
    model: str | None = None
    models: tuple[str, ...] = ()
    block_size: int | None = None
    max_model_len: int | None = None
    prefix_caching: bool | None = None
    smallest_capacity_tokens: float | None = None
    sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def parse_page(text: str, at_s: float, *, model: str | None = None) -> PageReading:
    """Reads a metrics page of vLLM, SGLang or Dynamo, or SGLang's `/v1/loads` JSON.

    Args:
        text: body of the answer.
        at_s: time of the reading [s, the host's monotonic clock]; goes into each Reading.
        model: read only this model, on a page of several.

    Raises:
        ProbeError: the page is empty, HTML or not metrics, its engine is unknown, or it has no
            usable signal. The message says what was looked for and what was found.
    """
    start = text.lstrip("\ufeff \t\r\n")
    if not start:
        raise ProbeError("the page is empty: the server answered, but sent no metrics")
    if start[0] in "{[":
        return _loads_page(*sglang.read_loads(start), at_s)
    if start[0] == "<":
        raise ProbeError(
            f"got HTML instead of metrics, beginning {quote(start)}: this is a web page, "
            "perhaps of a login proxy. Give the address of the engine itself"
        )

    lines = sample_lines(text)
    names = list(dict.fromkeys(name for name, _ in lines))
    known = [table for table in TABLES if any(name.startswith(table.prefix) for name in names)]
    if not known:
        raise ProbeError(unknown_page(start, names, [table.prefix for table in TABLES]))
    # A Dynamo worker exports the names of its engine too, and the engine's table knows more.
    table, dynamo_too = known[0], dynamo.TABLE in known
    wanted = frozenset().union(*(_WANTED[each.engine] for each in known))
    samples = parse_samples([line for name, line in lines if name in wanted])
    models = _models(samples, table)
    if model is not None:
        if models and model not in models:
            raise ProbeError(f"the page serves {', '.join(models)}, not {model!r}")
        samples = [s for s in samples if s.labels.get(table.model_label, model) == model]
        models = (model,)

    pools, leftover = _pools(samples, table)
    fields, sources = _merge(
        {rank: _fields(series, table) for rank, series in pools.items()},
        # numbers without a rank count for the endpoint, not for one pool
        [_fields(leftover, each) for each in known],
    )
    if not sources:
        raise ProbeError(
            f"this is a page of {table.engine}, but it has none of its signals. "
            f"Looked for {listed(sorted(_WANTED[table.engine]))}; found {listed(names)}"
        )
    everything = Series(samples)
    readings = {rank: _reading(_values(_fields(pool, table)), at_s) for rank, pool in pools.items()}
    return PageReading(
        engine="dynamo" if dynamo_too else table.engine,
        backend=table.engine if dynamo_too and table is not dynamo.TABLE else None,
        reading=_reading(fields, at_s),
        readings=readings,
        model=models[0] if len(models) == 1 else None,
        models=models,
        block_size=_whole(_first(table.block_size, everything)),
        max_model_len=_whole(_first(table.max_model_len, everything)),
        prefix_caching=_prefix_caching(table, everything),
        smallest_capacity_tokens=_smallest_capacity(readings, fields),
        sources=sources,
    )


# -- from samples to pools -------------------------------------------------------------------

_Fields = dict[str, tuple[float, tuple[str, ...]]]  # field -> value, and its metric names


def _models(samples: Iterable[Sample], table: NameTable) -> tuple[str, ...]:
    named = (s.labels.get(table.model_label) for s in samples if s.name.startswith(table.prefix))
    return tuple(dict.fromkeys(name for name in named if name))


def _pools(samples: Sequence[Sample], table: NameTable) -> tuple[dict[str, Series], Series]:
    """The samples of each KV pool, and those that belong to no single pool."""
    wanted = _WANTED[table.engine]
    ours = [
        s
        for s in samples
        if s.name in wanted and not any(s.labels.get(label) for label in table.part_labels)
    ]
    others = [s for s in samples if s.name not in wanted]
    ranked = [(_rank(s, table), s.labels.get(table.model_label), s) for s in ours]
    pools: list[tuple[str, str | None]] = (
        list(dict.fromkeys((rank, model) for rank, model, _ in ranked if rank and model))
        or list(dict.fromkeys((rank, None) for rank, _, _ in ranked if rank))
        or list(dict.fromkeys(("0", model) for _, model, _ in ranked if model))
        or [("0", None)]
    )
    exact = set(pools)
    per_model = len({model for _, model in pools}) > 1

    held: dict[str, list[Sample]] = {}
    loose: list[Sample] = []
    for rank, model, sample in ranked:
        pool = (rank or "", model)
        if pool not in exact:
            # a sample that names its pool only in part belongs to it if just one pool fits
            fits = [
                each
                for each in pools
                if rank in (None, each[0]) and (model is None or each[1] in (None, model))
            ]
            if len(fits) != 1:
                loose.append(sample)
                continue
            pool = fits[0]
        pool_rank, pool_model = pool
        key = f"{pool_model}/{pool_rank}" if per_model else pool_rank
        held.setdefault(key, []).append(sample)
    in_order = sorted(held, key=lambda key: [_numeric(part) for part in key.split("/")])
    readable = {key: Series(_one_shard(held[key], table)) for key in in_order}
    return readable, Series(loose + others)


def _rank(sample: Sample, table: NameTable) -> str | None:
    given = [sample.labels[label] for label in table.pool_labels if sample.labels.get(label)]
    return "/".join(given) or None


def _one_shard(samples: list[Sample], table: NameTable) -> list[Sample]:
    """The samples of the lowest tensor- or pipeline-parallel rank: all report the same pool."""

    def shard(sample: Sample) -> list[tuple[int, str]] | None:
        given = [sample.labels[label] for label in table.shard_labels if label in sample.labels]
        return [_numeric(rank) for rank in given] or None

    lowest = min((s for s in map(shard, samples) if s is not None), default=None)
    return [s for s in samples if shard(s) in (None, lowest)]


def _numeric(rank: str) -> tuple[int, str]:
    """A sort key under which "2" comes before "10"."""
    return (int(rank), "") if rank.isascii() and rank.isdigit() and len(rank) < 10 else (-1, rank)


# -- from pools to readings ------------------------------------------------------------------


def _fields(series: Series, table: NameTable) -> _Fields:
    fields: _Fields = {}
    for hits in table.hits:
        hit, query = value_at(hits.hit, series), value_at(hits.query, series)
        if hit is not None and query is not None:
            fields["hit_tokens_total"] = hit, names_at(hits.hit)
            fields["query_tokens_total"] = query, names_at(hits.query)
            break
    for name, refs in table.fields.items():
        found = first_of(refs, series)
        value = None if found is None else _sound(name, found[0])
        if found is not None and value is not None:
            fields[name] = value, names_at(found[1])
    return fields


def _sound(name: str, value: float) -> float | None:
    """The value, or None if no engine can mean it, as if it were not reported."""
    if not math.isfinite(value):
        return None
    if name == "kv_usage":
        # engines compute 1 - free/all, which rounding puts slightly below 0 or above 1
        return min(1.0, max(0.0, value)) if -0.01 <= value <= 1.05 else None
    if name in ("capacity_tokens", "host_capacity_tokens"):
        return value if value > 0 else None
    return value if value >= 0 else None


def _merge(
    pools: Mapping[str, _Fields], page_wide: Sequence[_Fields]
) -> tuple[dict[str, float], dict[str, tuple[str, ...]]]:
    """Merges the pools of an endpoint. A field that only some pools report is not reported."""
    merged: dict[str, float] = {}
    sources: dict[str, tuple[str, ...]] = {}
    for name in SIGNALS:
        given = [fields[name] for fields in pools.values() if name in fields]
        if not given or len(given) < len(pools):
            given = [fields[name] for fields in page_wide if name in fields][:1]
        if given:
            values = [value for value, _ in given]
            together = _sound(name, max(values) if name == "kv_usage" else sum(values))
            if together is not None:
                merged[name] = together
                sources[name] = given[0][1]
    return merged, sources


def _values(fields: _Fields) -> dict[str, float]:
    return {name: value for name, (value, _) in fields.items()}


def _reading(fields: Mapping[str, float], at_s: float) -> Reading:
    return Reading(at_s=at_s, **fields)


def _smallest_capacity(
    readings: Mapping[str, Reading], merged: Mapping[str, float]
) -> float | None:
    known = [r.capacity_tokens for r in readings.values() if r.capacity_tokens is not None]
    return min(known, default=merged.get("capacity_tokens"))


def _loads_page(
    version: str | None, pools: Mapping[str, Mapping[str, float | None]], at_s: float
) -> PageReading:
    sound: dict[str, _Fields] = {}
    for rank, given in pools.items():
        checked = {k: _sound(k, v) for k, v in given.items() if v is not None}
        source = (sglang.LOADS_PATH,)
        sound[rank] = {name: (v, source) for name, v in checked.items() if v is not None}
    fields, sources = _merge(sound, [])
    if not sources:
        raise ProbeError(f"{sglang.LOADS_PATH} of SGLang has none of its usual numbers")
    readings = {rank: _reading(_values(each), at_s) for rank, each in sound.items()}
    return PageReading(
        engine="sglang",
        reading=_reading(fields, at_s),
        readings=readings,
        version=version,
        smallest_capacity_tokens=_smallest_capacity(readings, fields),
        sources=sources,
    )


def _first(refs: Iterable[MetricRef], series: Series) -> float | None:
    found = first_of(refs, series)
    return found[0] if found else None


def _whole(value: float | None) -> int | None:
    return int(value) if value is not None and value > 0 else None


def _prefix_caching(table: NameTable, series: Series) -> bool | None:
    text = text_at(table.prefix_caching, series) if table.prefix_caching else None
    return {"true": True, "false": False}.get((text or "").lower())
