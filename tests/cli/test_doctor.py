"""`concur doctor`: what running governors have seen, beside what the endpoint says."""

import asyncio
import dataclasses

import pytest
from rich.console import Console

import concur_agents as ca
from concur_agents.cli.app import main
from concur_agents.cli.dashboard import summary
from concur_agents.cli.doctor import frame_findings, governor_findings
from concur_agents.observe.frame import PoolFrame, frame_of
from concur_agents.testing import run, virtual_governor

URL = "http://127.0.0.1:9"


def frame(**numbers):
    """A governor that reads `URL`, at one instant."""
    with ca.Governor(URL, background=False) as gov:
        return dataclasses.replace(frame_of(gov), **numbers)


def test_stalls_are_a_finding_with_their_likely_cause_and_a_page():
    (found,) = frame_findings(frame(stalls_total=3), URL)
    assert found.level == "warning"
    assert "3 agents were let in because nothing moved" in found.text
    assert "semaphore" in found.text
    assert "docs/semaphores.md" in found.text


def test_a_pool_proven_larger_is_a_finding_with_both_numbers():
    (found,) = frame_findings(frame(reported_tokens=16_000.0, capacity_tokens=528_000.0), URL)
    assert "reports a KV pool of 16,000 tokens" in found.text
    assert "528,000 are used" in found.text


def test_nothing_is_found_where_nothing_is_wrong_or_another_endpoint_is_read():
    assert frame_findings(frame(reported_tokens=5.0, capacity_tokens=5.0), URL) == []
    assert frame_findings(frame(stalls_total=3), "http://127.0.0.1:10") == []


def test_a_governor_of_several_engines_is_found_by_each():
    urls = ["http://127.0.0.1:9", "http://127.0.0.1:11"]
    with ca.Governor(urls, background=False) as gov:
        seen = dataclasses.replace(frame_of(gov), stalls_total=1)
    assert all(len(frame_findings(seen, url)) == 1 for url in urls)
    assert frame_findings(seen, "http://127.0.0.1:10") == []


def test_a_pool_that_is_down_is_a_finding_with_the_reason_at_its_own_address():
    pools = [
        PoolFrame(
            pool=f"{url}#{rank}", active=0, waiting=0, pressure_tokens=0, capacity_tokens=None,
            limit_tokens=None, limit_agents=None, hit_rate=None, reason=reason,
            unread="its page shows no rank 1",
        )
        for url, rank, reason in ((URL, 0, "start"), (URL, 1, "down"), ("http://gpu2", 1, "down"))
    ]  # fmt: skip
    (found,) = frame_findings(frame(pools=pools), URL)
    assert found.text == f"A running governor: {URL}#1 is down: its page shows no rank 1"


def test_a_running_governor_is_found_by_its_socket(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with ca.Governor(URL, socket="auto", background=False) as gov:
        gov._monitor.sessions.regulator._admission.stalls_total = 2
        (found,) = governor_findings(URL)
        assert "2 agents were let in" in found.text
    assert governor_findings(URL) == []


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"stalls_total": 3}, ("stalls", "3 agents let in", "docs/semaphores.md")),
        (
            {"reported_tokens": 16_000.0, "capacity_tokens": 528_000.0},
            ("16,000", "528,000 used"),
        ),
    ],
)
def test_watch_shows_both(numbers, words):
    console = Console(width=120, record=True)
    console.print(summary(frame(**numbers), 110))
    text = console.export_text()
    assert all(word in text for word in words)


def test_explain_names_the_stalls_of_a_recording(tmp_path, capsys):
    path = tmp_path / "run.jsonl"

    async def stalled():
        sem = asyncio.Semaphore(1)

        async def solve(gov, i):
            async with gov.agent(f"a{i}") as agent:
                for _ in range(3):
                    async with sem, agent.step():
                        await asyncio.sleep(1)

        async with virtual_governor(limit=1, max_wait_s=0.5, shadow="working_set") as gov:
            gov.record(path)
            await asyncio.gather(*(solve(gov, i) for i in range(3)))
            await asyncio.sleep(2)
            assert gov.snapshot().stalls_total

    run(stalled())
    with pytest.raises(SystemExit):
        main(["explain", str(path)])
    assert "because nothing moved" in capsys.readouterr().out
