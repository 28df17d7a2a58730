"""What the pages and answers of an endpoint say about it, as findings. Pure: no network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from concur_agents.probes.diagnosis import CacheProof, Finding
from concur_agents.probes.page import PageReading
from concur_agents.probes.pinning import PinProof
from concur_agents.probes.sessions import SESSION_SWITCH


def page_findings(
    page: PageReading | None, engine: str | None, about: Mapping[str, Any]
) -> Iterator[Finding]:
    """What the metrics page lacks.

    Args:
        page: None: there is none.
        engine: as recognised by page or model list.
        about: switches of the engine, where it has a page for them.
    """
    if page is None:
        if engine == "sglang":
            yield Finding(
                level="info",
                text="SGLang has a metrics page only with a flag",
                flag="--enable-metrics",
            )
        return
    sources = page.sources
    if "hit_tokens_total" not in sources:
        loads = any("/v1/loads" in names for names in sources.values())
        yield Finding(
            level="warning",
            text="No hit counters: only your agents' own answers show the hit deficit",
            flag="--enable-metrics" if loads else None,
        )
    if "capacity_tokens" not in sources:
        where = "; a Dynamo frontend reports it, its workers do not" if engine == "dynamo" else ""
        yield Finding(
            level="warning", text=f"No KV capacity: the governor learns it from misses{where}"
        )
    if any("prefix_cache_queries" in name for name in sources.get("query_tokens_total", ())):
        yield Finding(
            level="info",
            text="This vLLM counts look-ups, which under pressure are several times the prompt "
            "tokens; newer versions also count prompt tokens",
        )
    interval = about.get("decode_log_interval")
    if engine == "sglang" and isinstance(interval, int) and interval > 10:
        yield Finding(
            level="info",
            text=f"SGLang refreshes its gauges every {interval} decode steps; a governor needs 10",
            flag="--decode-log-interval 10",
        )
    sessions = about.get(SESSION_SWITCH)
    if engine == "sglang" and isinstance(sessions, bool):
        yield Finding(
            level="info",
            text="A governor says which agents are done, and their contexts are evicted first"
            if sessions
            else "SGLang can evict contexts of agents that are done first, but needs a flag for it",
            flag=None if sessions else "--enable-session-radix-cache",
        )
    if len(page.readings) > 1:
        yield Finding(
            level="info",
            text=ranks_advice(page),
        )
    if page.engine == "dynamo" and page.backend is None:
        yield Finding(
            level="info",
            text="The frontend reports the KV pool of one worker. With several workers, govern "
            "each at its own address",
        )


def ranks_advice(page: PageReading) -> str:
    """What to do about a page with several pools."""
    count = len(page.readings)
    text = (
        f"{count} KV pools answer here. Where calls cannot be pinned to each, a governor governs "
        "their sum: keep each agent on one of them (session affinity), or it loses its prefix"
    )
    if page.engine in ("vllm", "sglang") and all(rank.isdigit() for rank in page.readings):
        text += (
            ". If they are data-parallel ranks, a governor finds that out by itself, and "
            f"ranks={count} makes each a pool of its own at once"
        )
    else:
        text += f". They are named {', '.join(page.readings)}, so ranks= cannot tell them apart"
    return text


def missing_rank(page: PageReading, rank: str) -> str:
    """Why a page has no reading of `rank`, and what to do."""
    shown = ", ".join(page.readings)
    text = f"its page shows no rank {rank}, only {shown}"
    if not all(each.isdigit() for each in page.readings):
        return f"{text}: they are named otherwise, so leave ranks= away"
    flag = ", with --enable-metrics-for-all-schedulers" if page.engine == "sglang" else ""
    return f"{text}: ranks= is as many engines as it shows{flag}"


def size_findings(page: PageReading | None, max_model_len: int | None) -> Iterator[Finding]:
    """Whether the KV pool is small for the longest context [tokens]."""
    pool = page.smallest_capacity_tokens if page else None
    is_vllm = page is not None and "vllm" in (page.engine, page.backend)
    # vLLM refuses to start unless one request of full length fits.
    if is_vllm and pool is not None and max_model_len is not None and pool < max_model_len:
        yield Finding(
            level="warning",
            text=f"The page reports a KV pool of {pool:,.0f} tokens, and the engine serves "
            f"contexts of {max_model_len:,}, which it would not if that were all: a hybrid "
            "model, whose blocks count in another unit. A governor uses more as soon as calls "
            "and cache hits prove more, and says so once",
        )
        return
    if pool is not None and max_model_len is not None and pool < 2 * max_model_len:
        yield Finding(
            level="info",
            text=f"The KV pool ({pool:,.0f} tokens) holds fewer than two full contexts of "
            f"{max_model_len:,} tokens: long agents will run one after another",
        )


def pinning_finding(proof: PinProof) -> Finding:
    """Whether each of several pools can be governed by itself."""
    text = proof.text
    if proof.works:
        text += (
            ", and a governor governs each by itself; "
            f"Governor(url, ranks={proof.ranks}) spares it the proof"
        )
    return Finding(level="info", text=text)


def caching_off_finding(engine: str | None) -> Finding:
    """Prefix caching is off."""
    text = (
        "Prefix caching is off: each step prefills its whole context, whatever runs beside it, and "
        "a governor can save nothing; "
    )
    if engine == "sglang":
        return Finding(level="error", text=text + "start it without --disable-radix-cache")
    return Finding(level="error", text=text + "switch it on", flag="--enable-prefix-caching")


def proof_findings(
    proof: CacheProof, engine: str | None, page: PageReading | None
) -> Iterator[Finding]:
    """What the two requests with the same prompt show."""
    if proof.second_cached_tokens is None:
        flags = {"vllm": "--enable-prompt-tokens-details", "sglang": "--enable-cache-report"}
        flag = flags.get((page.backend if page else None) or engine or "")
        text = (
            "Answers do not report how many prompt tokens were cached, so evictions cannot be "
            "seen agent by agent"
        )
        if flag is None:
            text += "; vLLM needs --enable-prompt-tokens-details, SGLang --enable-cache-report"
        yield Finding(level="warning", text=text, flag=flag)
    elif not proof.works:
        yield Finding(
            level="warning",
            text=f"The same {proof.prompt_tokens} prompt tokens were sent twice and none was "
            "cached: is prefix caching off, does a router send each request elsewhere, or is the "
            "cache under too much pressure now?",
        )
    if proof.hit_counter_rose_tokens == 0 and (proof.works or proof.second_cached_tokens is None):
        yield Finding(
            level="warning",
            text="The engine's hit counter did not rise with it: this metrics page may belong to "
            "another replica, or lag behind",
        )
