"""`concur replay` from the command line, against the embedded engine served over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from concur_agents.cli.app import main
from concur_agents.lab.replay import Engines, parse_arm
from concur_agents.sim.profile import load_profile
from concur_agents.sim.server import EmbeddedServer


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    # a pool of 9,600 tokens, as a real vLLM on two CPU cores has in the opt-in tests
    with EmbeddedServer("vllm-cpu-tiny", time_scale=20.0) as server:
        yield server.url


def _concur(*words: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(["replay", *words])
    return int(left.value.code or 0)


def test_an_arm_finds_nothing_in_a_host_tier_that_an_earlier_arm_left_there(tmp_path: Path) -> None:
    profile = load_profile("vllm-cpu-tiny").replace(
        host_tier_tokens=96_000, restore_tokens_per_s=50_000.0
    )
    out = tmp_path / "replay.json"
    with EmbeddedServer(profile, time_scale=20.0) as server:
        code = _concur(
            server.url,
            *("--workload", "cpu:steps=2", "--agents", "6", "--time-scale", "0.05"),
            *("--arms", "none,fixed:2", "--no-plot", "--out", str(out)),
        )
    assert code == 0
    for made in json.loads(out.read_text("utf-8"))["rounds"]:
        steps = made["steps"]
        cached = zip(steps["step"], steps["cached_tokens"], strict=True)
        assert [tokens for step, tokens in cached if step == 0] == [0] * 6


def test_the_same_agents_under_several_gates(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results" / "replay.json"
    code = _concur(
        url + "/v1",
        *("--workload", "cpu:steps=5", "--agents", "9", "--time-scale", "0.05"),
        *("--arms", "none,fixed:3,requests:3,working_set", "--out", str(out)),
    )
    assert code == 0
    record = json.loads(out.read_text("utf-8"))
    rows = {row["arm"]: row for row in record["summary"]}
    assert list(rows) == ["none", "fixed:3", "requests:3", "working_set"]
    assert record["work_agrees"]
    assert {row["agents_done"] for row in rows.values()} == {9}
    assert record["endpoint"]["capacity_tokens"] == 9600
    # as on a real vLLM: nothing is reused without a gate, everything with three agents
    assert rows["none"]["hit_deficit"] > 0.9
    assert rows["fixed:3"]["hit_rate"] == pytest.approx(0.74, abs=0.02)
    # calls are bounded, agents are not: their prefixes are lost between calls
    assert rows["requests:3"]["hit_deficit"] > 0.5
    for round_ in record["rounds"]:
        assert round_["cache_reset"]
        assert round_["wrong_lengths"] == 0
        assert len(round_["steps"]["agent"]) == 9 * 5
        assert sum(round_["steps"]["output_tokens"]) == 9 * 5 * 32
        assert round_["counters"]["generated_tokens_total"] == 9 * 5 * 32
        assert round_["series"]["at_s"]
    governed = record["rounds"][-1]["series"]
    assert governed["pressure_tokens"][0] > 0
    assert out.with_suffix(".png").stat().st_size > 10_000
    shown = capsys.readouterr().out
    assert "× best fixed" in shown
    assert "| working_set |" in shown


def test_an_arm_that_takes_too_long_is_cut_and_no_arm_finishing_is_a_failure(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = _concur(
        url,
        *("--workload", "cpu", "--arms", "none,fixed:3", "--limit", "0.5", "--deadline", "15.4"),
        *("--out", str(tmp_path / "replay.json"), "--no-plot"),
    )
    assert code == 1
    record = json.loads((tmp_path / "replay.json").read_text("utf-8"))
    assert [round_["outcome"] for round_ in record["rounds"]] == ["cut", "skipped"]
    assert "not run, out of time: fixed:3" in capsys.readouterr().out


def test_json_is_all_that_stdout_holds(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that a script can read the result of the run from it."""
    out = tmp_path / "replay.json"
    code = _concur(
        url,
        *("--workload", "cpu:steps=2", "--agents", "2", "--time-scale", "0.05", "--no-plot"),
        *("--arms", "none,fixed:1", "--out", str(out), "--json"),
    )
    said = capsys.readouterr()
    shown = json.loads(said.out)
    kept = json.loads(out.read_text("utf-8"))
    assert code == 0
    assert shown == {key: kept[key] for key in kept if key != "rounds"} | {"files": [str(out)]}
    assert [row["arm"] for row in shown["summary"]] == ["none", "fixed:1"]
    assert set(shown) == {
        *("made_by", "command", "note", "began_unix_s", "endpoint", "workload", "options"),
        *("work_agrees", "summary", "files"),
    }
    assert "capacity_tokens 9600" in said.err


def test_without_a_server_it_says_so_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert _concur("http://127.0.0.1:9", "--arms", "none") == 2
    assert "is the server up?" in capsys.readouterr().err


# --- several replicas ----------------------------------------------------------------------------

ARMS = "none,sticky,fixed:2,working_set"


def _rows(record: dict[str, Any]) -> dict[str, Any]:
    return {row["arm"]: row for row in record["summary"]}


def test_several_addresses_are_replicas_of_one_fleet(tmp_path: Path) -> None:
    out = tmp_path / "replay.json"
    with (
        EmbeddedServer("vllm-cpu-tiny", time_scale=20.0) as one,
        EmbeddedServer("vllm-cpu-tiny", time_scale=20.0) as two,
    ):
        code = _concur(
            *("--url", one.url, "--url", f"{two.url}/v1", "--workload", "cpu:steps=5"),
            *("--agents", "16", "--time-scale", "0.05", "--arms", ARMS, "--no-plot"),
            *("--out", str(out)),
        )
        calls = [one.stats.calls, two.stats.calls]

    assert code == 0
    record = json.loads(out.read_text("utf-8"))
    rows = _rows(record)
    assert list(rows) == ARMS.split(",")
    assert {row["agents_done"] for row in rows.values()} == {16}
    assert record["endpoint"]["replicas"] == 2
    assert record["endpoint"]["capacity_tokens"] == 2 * 9600
    assert min(calls) > 0.4 * sum(calls)
    # sixteen agents in two pools find little, two in each find everything
    assert rows["none"]["hit_deficit"] > 0.5
    assert rows["fixed:2"]["hit_deficit"] == pytest.approx(0.0, abs=0.02)
    counted = record["rounds"][0]["counters"]["generated_tokens_total"]
    assert counted == 16 * 5 * 32


def test_the_ranks_behind_one_address_are_a_fleet(tmp_path: Path) -> None:
    """Agents of governed arms are pinned, so that each finds its history."""
    out = tmp_path / "replay.json"
    with EmbeddedServer("vllm-cpu-tiny", time_scale=20.0, engines=2) as server:
        code = _concur(
            *(server.url, "--ranks", "2", "--workload", "cpu:steps=5", "--agents", "16"),
            *("--time-scale", "0.05", "--arms", "none,sticky,fixed:2", "--no-plot"),
            *("--out", str(out)),
        )

    assert code == 0
    rows = _rows(json.loads(out.read_text("utf-8")))
    assert rows["fixed:2"]["hit_deficit"] == pytest.approx(0.0, abs=0.02)
    assert rows["none"]["hit_deficit"] > 0.5


def test_sticky_gives_each_agent_the_replica_with_the_fewest() -> None:
    engines = Engines(("http://a", "http://b"))
    gate = parse_arm("sticky").build(engines)

    async def homes() -> list[str]:
        async with gate.agent("1"), gate.agent("2"):
            async with gate.agent("3"):
                pass
            async with gate.agent("4"):
                found = [gate.address_of(agent) for agent in ("1", "2", "3", "4")]
        return [address.url for address in found if address is not None]

    assert asyncio.run(homes()) == ["http://a", "http://b", "http://a", "http://a"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "give the address"),
        (("http://a", "--url", "http://a/"), "given twice"),
        (("--url", "http://a", "--url", "http://b", "--metrics-url", "http://c"), "for one"),
    ],
)
def test_addresses_that_make_no_fleet_are_refused(
    words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _concur(*words) == 2
    assert says in capsys.readouterr().err
