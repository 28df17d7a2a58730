"""Every page recorded from a real engine, with the numbers it must give."""

from __future__ import annotations

from pathlib import Path

import pytest

from concur_agents.probes import SIGNALS, PageReading, parse_page
from concur_agents.probes.replay import load_page

PAGES = Path(__file__).parents[1] / "fixtures" / "metrics"

IDLE = {"running": 0.0, "waiting": 0.0}
VLLM = IDLE | {"kv_usage": 0.0, "capacity_tokens": 9600.0, "host_hit_tokens_total": 0.0}
SGLANG = VLLM
LOADS = IDLE | {"kv_usage": 0.0, "capacity_tokens": 9600.0}

# Everything that each page reports; a signal that is not listed must be None, not 0.
EXPECTED: dict[str, dict[str, float]] = {
    "vllm-0.32.0-cpu-after-boot.prom.gz": VLLM
    | {"hit_tokens_total": 0, "query_tokens_total": 25, "preemptions_total": 0}
    | {"computed_tokens_total": 25, "prefill_s_total": 0.0544498599}
    | {"generated_tokens_total": 16, "decode_s_total": 0.1981501509},
    "vllm-0.32.0-cpu-sweep-cap4.prom.gz": VLLM
    | {"hit_tokens_total": 204_224, "query_tokens_total": 405_475, "preemptions_total": 1}
    | {"computed_tokens_total": 201_251, "prefill_s_total": 132.5404823670}
    | {"generated_tokens_total": 6_164, "decode_s_total": 284.6428852789},
    "vllm-0.32.0-cpu-sweep-cap16.prom.gz": VLLM
    | {"hit_tokens_total": 204_224, "query_tokens_total": 608_179, "preemptions_total": 1}
    | {"computed_tokens_total": 403_955, "prefill_s_total": 223.4380744780}
    | {"generated_tokens_total": 9_236, "decode_s_total": 524.6402804749},
    # written as 1.216291e+06
    "vllm-0.32.0-cpu-sweep-cap3.prom.gz": VLLM
    | {"hit_tokens_total": 511_936, "query_tokens_total": 1_216_291, "preemptions_total": 2}
    | {"computed_tokens_total": 704_355, "prefill_s_total": 367.6325340070}
    | {"generated_tokens_total": 18_452, "decode_s_total": 884.2790730049},
    "vllm-0.32.0-cpu-kvmetrics-cap3.prom.gz": VLLM
    | {"hit_tokens_total": 62_208, "query_tokens_total": 86_020, "preemptions_total": 0}
    | {"computed_tokens_total": 23_812, "prefill_s_total": 55.8735631829}
    | {"generated_tokens_total": 736, "decode_s_total": 50.3406912429},
    "vllm-0.32.0-cpu-kvmetrics-cap9.prom.gz": VLLM
    | {"hit_tokens_total": 62_208, "query_tokens_total": 172_015, "preemptions_total": 0}
    | {"computed_tokens_total": 109_807, "prefill_s_total": 222.1439183910}
    | {"generated_tokens_total": 1_456, "decode_s_total": 472.7108033079},
    # SGLang has no retraction counter before the first retraction, and times decoding only of
    # streamed requests; these were not.
    "sglang-0.5.23-cpu-after-boot.prom.gz": SGLANG
    | {"hit_tokens_total": 0, "query_tokens_total": 1}
    | {"computed_tokens_total": 1, "prefill_s_total": 0.0435506910},
    "sglang-0.5.23-cpu-sweep-cap3.prom.gz": SGLANG
    | {"hit_tokens_total": 84_969, "query_tokens_total": 116_101}
    | {"computed_tokens_total": 31_132, "prefill_s_total": 37.0201941520}
    | {"generated_tokens_total": 1_440},
    "sglang-0.5.23-cpu-sweep-cap12.prom.gz": SGLANG
    | {"hit_tokens_total": 86_742, "query_tokens_total": 232_201}
    | {"computed_tokens_total": 145_459, "prefill_s_total": 133.0267154740}
    | {"generated_tokens_total": 2_880},
    "sglang-0.5.23-cpu-sweep-cap1.prom.gz": SGLANG
    | {"hit_tokens_total": 171_729, "query_tokens_total": 348_301}
    | {"computed_tokens_total": 176_572, "prefill_s_total": 152.3885614980}
    | {"generated_tokens_total": 4_320},
    # /v1/loads has no hit counters at all
    "sglang-0.5.23-cpu-v1-loads-boot.json": LOADS
    | {"computed_tokens_total": 0, "prefill_s_total": 0.0},
    "sglang-0.5.23-cpu-v1-loads-cap3.json": LOADS
    | {"computed_tokens_total": 31_131, "prefill_s_total": 18.334582},
    "sglang-0.5.23-cpu-v1-loads-cap12.json": LOADS
    | {"computed_tokens_total": 145_458, "prefill_s_total": 57.301471},
    "sglang-0.5.23-cpu-v1-loads-cap1.json": LOADS
    | {"computed_tokens_total": 176_571, "prefill_s_total": 76.667054},
    # 600 blocks of 16 tokens
    "dynamo-1.6.1-frontend-after.prom.gz": IDLE
    | {"capacity_tokens": 9_600, "hit_tokens_total": 668_816, "query_tokens_total": 1_392_073}
    | {"generated_tokens_total": 21_520, "decode_s_total": 190.3448817260},
    "dynamo-1.6.1-mocker-worker-after.prom.gz": IDLE
    | {"kv_usage": 0.0, "preemptions_total": 9, "decode_s_total": 190.0526185379},
    "dynamo-1.6.1-mocker-worker-vllm-after.prom.gz": IDLE
    | {"kv_usage": 0.0, "preemptions_total": 1, "decode_s_total": 22.4806249160},
    "dynamo-1.6.1-mocker-worker-sglang-after.prom.gz": IDLE | {"decode_s_total": 9.4411317469},
}


def page(name: str) -> PageReading:
    return parse_page(load_page(PAGES / name), at_s=7.0)


def recorded() -> list[str]:
    return sorted(
        path.name
        for path in PAGES.iterdir()
        if path.name.endswith(".prom.gz") or "-loads-" in path.name
    )


@pytest.mark.parametrize("name", recorded())
def test_a_recorded_page_gives_exactly_these_numbers(name: str) -> None:
    reading = page(name).reading
    told = {signal: getattr(reading, signal) for signal in SIGNALS}
    assert {k: v for k, v in told.items() if v is not None} == pytest.approx(EXPECTED[name])
    assert reading.at_s == 7.0


@pytest.mark.parametrize("name", recorded())
def test_a_page_of_one_pool_gives_that_pool_as_rank_0(name: str) -> None:
    whole = page(name)
    assert dict(whole.readings) == {"0": whole.reading}
    assert whole.smallest_capacity_tokens == whole.reading.capacity_tokens


@pytest.mark.parametrize("name", recorded())
def test_every_signal_says_where_it_was_read(name: str) -> None:
    assert set(page(name).sources) == set(EXPECTED[name])


def test_a_page_of_two_ranks_has_two_pools() -> None:
    whole = parse_page(load_page(PAGES / "several" / "vllm-0.24.0-h200-dp2.prom.gz"), at_s=7.0)
    assert {rank: each.capacity_tokens for rank, each in whole.readings.items()} == {
        "0": 200_000.0,
        "1": 200_000.0,
    }
    assert whole.reading.capacity_tokens == 400_000.0
    assert whole.smallest_capacity_tokens == 200_000.0
    assert whole.reading.kv_usage is None, "not on the page before the first step"


def test_the_engine_is_recognised_by_its_names() -> None:
    engines = {name: (page(name).engine, page(name).backend) for name in recorded()}
    assert {e for n, e in engines.items() if n.startswith("vllm")} == {("vllm", None)}
    assert {e for n, e in engines.items() if n.startswith("sglang")} == {("sglang", None)}
    assert {n: e for n, e in engines.items() if n.startswith("dynamo")} == {
        "dynamo-1.6.1-frontend-after.prom.gz": ("dynamo", None),
        "dynamo-1.6.1-mocker-worker-after.prom.gz": ("dynamo", "vllm"),
        "dynamo-1.6.1-mocker-worker-vllm-after.prom.gz": ("dynamo", "vllm"),
        "dynamo-1.6.1-mocker-worker-sglang-after.prom.gz": ("dynamo", "sglang"),
    }


@pytest.mark.parametrize(
    ("name", "block_size", "max_model_len", "prefix_caching"),
    [
        ("vllm-0.32.0-cpu-after-boot.prom.gz", 32, None, True),
        ("sglang-0.5.23-cpu-after-boot.prom.gz", 1, 4096, None),
        # the frontend writes a context length of 0 where it does not know it
        ("dynamo-1.6.1-frontend-after.prom.gz", 16, None, None),
    ],
)
def test_a_page_reports_what_does_not_change(
    name: str, block_size: int, max_model_len: int | None, prefix_caching: bool | None
) -> None:
    told = page(name)
    assert told.model == "tiny"
    assert told.block_size == block_size
    assert told.max_model_len == max_model_len
    assert told.prefix_caching is prefix_caching


def test_loads_report_the_version() -> None:
    assert page("sglang-0.5.23-cpu-v1-loads-boot.json").version == "0.5.23"


@pytest.mark.parametrize(
    ("before", "after", "hit_rate"),
    [
        # the share of cached prompt tokens measured while 16, 12 and 3 agents ran at once
        ("vllm-0.32.0-cpu-sweep-cap4.prom.gz", "vllm-0.32.0-cpu-sweep-cap16.prom.gz", 0.0),
        ("sglang-0.5.23-cpu-sweep-cap3.prom.gz", "sglang-0.5.23-cpu-sweep-cap12.prom.gz", 0.015),
        ("sglang-0.5.23-cpu-after-boot.prom.gz", "sglang-0.5.23-cpu-sweep-cap3.prom.gz", 0.732),
    ],
)
def test_counters_of_two_pages_give_the_hit_rate_between_them(
    before: str, after: str, hit_rate: float
) -> None:
    one, two = page(before).reading, page(after).reading
    hit = (two.hit_tokens_total or 0) - (one.hit_tokens_total or 0)
    query = (two.query_tokens_total or 0) - (one.query_tokens_total or 0)
    assert hit / query == pytest.approx(hit_rate, abs=0.001)
