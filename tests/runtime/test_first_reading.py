"""The governor before its first reading: one agent runs, the others wait for the engine's word."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

import concur_agents as ca
from concur_agents.core import FIRST_READING_S, Reading
from concur_agents.recording import RecordedCall, Recording, make_regulator, replay
from concur_agents.testing import ScriptedProbe, run, virtual_governor


class SlowProbe:
    """An engine whose page comes when the test says so."""

    def __init__(self, reading=None):
        self.asked, self.answers = threading.Event(), threading.Event()
        self.reading = reading

    def read(self):
        self.asked.set()
        assert self.answers.wait(20)
        if self.reading is None:
            raise ca.ProbeError("nothing answers")
        return self.reading


def enter_all(gov, names):
    """An agent per name, each in a thread of its own; returns those who are in, and their end."""
    inside, gone = {}, threading.Event()

    def life(name):
        with gov.agent(name):
            inside[name] = time.monotonic()
            gone.wait(20)

    threads = [threading.Thread(target=life, args=(name,), daemon=True) for name in names]
    for thread in threads:
        thread.start()

    def end():
        gone.set()
        for thread in threads:
            thread.join(20)

    return inside, end


def wait_until(condition, timeout_s=20.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


def batch(**options):
    """What happens to three agents that come at once, in order."""

    async def main():
        happened = []

        async def life(name):
            async with gov.agent(name):
                await asyncio.sleep(1)

        async with virtual_governor(**options) as gov:
            gov.on_event(lambda event: happened.append(event.agent or event.kind))
            gov.on_event(lambda event: times.append(event.at_s))
            await asyncio.gather(*(life(name) for name in "abc"))
        return happened

    times = []
    return run(main()), times


@pytest.mark.parametrize("law", ["working_set", "cache_aimd", "gradient"])
@pytest.mark.parametrize("script", [[Reading(at_s=0.0, capacity_tokens=1e6)], [None]])
def test_those_who_come_at_once_wait_for_the_first_reading_and_that_is_due_at_once(law, script):
    """And not an interval later: whoever comes first starts it. A failed one ends the wait, too."""
    probe = ScriptedProbe(script, lambda: 0.0)
    happened, times = batch(law=law, probe=probe, poll_interval_s=7.0)
    first = ["a", "a", "b", "c"]  # all arrive, and a is admitted
    assert happened[:4] == first
    assert happened[4] == ("polled" if script[0] else "poll_failed")
    assert sorted(happened[5:7]) in (["b", "c"], ["b", "limit_changed"])
    assert times[5] == times[0]


@pytest.mark.parametrize(
    "options",
    [
        {"law": "working_set"},  # it lives on usage alone
        {"limit": 9},
        {"limit": 9, "probe": ScriptedProbe([Reading(at_s=0.0)], lambda: 0.0)},
    ],
)
def test_nobody_waits_where_no_reading_is_needed(options):
    happened, _ = batch(**options)
    assert happened[:6] == ["a", "a", "b", "b", "c", "c"]


def test_the_others_are_in_as_soon_as_a_slow_page_has_come():
    probe = SlowProbe(Reading(at_s=0.0, capacity_tokens=1e6))
    with ca.Governor(probe=probe) as gov:
        inside, end = enter_all(gov, "abc")
        wait_until(lambda: gov.snapshot().queued == 2 and len(inside) == 1)
        assert probe.asked.wait(20)
        assert gov.snapshot().reason == "first_reading"
        (waiting, *_) = sorted({*"abc"} - {*inside})
        assert "waiting for the engine's first reading, at most " in gov.explain(waiting)
        probe.answers.set()
        wait_until(lambda: len(inside) == 3)
        assert gov.snapshot().reason != "first_reading"
        end()


def test_a_page_that_does_not_come_holds_nobody_up_for_longer_than_that():
    """The governor's thread is busy with it meanwhile: somebody else has to mind the time."""
    probe = SlowProbe()
    with ca.Governor(probe=probe) as gov:
        begun_s = time.monotonic()
        inside, end = enter_all(gov, "abc")
        wait_until(lambda: len(inside) == 3, timeout_s=10)  # before the probe gives up
        first_s, *others_s = sorted(inside.values())
        assert first_s - begun_s < 0.9 * FIRST_READING_S
        assert min(others_s) - begun_s >= FIRST_READING_S
        assert not probe.answers.is_set()
        probe.answers.set()
        end()


def test_closing_meanwhile_lets_everybody_pass_and_leaves_no_thread():
    probe = SlowProbe()
    with ca.Governor(probe=probe) as gov:
        inside, end = enter_all(gov, "abc")
        assert probe.asked.wait(20)
        wait_until(lambda: gov.snapshot().queued == 2)
        probe.answers.set()
        gov.close()
        wait_until(lambda: len(inside) == 3)
        end()
    names = ("concur-poller", "concur-first-reading")
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name in names])


def test_a_recording_tells_it_and_replays_with_it(tmp_path):
    path = tmp_path / "run.jsonl"
    probe = ScriptedProbe([Reading(at_s=0.0, capacity_tokens=1e6)], lambda: 0.0)
    batch(law="working_set", probe=probe, record=path)
    recording = Recording(path)
    assert recording.header.regulator["first_reading_s"] == FIRST_READING_S
    assert list(replay(recording)) == []
    whys = [line.why for line in recording if isinstance(line, RecordedCall) and line.why]
    assert whys == ["waiting for the engine's first reading, at most 1.0 s"] * 2


def test_a_recording_from_before_there_was_such_a_wait_replays_without_it(tmp_path):
    """Its header does not name the option, and its agents were let in on a guess."""
    path = tmp_path / "run.jsonl"
    batch(law="working_set", record=path)  # without an engine nobody waits
    text = path.read_text("utf-8")
    assert '"first_reading_s":0.0' in text
    path.write_text(text.replace(',"first_reading_s":0.0', ""))
    old = Recording(path)
    assert "first_reading_s" not in old.header.regulator
    assert list(replay(old)) == []
    assert make_regulator(old).reason == "start"
