"""Engine profiles: they load, they are checked, and their numbers come from where they say."""

from pathlib import Path

import pytest

from concur_agents.errors import ConfigError
from concur_agents.lab.validate.points import calibration_timings
from concur_agents.sim.profile import Profile, load_profile, profile_names

GOOD = """
description = "a test"
source = "made up"
model = "none"
block_size = 16
kv_blocks = 100
max_num_seqs = 8
max_batched_tokens = 64
max_model_len = 1000
step_overhead_s = 0.01
prefill_s_per_token = 1e-4
prefill_s_per_token2 = 0
decode_s_per_seq = 0.0
decode_s_per_kv_token = 0.0
"""


def written(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", profile_names())
def test_every_bundled_profile_loads_and_says_where_it_comes_from(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert len(profile.source) > 20
    assert profile.capacity_tokens == profile.kv_blocks * profile.block_size
    # A step that decodes a full pool must still be shorter than prefilling it.
    full_step_s = profile.step_overhead_s + profile.capacity_tokens * profile.decode_s_per_kv_token
    assert full_step_s < profile.capacity_tokens * profile.prefill_s_per_token


def test_the_measured_pools_are_exact() -> None:
    pools = {name: load_profile(name).capacity_tokens for name in profile_names()}
    assert pools["vllm-cpu-tiny"] == 9_600
    assert pools["h100-qwen3-8b"] == 408_256
    assert pools["2xh100-qwen3-coder-30b"] == 2_237_040


@pytest.mark.parametrize("timing", calibration_timings(), ids=lambda timing: timing.label)
def test_the_h100_profile_gives_back_its_calibration(timing) -> None:  # type: ignore[no-untyped-def]
    """Run through the engine, not through the formula: would find a step priced twice."""
    assert timing.simulated_s == pytest.approx(timing.measured_s, rel=0.06)


def test_the_derived_profile_scales_the_calibrated_one_by_shape_and_bandwidth() -> None:
    small, large = load_profile("h100-qwen3-8b"), load_profile("h200-qwen3-32b")
    kv_bytes = {"small": 36 * 8 * 128 * 2 * 2, "large": 64 * 8 * 128 * 2 * 2}
    bandwidth = kv_bytes["small"] / small.decode_s_per_kv_token * 4.8 / 3.35
    assert large.decode_s_per_kv_token == pytest.approx(kv_bytes["large"] / bandwidth, rel=0.01)
    weights_ratio = 31.2 / 6.95
    assert large.prefill_s_per_token == pytest.approx(
        small.prefill_s_per_token * weights_ratio, rel=0.01
    )
    attention_ratio = (64 * 64) / (36 * 32)
    assert large.prefill_s_per_token2 == pytest.approx(
        small.prefill_s_per_token2 * attention_ratio, rel=0.01
    )


def test_a_profile_of_ones_own_is_a_path(tmp_path: Path) -> None:
    profile = load_profile(written(tmp_path, GOOD))
    assert (profile.name, profile.capacity_tokens, profile.request_overhead_s) == ("mine", 1600, 0)


def test_replace_checks_again() -> None:
    profile = load_profile("vllm-cpu-tiny")
    assert profile.replace(kv_blocks=10).capacity_tokens == 320
    with pytest.raises(ConfigError, match="kv_blocks must be at least 1, got 0"):
        profile.replace(kv_blocks=0)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kv_blocks = 100", "", "lacks kv_blocks"),
        ("kv_blocks = 100", "kv_bloks = 100", "unknown fields kv_bloks"),
        ("kv_blocks = 100", "kv_blocks = 1.5", "kv_blocks must be int, got 1.5"),
        ("kv_blocks = 100", "kv_blocks = ", "not valid TOML"),
        ("step_overhead_s = 0.01", "step_overhead_s = 0", "step_overhead_s must be above 0 s"),
        ("decode_s_per_seq = 0.0", "decode_s_per_seq = -1", "decode_s_per_seq must be at least 0"),
        ("max_batched_tokens = 64", "max_batched_tokens = 8", "must be above max_num_seqs 8"),
    ],
)
def test_a_bad_profile_says_what_is_wrong(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_profile(written(tmp_path, GOOD.replace(old, new)))


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"there are .*h100-qwen3-8b"):
        load_profile("h1000")


def test_a_missing_file_says_which() -> None:
    with pytest.raises(ConfigError, match=r"cannot read profile nowhere\.toml"):
        load_profile("nowhere.toml")


def test_all_fields_are_keywords() -> None:
    with pytest.raises(TypeError):
        Profile("positional")  # type: ignore[call-arg]
