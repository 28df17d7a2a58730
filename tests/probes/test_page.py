"""Old names, other labels, several pools, and pages that are none."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from concur_agents.core.types import Reading
from concur_agents.errors import ProbeError
from concur_agents.probes import parse_page
from concur_agents.probes.replay import load_page

PAGES = Path(__file__).parents[1] / "fixtures" / "metrics"


def read(text: str, **options: str) -> Reading:
    return parse_page(text, 0.0, **options).reading


# -- names -----------------------------------------------------------------------------------


def test_old_vllm_names_are_understood() -> None:
    reading = read(
        'vllm:gpu_cache_usage_perc{model_name="m"} 0.5\n'
        'vllm:gpu_prefix_cache_queries_total{model_name="m"} 100\n'
        'vllm:gpu_prefix_cache_hits_total{model_name="m"} 80\n'
        'vllm:num_requests_waiting{model_name="m"} 3\n'
        'vllm:time_per_output_token_seconds_sum{model_name="m"} 1.5\n'
        'vllm:cache_config_info{block_size="16",num_gpu_blocks="1000",cache_dtype="auto"} 1\n'
    )
    assert reading == Reading(
        at_s=0.0, kv_usage=0.5, hit_tokens_total=80, query_tokens_total=100, waiting=3,
        capacity_tokens=16_000, decode_s_total=1.5,
    )  # fmt: skip


def test_new_names_win_over_old_ones_on_the_same_page() -> None:
    reading = read("vllm:gpu_cache_usage_perc 0.1\nvllm:kv_cache_usage_perc 0.9\n")
    assert reading.kv_usage == 0.9


def test_prompt_tokens_win_over_lookups_that_also_count_failed_attempts() -> None:
    """Under pressure vLLM 0.24 counted each look-up of a waiting request: 490 for 100 tokens."""
    reading = read(
        "vllm:prefix_cache_queries_total 490\n"
        "vllm:prefix_cache_hits_total 440\n"
        "vllm:prompt_tokens_total 100\n"
        "vllm:prompt_tokens_cached_total 90\n"
    )
    assert (reading.hit_tokens_total, reading.query_tokens_total) == (90, 100)


def test_hits_of_one_source_are_never_set_against_queries_of_another() -> None:
    reading = read(
        "vllm:prompt_tokens_cached_total 90\nvllm:prefix_cache_queries_total 490\n"
        "vllm:num_requests_running 1\n"
    )
    assert (reading.hit_tokens_total, reading.query_tokens_total) == (None, None)


def test_hits_in_a_kv_connector_are_hits() -> None:
    reading = read(
        "vllm:prefix_cache_queries_total 100\n"
        "vllm:prefix_cache_hits_total 60\n"
        "vllm:external_prefix_cache_queries_total 40\n"
        "vllm:external_prefix_cache_hits_total 30\n"
    )
    assert (reading.hit_tokens_total, reading.query_tokens_total) == (90, 100)


def test_vllm_says_the_size_of_its_tier_in_gib_and_what_a_token_takes_in_bytes() -> None:
    """16 GiB at 131,072 bytes per token are 131,072 tokens; before the first load none is known."""
    config = 'vllm:cache_config_info{block_size="16",kv_offloading_size="16.0"} 1\n'
    source = 'vllm:prompt_tokens_by_source_total{source="external_kv_transfer"} '
    assert read(config + source + "0\n").host_capacity_tokens is None
    for name in (
        "vllm:kv_offload_load_bytes_total",
        'vllm:kv_offload_total_bytes_total{transfer_type="CPU_to_GPU"}',
    ):
        reading = read(f"{config}{source}1000\n{name} 131072000\n")
        assert reading.host_capacity_tokens == 131_072
        assert reading.host_hit_tokens_total == 1_000


def test_before_a_load_what_was_stored_says_what_a_token_takes() -> None:
    reading = read(
        'vllm:cache_config_info{block_size="16",kv_offloading_size="16.0"} 1\n'
        'vllm:prompt_tokens_by_source_total{source="local_compute"} 900\n'
        "vllm:generation_tokens_total 100\nvllm:kv_offload_store_bytes_total 131072000\n"
    )
    assert reading.host_capacity_tokens == 131_072


def test_the_simple_tier_of_vllm_says_its_size_in_blocks() -> None:
    reading = read(
        'vllm:cache_config_info{block_size="16"} 1\n'
        'vllm:simple_kv_offload_info{backend="simple",capacity_blocks="1000"} 1\n'
    )
    assert reading.host_capacity_tokens == 16_000


def test_what_transfers_pin_is_not_what_the_tier_of_vllm_holds() -> None:
    """`kv_offload_cpu_cache_usage_perc` reads 0 beside a tier that is full."""
    reading = read("vllm:num_requests_running 1\nvllm:kv_offload_cpu_cache_usage_perc 0.25\n")
    assert reading.host_used_tokens is None


def test_sglang_says_what_its_host_pool_holds() -> None:
    reading = read(
        "sglang:hicache_host_used_tokens 5000\n"
        "sglang:hicache_host_total_tokens 679296\n"
        'sglang:load_back_tokens_total{pool="kv"} 320\n'
    )
    assert (reading.host_used_tokens, reading.host_capacity_tokens) == (5_000, 679_296)
    assert reading.host_hit_tokens_total == 320


def test_hybrid_models_have_the_capacity_vllm_says_not_blocks_times_size() -> None:
    reading = read(
        'vllm:cache_config_info{block_size="16",num_gpu_blocks="1000",'
        'kv_cache_size_tokens="9000"} 1\n'
    )
    assert reading.capacity_tokens == 9000


def test_a_capacity_not_set_yet_is_not_reported() -> None:
    reading = read(
        'vllm:cache_config_info{block_size="16",num_gpu_blocks="None",'
        'kv_cache_size_tokens="None"} 1\nvllm:num_requests_running 0\n'
    )
    assert reading.capacity_tokens is None


def test_created_twins_are_not_added_to_their_counters() -> None:
    reading = read(
        "vllm:num_preemptions_total 3\nvllm:num_preemptions_created 1.7953317e+09\n"
        "vllm:prompt_tokens_total 1.5e+03\nvllm:prompt_tokens_created 1.7953317e+09\n"
        "vllm:prompt_tokens_cached_total 1e3\n"
    )
    assert reading.preemptions_total == 3
    assert (reading.hit_tokens_total, reading.query_tokens_total) == (1000, 1500)


def test_requests_that_wait_for_a_grammar_do_not_wait_for_room() -> None:
    reading = read(
        "vllm:num_requests_waiting 5\n"
        'vllm:num_requests_waiting_by_reason{reason="capacity"} 2\n'
        'vllm:num_requests_waiting_by_reason{reason="deferred"} 3\n'
    )
    assert reading.waiting == 2


def test_names_as_ray_writes_them_are_understood() -> None:
    page = parse_page(
        'ray_vllm_kv_cache_usage_perc{ReplicaId="a",engine="0",model_name="m"} 0.25\n'
        'ray_vllm_kv_cache_usage_perc{ReplicaId="b",engine="0",model_name="m"} 0.75\n',
        0.0,
    )
    assert page.engine == "vllm"
    assert {rank: r.kv_usage for rank, r in page.readings.items()} == {"a/0": 0.25, "b/0": 0.75}


def test_sglang_before_effective_tokens_is_read_from_realtime_tokens() -> None:
    reading = read(
        'sglang:realtime_tokens_total{mode="prefill_compute"} 40\n'
        'sglang:realtime_tokens_total{mode="prefill_cache"} 60\n'
        'sglang:realtime_tokens_total{mode="decode"} 7\n'
    )
    assert (reading.hit_tokens_total, reading.query_tokens_total) == (60, 100)


def test_a_mode_that_has_not_happened_yet_is_zero_beside_its_sisters() -> None:
    reading = read('sglang:realtime_tokens_total{mode="prefill_compute"} 40\n')
    assert (reading.hit_tokens_total, reading.query_tokens_total) == (0, 40)


def test_sglang_hits_in_host_memory_and_storage_are_hits() -> None:
    reading = read(
        'sglang:prefill_effective_tokens_total{mode="input"} 10\n'
        'sglang:prefill_effective_tokens_total{mode="device_hit"} 50\n'
        'sglang:prefill_effective_tokens_total{mode="host_hit"} 30\n'
        'sglang:prefill_effective_tokens_total{mode="storage_hit"} 10\n'
    )
    assert (reading.hit_tokens_total, reading.query_tokens_total) == (90, 100)
    assert reading.computed_tokens_total == 10


def test_the_sticky_hit_rate_gauge_of_sglang_is_not_read() -> None:
    """It holds the last batch's rate for ever: 0.87 was still there on an idle server."""
    reading = read("sglang:cache_hit_rate 0.87\nsglang:num_running_reqs 0\n")
    assert (reading.hit_tokens_total, reading.query_tokens_total) == (None, None)


def test_a_hybrid_model_is_as_full_as_its_fullest_pool() -> None:
    reading = read(
        "sglang:full_token_usage 0.2\nsglang:swa_token_usage 0.7\nsglang:mamba_usage 0\n"
        "sglang:token_usage 0.71\n"
    )
    assert reading.kv_usage == 0.7


# -- several pools ---------------------------------------------------------------------------

TWO_RANKS = """
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.2
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.8
vllm:num_requests_running{engine="0",model_name="m"} 3
vllm:num_requests_running{engine="1",model_name="m"} 4
vllm:prompt_tokens_total{engine="0",model_name="m"} 1000
vllm:prompt_tokens_total{engine="1",model_name="m"} 2000
vllm:prompt_tokens_cached_total{engine="0",model_name="m"} 900
vllm:prompt_tokens_cached_total{engine="1",model_name="m"} 100
vllm:cache_config_info{engine="0",kv_cache_size_tokens="9600"} 1
vllm:cache_config_info{engine="1",kv_cache_size_tokens="6400"} 1
"""


def test_each_data_parallel_rank_has_its_own_reading() -> None:
    page = parse_page(TWO_RANKS, 0.0)
    assert page.readings["0"] == Reading(
        at_s=0.0, kv_usage=0.2, capacity_tokens=9600, running=3,
        hit_tokens_total=900, query_tokens_total=1000,
    )  # fmt: skip
    assert page.readings["1"].hit_tokens_total == 100
    assert list(page.readings) == ["0", "1"]


def test_the_endpoint_sums_its_ranks_and_is_as_used_as_the_fullest() -> None:
    page = parse_page(TWO_RANKS, 0.0)
    assert page.reading == Reading(
        at_s=0.0, kv_usage=0.8, capacity_tokens=16_000, running=7,
        hit_tokens_total=1000, query_tokens_total=3000,
    )  # fmt: skip


def test_one_agent_can_never_have_more_than_the_smallest_rank() -> None:
    assert parse_page(TWO_RANKS, 0.0).smallest_capacity_tokens == 6400


def test_a_number_that_only_one_of_two_ranks_reports_is_no_number_of_the_endpoint() -> None:
    """Half a sum would look like a restart as soon as the other rank joins in."""
    page = parse_page(TWO_RANKS + 'vllm:num_preemptions_total{engine="0",model_name="m"} 5\n', 0.0)
    assert page.reading.preemptions_total is None
    assert page.readings["0"].preemptions_total == 5


def test_ten_ranks_come_in_the_order_of_their_numbers() -> None:
    text = "".join(f'vllm:num_requests_running{{engine="{n}"}} {n}\n' for n in (10, 2, 0, 1))
    assert list(parse_page(text, 0.0).readings) == ["0", "1", "2", "10"]


def test_tensor_parallel_ranks_report_one_pool_and_are_not_summed() -> None:
    reading = read(
        'sglang:num_running_reqs{tp_rank="1",pp_rank="0"} 5\n'
        'sglang:num_running_reqs{tp_rank="0",pp_rank="0"} 5\n'
        'sglang:prefill_effective_tokens_total{mode="input",tp_rank="0",pp_rank="0"} 70\n'
        'sglang:prefill_effective_tokens_total{mode="input",tp_rank="1",pp_rank="0"} 70\n'
    )
    assert reading.running == 5
    assert reading.query_tokens_total == 70


def test_the_lowest_tensor_parallel_rank_is_found_within_each_data_parallel_rank() -> None:
    """With data-parallel attention rank 1 has no tp_rank 0."""
    page = parse_page(
        'sglang:num_running_reqs{dp_rank="0",tp_rank="0"} 5\n'
        'sglang:num_running_reqs{dp_rank="1",tp_rank="4"} 6\n'
        'sglang:num_running_reqs{dp_rank="1",tp_rank="5"} 6\n',
        0.0,
    )
    assert page.reading.running == 11


def test_priorities_are_parts_of_a_total_that_is_there_too() -> None:
    reading = read(
        'sglang:num_queue_reqs{priority=""} 7\n'
        'sglang:num_queue_reqs{priority="0"} 3\n'
        'sglang:num_queue_reqs{priority="5"} 4\n'
    )
    assert reading.waiting == 7


def test_counters_without_a_rank_count_for_the_endpoint_alone() -> None:
    """SGLang's tokenizer serves all ranks and does not say which."""
    page = parse_page(
        'sglang:num_running_reqs{dp_rank="0",model_name="m"} 1\n'
        'sglang:num_running_reqs{dp_rank="1",model_name="m"} 2\n'
        'sglang:generation_tokens_total{model_name="m"} 500\n',
        0.0,
    )
    assert page.reading.generated_tokens_total == 500
    assert [r.generated_tokens_total for r in page.readings.values()] == [None, None]


TWO_MODELS = """
vllm:num_requests_running{engine="0",model_name="small"} 3
vllm:num_requests_running{engine="0",model_name="large"} 4
"""


def test_two_models_are_two_pools() -> None:
    page = parse_page(TWO_MODELS, 0.0)
    assert {rank: r.running for rank, r in page.readings.items()} == {"large/0": 4, "small/0": 3}
    assert page.models == ("small", "large")
    assert page.model is None
    assert page.reading.running == 7


def test_one_of_two_models_can_be_asked_for() -> None:
    page = parse_page(TWO_MODELS, 0.0, model="large")
    assert (page.reading.running, page.model) == (4, "large")


def test_asking_for_a_model_that_is_not_served_names_those_that_are() -> None:
    with pytest.raises(ProbeError, match="the page serves small, large, not 'huge'"):
        parse_page(TWO_MODELS, 0.0, model="huge")


def test_loads_of_several_ranks_are_merged_like_any_others() -> None:
    page = parse_page(
        '{"version": "0.5.23", "loads": ['
        '{"dp_rank": 0, "token_usage": 0.1, "max_total_num_tokens": 100, "num_running_reqs": 1},'
        '{"dp_rank": 1, "token_usage": 0.3, "max_total_num_tokens": 200, "num_running_reqs": 2}]}',
        0.0,
    )
    assert page.reading == Reading(at_s=0.0, kv_usage=0.3, capacity_tokens=300, running=3)
    assert page.smallest_capacity_tokens == 100


# -- numbers no engine can mean --------------------------------------------------------------


@pytest.mark.parametrize(("written", "kv_usage"), [("-1e-17", 0.0), ("1.0000001", 1.0)])
def test_usage_a_hair_outside_its_range_is_a_rounding_error(written: str, kv_usage: float) -> None:
    assert read(f"vllm:kv_cache_usage_perc {written}\n").kv_usage == kv_usage


@pytest.mark.parametrize("written", ["NaN", "+Inf", "-0.5", "42"])
def test_usage_that_cannot_be_is_not_reported(written: str) -> None:
    text = f"vllm:kv_cache_usage_perc {written}\nvllm:num_requests_running 1\n"
    assert read(text).kv_usage is None


# -- no such page ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the page is empty"),
        (" \n\n", "the page is empty"),
        ("<!DOCTYPE html><html>", "got HTML instead of metrics"),
        ("not metrics at all", "no engine recognised|no metrics page"),
        ("{broken", "cannot be read"),
        ('{"error": "unauthorized"}', "/prometheus/metrics"),
        ("[]", "not SGLang's /v1/loads"),
        ('{"loads": [1]}', "entry 0 of 'loads' is not an object"),
        ('{"loads": [{}]}', "none of its usual numbers"),
        ("vllm:kv_cache_usage_perc oops\n", "line of the metrics page cannot be read: 'vllm:kv"),
        ("vllm:engine_sleep_state 1\n", "it has none of its signals"),
        ("tgi_queue_size 1\n", "TGI exports no KV signal"),
        ("llamacpp:requests_processing 1\n", "llama.cpp exports no KV signal"),
        ("smg_http_requests_total 1\n", "give the address of a worker"),
        ("python_info 1\nprocess_cpu_seconds_total 1\n", "--disable-log-stats"),
    ],
)
def test_another_page_is_refused_with_a_reason(text: str, message: str) -> None:
    with pytest.raises(ProbeError, match=message):
        parse_page(text, 0.0)


def test_an_unknown_page_names_what_was_looked_for_and_what_was_found() -> None:
    text = "".join(f"app_{n} 1\n" for n in range(9))
    with pytest.raises(ProbeError) as error:
        parse_page(text, 0.0)
    assert str(error.value) == (
        "no engine recognised: looked for vllm:*, sglang:*, dynamo_*; "
        "found app_0, app_1, app_2, app_3, app_4 and 4 more. Give the address of the engine "
        "itself; for another engine a probe of your own, or a fixed limit"
    )


def parse_or_refuse(text: str) -> None:
    try:
        page = parse_page(text, 0.0)
    except ProbeError:
        return
    for reading in (page.reading, *page.readings.values()):
        for signal in page.sources:
            value = getattr(reading, signal)
            assert value is None or (math.isfinite(value) and value >= 0)


@given(st.text())
def test_any_text_is_either_read_or_refused_with_a_probe_error(text: str) -> None:
    parse_or_refuse(text)


@given(
    st.sampled_from(["vllm-0.32.0-cpu-after-boot", "sglang-0.5.23-cpu-after-boot"]),
    st.integers(0, 60_000),
    st.text(max_size=20),
)
@settings(max_examples=60)
def test_a_torn_page_is_either_read_or_refused_with_a_probe_error(
    name: str, cut: int, junk: str
) -> None:
    text = load_page(PAGES / f"{name}.prom.gz")
    parse_or_refuse(text[:cut] + junk)
    parse_or_refuse(text[:cut] + junk + text[cut:])


LINES = st.builds(
    "{}{{{}}} {}".format,
    st.sampled_from(
        ["vllm:kv_cache_usage_perc", "vllm:prompt_tokens_total", "vllm:prompt_tokens_cached_total",
         "vllm:cache_config_info", "sglang:token_usage", "sglang:num_running_reqs",
         "sglang:realtime_tokens_total", "dynamo_frontend_model_total_kv_blocks"]
    ),
    st.lists(
        st.tuples(
            st.sampled_from(["engine", "model_name", "dp_rank", "tp_rank", "priority", "mode",
                             "num_gpu_blocks", "block_size", "server"]),
            st.one_of(st.sampled_from(["0", "1", "", "m", "prefill_cache", "1e308"]), st.text()),
        ),
        unique_by=lambda pair: pair[0],
    ).map(lambda pairs: ",".join(f'{k}="{v}"' for k, v in pairs)),
    st.one_of(st.floats().map(str), st.sampled_from(["1e308", "NaN", "-1", "x"])),
)  # fmt: skip


@given(st.lists(LINES, max_size=12).map("\n".join))
def test_any_mixture_of_known_names_is_either_read_or_refused(text: str) -> None:
    parse_or_refuse(text)


@given(st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(
        st.sampled_from(["loads", "dp_rank", "token_usage", "max_total_num_tokens", "version"]),
        inner,
    ),
))  # fmt: skip
def test_any_json_is_either_read_or_refused(value: object) -> None:
    parse_or_refuse(json.dumps(value))
