"""Recorded pages as a probe."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from concur_agents.errors import ProbeError
from concur_agents.probes import ReplayProbe
from concur_agents.probes.replay import load_page

PAGES = Path(__file__).parents[1] / "fixtures" / "metrics"
VLLM = load_page(PAGES / "vllm-0.32.0-cpu-sweep-cap3.prom.gz")
LOADS = load_page(PAGES / "sglang-0.5.23-cpu-v1-loads-cap3.json")


def test_recorded_pages_are_read_in_order_at_the_given_interval() -> None:
    probe = ReplayProbe(["vllm:num_requests_running 1\n", LOADS], interval_s=5.0, start_s=100.0)
    assert [(r.at_s, r.running) for r in (probe.read(), probe.read())] == [(100, 1), (105, 0)]


def test_a_recording_says_when_it_has_ended() -> None:
    probe = ReplayProbe([VLLM])
    probe.read()
    with pytest.raises(ProbeError, match="the recording has ended: 1 of 1 pages read"):
        probe.read()
    assert repr(probe) == "<ReplayProbe 1 of 1 pages read>"


def test_a_recording_can_go_round_and_its_time_goes_on() -> None:
    probe = ReplayProbe([VLLM], loop=True)
    assert [probe.read().at_s for _ in range(3)] == [0.0, 1.0, 2.0]


def test_a_broken_page_is_one_failed_poll_and_the_next_is_read() -> None:
    probe = ReplayProbe(["<html>", VLLM])
    with pytest.raises(ProbeError, match="HTML"):
        probe.read()
    assert probe.read().at_s == 1.0


def test_a_directory_of_pages_is_read_by_name(tmp_path: Path) -> None:
    (tmp_path / "002.prom").write_text("vllm:num_requests_running 2\n")
    (tmp_path / "001.prom.gz").write_bytes(gzip.compress(b"vllm:num_requests_running 1\n"))
    (tmp_path / "notes.md").write_text("no page")
    probe = ReplayProbe(tmp_path, clock=lambda: 9.0)
    assert len(probe) == 2
    assert [probe.read().running for _ in range(2)] == [1, 2]


@pytest.mark.parametrize("pages", [[], Path("no/such/directory")])
def test_a_recording_without_pages_is_refused_at_once(pages: list[str] | Path) -> None:
    with pytest.raises(ProbeError, match="recorded pages"):
        ReplayProbe(pages)


def test_a_torn_archive_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "001.prom.gz").write_bytes(gzip.compress(b"vllm:num_requests_running 1\n")[:-4])
    with pytest.raises(ProbeError, match=r"001\.prom\.gz cannot be read"):
        ReplayProbe(tmp_path)
