"""The flight recorder: what it writes, what it never writes, and that it replays to the bit."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import asdict
from itertools import islice

import httpx
import pytest

from concur_agents import ConfigError, Governor, RecordingError
from concur_agents.core import Reading, Regulator, Usage, law_names, make_law
from concur_agents.recording import (
    Happening,
    Header,
    RecordedCall,
    Recorder,
    Recording,
    RecordingRegulator,
    Tracker,
    apply,
    describe_law,
    make_regulator,
    record,
    replay,
    scrub,
)
from concur_agents.testing import ScriptedProbe, run, virtual_governor


def reading(now: float) -> Reading | None:
    if 20 <= now < 24:
        return None
    return Reading(
        at_s=now,
        kv_usage=0.6,
        capacity_tokens=40_000,
        hit_tokens_total=900 * now,
        query_tokens_total=1000 * now,
    )


async def eventful(governor: Governor, seed: int = 0) -> None:
    """Agents with tools, breaks, children, parallel calls, failures and cancelled waits."""
    dice = random.Random(seed)

    async def step(agent, tokens):
        async with agent.step(prompt_tokens=tokens, prefix=[("the system prompt", 500)]) as step:
            await asyncio.sleep(dice.uniform(0.1, 3))
            if dice.random() < 0.9:
                step.record(Usage(tokens, dice.randrange(200), int(tokens * dice.random())))
            else:
                step.refused(0.5)

    async def life(name):
        await asyncio.sleep(dice.uniform(0, 10))
        async with governor.agent(name, priority=dice.randrange(2)) as agent:
            tokens = 1000
            for _ in range(dice.randrange(2, 8)):
                with suppress(TimeoutError):
                    async with asyncio.timeout(dice.choice([2, None, None])):
                        await step(agent, tokens)
                tokens += dice.randrange(2000)
                kind = dice.randrange(4)
                if kind == 0:
                    async with agent.tool("pytest"):
                        await asyncio.sleep(dice.uniform(0, 5))
                elif kind == 1:
                    async with agent.suspended():
                        await asyncio.sleep(dice.uniform(0, 5))
                elif kind == 2:
                    await asyncio.gather(step(agent, tokens), step(agent, tokens + 10))
                else:
                    async with governor.agent() as child:
                        await step(child, 3000)

    await asyncio.gather(*(life(f"agent {n}") for n in range(12)))


async def look(governor: Governor) -> None:
    """Somebody who watches: asking must not make a replay differ."""
    while True:
        await asyncio.sleep(0.37)
        governor.snapshot()
        governor.explain("agent 3")


def eventful_recording(path, law="working_set", seed=0, script=reading, **options):
    async def main():
        loop = asyncio.get_running_loop()
        probe = ScriptedProbe(script, loop.time)
        async with virtual_governor(probe=probe, law=law, record=path, **options) as governor:
            looking = asyncio.ensure_future(look(governor))
            await eventful(governor, seed)
            looking.cancel()
            return governor.snapshot()

    return run(main()), Recording(path)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("law", law_names())
def test_a_recorded_governor_replays_to_the_bit(tmp_path, law, seed):
    """Every answer, law state and view; otherwise no surprise could be looked into afterwards."""
    law = make_law(law, agents=3) if law == "fixed" else law
    snapshot, recording = eventful_recording(
        tmp_path / "run.jsonl", law, seed, max_wait_s=15.0, max_open=9, blind_after_s=3.0
    )
    assert list(replay(recording)) == []
    calls = [line for line in recording if isinstance(line, RecordedCall)]
    names = {call.name for call in calls}
    assert names >= {"arrive", "begin_step", "end_step", "retry_step", "leave", "tick"}
    assert names >= {"suspend", "resume"}
    if recording.header.law["name"] == "fixed":  # three places for twelve agents
        assert "withdraw_step" in names
        assert any(call.agent not in call.let_in for call in calls if call.name == "begin_step")
    last = [call.tick for call in calls if call.tick][-1]
    assert last.view.pauses_total <= snapshot.pauses_total


def test_a_simulated_batch_replays_to_the_bit(batch):
    assert list(replay(batch)) == []


def test_a_replay_tells_the_first_answer_that_differs(batch):
    """The test of the test: another law is noticed, by whom it lets in and by where it stands."""
    first = next(iter(replay(batch, make_regulator(batch, make_law("fixed", agents=1)))))
    assert first.call.name == "arrive"
    assert first.let_in == ()
    first = next(iter(replay(batch, make_regulator(batch, make_law("fixed", agents=1000)))))
    assert first.call.tick is not None
    assert first.state["limit"]["agents"] == 1000


def test_infinities_and_errors_survive_the_way_through_json(tmp_path):
    """A recording is strict JSON, which has no infinity; a Retry-After may be one all the same."""
    recorded, recorder = record(
        Regulator(make_law("fixed", agents=float("inf"))), tmp_path / "r.jsonl"
    )
    with recorder:
        recorded.arrive("inf", 0.0)
        recorded.arrive("child", 0.5, parent="inf")
        with suppress(ValueError):
            recorded.arrive("inf", 1.0)
        with suppress(KeyError):
            recorded.begin_step("nobody", 1.0)
        recorded.begin_step("inf", 1.0, prefix=[("p", 5.0), (("q", 1), 7.0)])
        recorded.end_step("inf", 2.0, None, overloaded=True, retry_after_s=float("inf"))
        recorded.tick(Reading(at_s=3.0, running=float("inf")), 3.0)
        recorded.tick(None, 4.0)
    for line in recorder.path.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    recording = Recording(recorder.path)
    assert list(replay(recording)) == []
    calls = list(recording)
    assert [call.error for call in calls if call.error] == ["ValueError", "KeyError"]
    assert calls[1].options["parent"] == "inf"
    assert recording.header.make_law() == make_law("fixed", agents=float("inf"))


def test_no_prompt_answer_or_key_is_ever_written(tmp_path):
    """Recordings are sent around to be looked at; a key in one would be a leak."""
    secrets = ["SECRET-PROMPT", "SECRET-ANSWER", "SECRET-KEY", "SECRET-PASSWORD", "SECRET-QUERY"]

    def answer(request):
        text = "SECRET-ANSWER"
        usage = {"prompt_tokens": 900, "completion_tokens": 5}
        message = {"role": "assistant", "content": text}
        return httpx.Response(200, json={"choices": [{"message": message}], "usage": usage})

    class Probe:
        url = "http://me:SECRET-PASSWORD@host:8000/v1?token=SECRET-QUERY"

        def read(self):
            raise RuntimeError(f"401 for {self.url} with Bearer SECRET-KEY, api_key=SECRET-KEY")

    path = tmp_path / "run.jsonl"
    law = make_law("working_set")
    with Governor(probe=Probe(), law=law, record=path, poll_interval_s=0.01) as governor:
        plain = httpx.Client(transport=httpx.MockTransport(answer))
        client = governor.wrap(plain)
        for name in ("one", "two"):
            with governor.agent(name):
                client.post(
                    "http://host:8000/v1/chat/completions",
                    headers={"Authorization": "Bearer SECRET-KEY"},
                    json={"messages": [{"role": "system", "content": "SECRET-PROMPT " * 900}]},
                )
        client.close()
        seen = threading.Event()
        governor.on_event(lambda event: event.kind == "poll_failed" and seen.set())
        assert seen.wait(10)
    text = path.read_text()
    assert [word for word in secrets if word in text] == []
    assert '"poll_failed"' in text
    assert '"prompt_tokens":900' in text
    assert '"prefix":' in text, "the prompt came so far as to be digested"
    assert path.stat().st_mode & 0o077 == 0, "only its owner may read it"


@pytest.mark.parametrize(
    ("said", "written"),
    [
        ("http://u:p@h/x?key=1 fails", "http://h/x?... fails"),
        ("Authorization: Bearer abc.def", "Authorization: ***"),
        ("api_key='sk-12345'", "***'"),
        ("is it there?", "is it there?"),
        ("x" * 400, "x" * 300 + "..."),
    ],
)
def test_messages_are_written_without_what_may_be_secret(said, written):
    assert scrub(said) == written


def test_a_recording_keeps_its_bound_and_says_what_is_missing(tmp_path):
    """A run of weeks must not fill the disk; what is left still tells who stands where."""
    bound = 128 * 1024
    recorded, recorder = record(
        Regulator(make_law("fixed", agents=2)), tmp_path / "r.jsonl", max_bytes=bound
    )
    tracker = Tracker()
    with recorder:
        for n in range(4):
            recorded.arrive(f"a{n}", float(n))
        for n in range(4000):
            for agent in ("a0", "a1"):
                recorded.begin_step(agent, 4.0 + n, prompt_tokens=n)
                recorded.end_step(agent, 4.5 + n, Usage(n, 1, 0))
            if n % 50 == 0:
                recorder.flush()
    files = sorted(tmp_path.iterdir())
    assert 2 < len(files) <= 8
    assert bound / 2 < sum(file.stat().st_size for file in files) <= bound
    recording = Recording(recorder.path)
    header = recording.header
    assert not recording.is_whole
    assert header.part > 0
    states = {who.id: who.state for who in header.agents}
    assert states.keys() == {"a0", "a1", "a2", "a3"}
    assert (states["a2"], states["a3"]) == ("queued", "queued")
    first = next(iter(recording))
    assert header.now <= first.now
    tracker = Tracker(header.agents)
    for line in recording:
        tracker.take(line)
    assert {who.id: who.steps for who in tracker.agents.values()} == {
        "a0": 4000,
        "a1": 4000,
        "a2": 0,
        "a3": 0,
    }
    with pytest.raises(RecordingError, match="does not go back to its beginning"):
        list(replay(recording))


def test_a_roster_follows_the_regulator_agent_by_agent(batch):
    """Lanes, waits and explanations all come from it."""
    regulator, tracker = make_regulator(batch), Tracker()
    checked = 0
    for line in batch:
        assert isinstance(line, RecordedCall)
        apply(regulator, line)
        tracker.take(line)
        for who in tracker.agents.values():
            assert who.state == regulator.agent_state(who.id), (line, who)
            checked += 1
    assert checked > 1000


def test_a_roster_follows_an_agent_through_its_breaks(tmp_path):
    recorded, recorder = record(Regulator(make_law("fixed", agents=1)), tmp_path / "r.jsonl")
    with recorder:
        recorded.arrive("a", 0.0)
        recorded.begin_step("a", 1.0)
        recorded.suspend("a", 2.0)
        recorded.end_step("a", 3.0, Usage(900, 100, 0))
        recorded.arrive("b", 4.0)
        recorded.resume("a", 5.0)
        recorded.suspend("a", 6.0)
        recorded.begin_step("a", 7.0)
        recorded.withdraw_step("a", 8.0)
        recorded.suspend("a", 9.0)
        recorded.suspend("b", 10.0)
        recorded.resume("a", 11.0)
        recorded.begin_step("a", 12.0)
        recorded.withdraw_step("a", 13.0)
    regulator, tracker = make_regulator(Recording(recorder.path)), Tracker()
    states = []
    for line in Recording(recorder.path):
        apply(regulator, line)
        tracker.take(line)
        for who in tracker.agents.values():
            assert who.state == regulator.agent_state(who.id), (line, who)
        states.append(tracker.agents["a"].state)
    assert {"reasoning", "acting", "paused", "suspended"} == set(states)


def test_an_earlier_recording_is_moved_aside_once(tmp_path):
    path = tmp_path / "run.jsonl"
    for agents in (1, 2):
        record(Regulator(make_law("fixed", agents=agents)), path)[1].close()
    assert Recording(path).header.law["config"]["agents"] == 2
    assert Recording(tmp_path / "run.jsonl.old").header.law["config"]["agents"] == 1


def test_a_recording_begun_late_shows_who_was_there_and_cannot_be_replayed(tmp_path):
    async def main():
        async with virtual_governor(limit=1) as governor:
            async with governor.agent("first") as first:
                second = governor.agent("second", detached=True)
                waiting = asyncio.ensure_future(second.open())
                await asyncio.sleep(1)
                async with first.step():
                    end = governor.record(tmp_path / "run.jsonl")
                    with pytest.raises(ConfigError, match="is being recorded to"):
                        governor.record(tmp_path / "other.jsonl")
                await asyncio.sleep(1)
                end()
                async with first.step():
                    pass
            await waiting

    run(main())
    recording = Recording(tmp_path / "run.jsonl")
    states = {who.id: who.state for who in recording.header.agents}
    assert states == {"first": "reasoning", "second": "queued"}
    assert [call.name for call in recording if isinstance(call, RecordedCall)][:1] == ["end_step"]
    assert all(line.now < 2.5 for line in recording)
    with pytest.raises(RecordingError, match="begun later"):
        make_regulator(recording)


def test_a_shadow_law_is_shown_and_recorded_and_changes_nothing(tmp_path):
    def always(now):  # a failed poll is tried again after a random time
        return reading(now % 20)

    with_shadow, recording = eventful_recording(
        tmp_path / "a.jsonl", script=always, shadow="cache_aimd"
    )
    without, plain = eventful_recording(tmp_path / "b.jsonl", script=always)
    assert without.shadow is None
    assert with_shadow.shadow.law == "cache_aimd"
    ticks = [line.tick for line in recording if isinstance(line, RecordedCall) and line.tick]
    assert ticks[-1].shadow == json.loads(json.dumps(with_shadow.shadow.state.to_dict()))
    assert len({json.dumps(tick.shadow) for tick in ticks}) > 2, "it decided"

    def answers(lines):
        return [
            (line.name, line.now, line.let_in) for line in lines if isinstance(line, RecordedCall)
        ]

    assert answers(recording) == answers(plain)
    assert asdict(with_shadow) | {"shadow": None} == asdict(without)


def test_a_law_within_a_law_is_in_the_header(tmp_path):
    law = make_law("minimum", first=make_law("fixed", agents=3), second="cache_aimd")
    record(Regulator(law), tmp_path / "run.jsonl")[1].close()
    header = Recording(tmp_path / "run.jsonl").header
    assert header.law["config"]["first"] == {"name": "fixed", "config": {"agents": 3}}
    assert header.make_law() == law


def test_watching_a_governor_in_which_nothing_happens_does_not_pile_up(tmp_path):
    with Governor(limit=1, record=tmp_path / "run.jsonl") as governor:
        for _ in range(1000):
            governor.snapshot()
        assert len(governor._recording.recording_regulator._asked) <= 64
    assert list(replay(Recording(tmp_path / "run.jsonl"))) == []


def test_tools_breaks_and_lost_polls_are_in_it_too(tmp_path):
    _, recording = eventful_recording(tmp_path / "run.jsonl")
    kinds = {line.kind for line in recording if isinstance(line, Happening)}
    assert kinds >= {
        "tool_began",
        "tool_ended",
        "suspended",
        "resume_asked",
        "poll_failed",
        "poll_recovered",
    }


def test_a_file_that_cannot_be_written_is_an_error_at_once(tmp_path):
    with pytest.raises(ConfigError, match="does its folder exist"):
        Governor(limit=1, record=tmp_path / "no" / "run.jsonl")
    with pytest.raises(ConfigError, match="at least 65,536 bytes"):
        Governor(limit=1).record(tmp_path / "run.jsonl", max_bytes=10)


def test_a_full_disk_ends_the_recording_and_nothing_else(tmp_path):
    """The file may grow to 4 KiB, as on a disk that fills up."""
    pytest.importorskip("resource")
    path = tmp_path / "run.jsonl"
    code = (
        "import resource, signal\n"
        "from concur_agents import Governor\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        f"with Governor(limit=1, record={str(path)!r}) as governor:\n"
        "    for n in range(300):\n"
        "        with governor.agent(f'a{n}') as agent, agent.step():\n"
        "            pass\n"
        "    governor._recording.recorder.flush()\n"
        "    assert governor.snapshot().done_total == 300\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], timeout=60, check=False, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert f"recording to {path} ends here: " in ran.stderr
    assert list(Recording(path))


@pytest.mark.parametrize(
    "text", ["", "{}\n", '{"concur_journal": 1}\n', '{"concur_recording": 99}\n', "hm"]
)
def test_what_is_no_recording_is_refused_in_words(tmp_path, text):
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    with pytest.raises(RecordingError, match=r"x\.jsonl is"):
        Recording(path)


def test_a_missing_recording_is_refused_in_words(tmp_path):
    with pytest.raises(RecordingError, match="No such file"):
        Recording(tmp_path / "x.jsonl")


def test_a_broken_line_is_named_and_a_torn_last_one_is_not_missed(tmp_path, batch):
    lines = batch.path.read_bytes().splitlines(keepends=True)
    path = tmp_path / "torn.jsonl"
    path.write_bytes(b"".join(lines[:50]) + lines[50][:20])
    assert len(list(Recording(path))) == 49
    path.write_bytes(b"".join(lines[:50]) + b"hm\n" + lines[50])
    with pytest.raises(RecordingError, match="line 51 of"):
        list(Recording(path))


def test_fields_that_only_another_version_knows_are_passed_over(tmp_path, batch):
    """A recording is often looked at with a newer version than the one that made it."""
    lines = [json.loads(line) for line in batch.path.read_text().splitlines()]
    for line in lines:
        for part in ("view", "snapshot", "reading"):
            if line.get(part):
                line[part]["of_tomorrow"] = 1
        if "view" in line:
            line["view"]["limit"]["of_tomorrow"] = None
    path = tmp_path / "newer.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert list(Recording(path)) == list(batch)


def test_what_was_decided_before_a_kill_is_on_disk(tmp_path):
    """The recording of a crash is the one that will be read."""
    path = tmp_path / "run.jsonl"
    code = (
        "import os, signal, sys\n"
        "from concur_agents import Governor\n"
        f"gov = Governor(limit=1, record={str(path)!r})\n"
        "with gov.agent('a') as agent:\n"
        "    for _ in range(100):\n"
        "        with agent.step():\n"
        "            pass\n"
        "    gov._recording.recorder.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert ran.returncode == -signal.SIGKILL
    recording = Recording(path)
    assert sum(line.name == "end_step" for line in recording) == 100
    assert list(replay(recording)) == []


def test_a_governor_that_is_never_closed_is_recorded_to_the_end_of_the_program(tmp_path):
    path = tmp_path / "run-{pid}.jsonl"
    code = (
        "from concur_agents import Governor\n"
        f"gov = Governor(limit=1, record={str(path)!r})\n"
        "for n in range(500):\n"
        "    with gov.agent(str(n)) as agent, agent.step():\n"
        "        pass\n"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        assert process.wait(60) == 0
    (written,) = tmp_path.iterdir()
    assert written.name == f"run-{process.pid}.jsonl"
    assert (
        sum(line.name == "leave" for line in Recording(written) if isinstance(line, RecordedCall))
        == 500
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_leaves_the_recording_of_its_parent_alone(tmp_path):
    path = tmp_path / "run.jsonl"
    code = (
        "import os, sys\n"
        "from concur_agents import Governor\n"
        f"gov = Governor(limit=1, record={str(path)!r}, shadow='working_set')\n"
        "with gov.agent('parent'):\n"
        "    child = os.fork()\n"
        "    with gov.agent('after', detached=False) as agent, agent.step():\n"
        "        pass\n"
        "    if child:\n"
        "        assert os.waitpid(child, 0)[1] == 0\n"
    )
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], timeout=60, check=False, capture_output=True
    )
    assert (ran.returncode, ran.stderr) == (0, b"")
    arrived = [
        line.agent
        for line in Recording(path)
        if isinstance(line, RecordedCall) and line.name == "arrive"
    ]
    assert arrived == ["parent", "after"]


def test_a_reader_can_follow_a_recording_that_is_being_written_and_turned_over(tmp_path):
    header = Header(start_s=0, now=0, unix_s=0, law=describe_law(make_law("fixed")), regulator={})
    with Recorder(tmp_path / "run.jsonl", header, max_bytes=80 * 1024) as recorder:
        recorded = RecordingRegulator(Regulator(make_law("fixed")), recorder.note)
        followed = Recording(recorder.path).follow(lambda: None)
        assert next(followed) is None
        recorded.arrive("a", 1.0)
        recorded.begin_step("a", 2.0)
        recorder.flush()
        assert [line.name for line in islice(followed, 2)] == ["arrive", "begin_step"]
        assert next(followed) is None
        seen = 0
        for n in range(400):
            recorded.end_step("a", n + 2.5, None)
            recorded.begin_step("a", n + 3.0)
            recorder.flush()
            while next(followed) is not None:
                seen += 1
    assert seen == 800
    assert (tmp_path / "run.jsonl.1").exists()


def test_every_call_of_the_regulator_goes_over_the_tape():
    """A new one that slipped by would make recordings that replay to something else."""
    public = {
        name
        for name, member in vars(Regulator).items()
        if callable(member) and not name.startswith("_")
    }
    changes_nothing = {"agent_state", "agents"}
    assert public - changes_nothing <= vars(RecordingRegulator).keys()


def test_a_wait_is_written_with_the_numbers_that_caused_it(tmp_path):
    """`grep` has to do on a machine where nothing of ours is installed."""
    recorded, recorder = record(Regulator(make_law("fixed", agents=1)), tmp_path / "run.jsonl")
    with recorder:
        recorded.arrive("first", 0.0)
        recorded.arrive("second", 1.0)
        recorded.leave("first", 2.0)
    said = [line.why for line in Recording(recorder.path) if isinstance(line, RecordedCall)]
    assert said == [None, "1 of 1 agents active", None]
    assert '"why":"1 of 1 agents active"' in recorder.path.read_text()
