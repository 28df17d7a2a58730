"""A metrics page in, a :class:`Reading` per KV pool and one for the whole endpoint out.

Pure: no network, no clock, no memory. Engines are recognised by their names; what each name
means is in the tables (``vllm.py``, ``sglang.py``, ``dynamo.py``).

Several pools on one page (data-parallel ranks, replicas behind a router) are *never averaged*.
Each has its own :class:`Reading`; the merged one describes the endpoint as the one pool that one
governor governs: counters, requests and capacities are summed, usage is that of the fullest pool.
An agent's prefix lives in one pool only, so a single agent can never have the merged capacity to
itself: that bound is ``smallest_capacity_tokens``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from concur_agents.core.types import Reading
from concur_agents.errors import ProbeError
from concur_agents.probes import dynamo, sglang, vllm
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

TABLES: Final[tuple[NameTable, ...]] = (vllm.TABLE, sglang.TABLE, dynamo.TABLE)


def _names_in(table: NameTable) -> frozenset[str]:
    refs: list[MetricRef] = [ref for each in table.fields.values() for ref in each]
    refs += [ref for pair in table.hits for ref in pair]
    refs += [*table.block_size, *table.max_model_len]
    refs += [table.prefix_caching] if table.prefix_caching else []
    return frozenset(name.partition("{")[0] for ref in refs for name in names_at(ref))


_WANTED: Final[Mapping[str, frozenset[str]]] = {t.engine: _names_in(t) for t in TABLES}

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
)
"""The fields of a Reading that an engine can give."""


@dataclass(frozen=True)
class PageReading:
    """All that one metrics page says.

    Attributes:
        engine: "vllm", "sglang" or "dynamo".
        reading: The whole endpoint: counters, requests and capacity summed over its pools, usage
            of the fullest one.
        readings: One Reading per KV pool, by its rank ("0", "1", ...; "model/rank" where several
            models share the page).
        backend: The engine behind a Dynamo worker, "vllm" or "sglang"; None elsewhere.
        version: The engine's version, where the page says it.
        model: The served model, or None when the page names several or none.
        models: All models the page names.
        block_size: Tokens per KV block.
        max_model_len: Longest context [tokens].
        prefix_caching: Whether prefix caching is on; None: the page does not say.
        smallest_capacity_tokens: KV pool of the smallest rank: the most that one agent can use.
        sources: Where each signal was read: field of the Reading -> metric names.
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
    """Read a metrics page of vLLM, SGLang or Dynamo, or SGLang's ``/v1/loads`` JSON.

    Args:
        text: The body of the answer.
        at_s: When it was read [s, the host's monotonic clock]; goes into each Reading.
        model: Read only this model, on a page that serves several.

    Raises:
        ProbeError: empty, HTML, not metrics, an engine we do not know, or a known engine without
            a single usable signal. The message says what was looked for and what was found.
    """
    start = text.lstrip("\ufeff \t\r\n")
    if not start:
        raise ProbeError("the page is empty: the server answered, but sent no metrics")
    if start[0] in "{[":
        return _loads_page(*sglang.read_loads(start), at_s)
    if start[0] == "<":
        raise ProbeError(
            f"got HTML instead of metrics, beginning {_quote(start)}: this is a web page, "
            "perhaps of a login proxy. Give the address of the engine itself"
        )

    lines = _lines(text)
    names = list(dict.fromkeys(name for name, _ in lines))
    known = [table for table in TABLES if any(name.startswith(table.prefix) for name in names)]
    if not known:
        raise ProbeError(_unknown(start, names))
    # A Dynamo worker passes its engine's names through; the engine's table knows them best.
    table, dynamo_too = known[0], dynamo.TABLE in known
    wanted = frozenset().union(*(_WANTED[each.engine] for each in known))
    samples = _samples([line for name, line in lines if name in wanted])
    models = _models(samples, table)
    if model is not None:
        if models and model not in models:
            raise ProbeError(f"the page serves {', '.join(models)}, not {model!r}")
        samples = [s for s in samples if s.labels.get(table.model_label, model) == model]
        models = (model,)

    pools, leftover = _pools(samples, table)
    fields, sources = _merge(
        {rank: _fields(series, table) for rank, series in pools.items()},
        # what the page says without a rank counts for the endpoint, not for any one pool
        [_fields(leftover, each) for each in known],
    )
    if not sources:
        raise ProbeError(
            f"this is a page of {table.engine}, but none of its signals is on it. "
            f"Looked for {_listed(sorted(_WANTED[table.engine]))}; found {_listed(names)}"
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


# -- the text --------------------------------------------------------------------------------

_NAME = re.compile(r"[A-Za-z_:][A-Za-z0-9_:]*(?=[{ \t])")
# Ray replaces the colon and puts its own prefix before it.
_RAY = re.compile(r"ray_(vllm|sglang)[_:]")


def _lines(text: str) -> list[tuple[str, str]]:
    """The sample lines of a page, each with its metric's name."""
    matches = ((_NAME.match(line), line) for line in text.split("\n"))
    return [(_plain(match.group()), line.rstrip("\r")) for match, line in matches if match]


def _plain(name: str) -> str:
    return _RAY.sub(r"\1:", name, count=1) if name.startswith("ray_") else name


def _samples(lines: Sequence[str]) -> list[Sample]:
    try:
        return _parse(lines)
    except ProbeError:
        for line in lines:  # once more, one by one, to say which line it was
            try:
                _parse([line])
            except ProbeError as error:
                raise ProbeError(
                    f"a line of the metrics page cannot be read: {_quote(line)}"
                ) from error.__cause__
        raise


def _parse(lines: Sequence[str]) -> list[Sample]:
    try:
        return [
            Sample(_plain(sample.name), sample.labels, float(sample.value))
            for family in text_string_to_metric_families("\n".join(lines) + "\n")
            for sample in family.samples
        ]
    # The parser promises nothing about what it raises on a broken page.
    except Exception as error:
        raise ProbeError(f"the metrics page cannot be read: {error}") from error


# -- from samples to pools -------------------------------------------------------------------

_Fields = dict[str, tuple[float, tuple[str, ...]]]  # field -> its value, and where it stood


def _models(samples: Iterable[Sample], table: NameTable) -> tuple[str, ...]:
    named = (s.labels.get(table.model_label) for s in samples if s.name.startswith(table.prefix))
    return tuple(dict.fromkeys(name for name in named if name))


def _pools(samples: Sequence[Sample], table: NameTable) -> tuple[dict[str, Series], Series]:
    """The samples of each KV pool, and those that name no pool while there are several."""
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
            # what does not name its pool in full belongs to it where only one can be meant
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
    """Only the lowest of the tensor- and pipeline-parallel ranks that report one pool."""

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
    """The value, or None where no engine can mean it: then it is as if it were not told."""
    if not math.isfinite(value):
        return None
    if name == "kv_usage":
        # 1 - free/all is a rounding error below 0 at times, and a hair above 1 when full
        return min(1.0, max(0.0, value)) if -0.01 <= value <= 1.05 else None
    if name == "capacity_tokens":
        return value if value > 0 else None
    return value if value >= 0 else None


def _merge(
    pools: Mapping[str, _Fields], page_wide: Sequence[_Fields]
) -> tuple[dict[str, float], dict[str, tuple[str, ...]]]:
    """One endpoint out of its pools. A field that only some pools give is not given at all."""
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
    told = [r.capacity_tokens for r in readings.values() if r.capacity_tokens is not None]
    return min(told, default=merged.get("capacity_tokens"))


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
        raise ProbeError(f"{sglang.LOADS_PATH} of SGLang holds none of its usual numbers")
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


# -- words for people ------------------------------------------------------------------------

_STRANGERS: Final[Mapping[str, str]] = {
    "trtllm_": "TensorRT-LLM's page is not read yet; agents can be governed by `cached_tokens` "
    "alone: give no metrics address, or a fixed limit",
    "lmdeploy:": "LMDeploy's page gives no KV capacity and is not read yet; a fixed limit works",
    "llamacpp:": "llama.cpp exports no KV signal; use a fixed limit of as many agents as it has "
    "slots (-np)",
    "tgi_": "TGI exports no KV signal; use a fixed limit",
    "smg_": "This is SGLang's router, which knows nothing of KV caches; give a worker's address",
    "sgl_router_": "This is SGLang's router, which knows nothing of KV caches; give a worker's "
    "address",
    "python_": "Only process metrics are here: was vLLM started with --disable-log-stats, or is "
    "this another program?",
    "process_": "Only process metrics are here: was vLLM started with --disable-log-stats, or is "
    "this another program?",
}


_ADVICE = (
    "Give the address of the engine itself; for another engine a probe of your own, or a fixed "
    "limit"
)


def _unknown(start: str, names: Sequence[str]) -> str:
    looked_for = ", ".join(f"{table.prefix}*" for table in TABLES)
    if not names:
        begins = f"it begins {_quote(start)}"
        return f"this is no metrics page; {begins}. Looked for {looked_for}. {_ADVICE}"
    hint = next((h for p, h in _STRANGERS.items() if any(n.startswith(p) for n in names)), _ADVICE)
    return f"no engine recognised: looked for {looked_for}; found {_listed(names)}. {hint}"


def _listed(names: Sequence[str], most: int = 5) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _quote(text: str, most: int = 60) -> str:
    line = text.split("\n", 1)[0].strip()
    return repr(line if len(line) <= most else line[:most] + "...")
