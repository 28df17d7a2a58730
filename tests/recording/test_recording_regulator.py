"""Recording a Regulator: what is noted, and that it replays to the bit."""

import asyncio
import json
import random
import threading
from contextlib import suppress
from dataclasses import asdict

import httpx
import pytest

from concur_agents import ConfigError, Governor, RecordingError
from concur_agents.core import Reading, Regulator, Usage, law_names, make_law
from concur_agents.core.reads import Reads
from concur_agents.recording import (
    Happening,
    RecordedCall,
    Recording,
    RecordingRegulator,
    make_regulator,
    record,
    replay,
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
    """A watcher: its reads must not make a replay differ."""
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
    for line in recorder.path.read_text("utf-8").splitlines():
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
    text = path.read_text("utf-8")
    assert [word for word in secrets if word in text] == []
    assert '"poll_failed"' in text
    assert '"prompt_tokens":900' in text
    assert '"prefix":' in text, "the prompt came so far as to be digested"
    assert path.stat().st_mode & 0o077 == 0, "only its owner may read it"


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


def test_reads_are_not_recorded(tmp_path):
    """They change nothing, so a watcher must not make the file grow."""
    recorded, recorder = record(Regulator(make_law("fixed", agents=1)), tmp_path / "run.jsonl")
    with recorder:
        recorded.arrive("first", 0.0)
        recorded.arrive("second", 1.0)
        for n in range(1000):
            recorded.view(2.0 + n)
            recorded.explain("second", 2.0 + n)
            recorded.why("second", 2.0 + n)
            recorded.next_wake(2.0 + n)
            recorded.agents()
    assert [line.name for line in Recording(recorder.path)] == ["arrive", "arrive"]
    assert list(replay(Recording(recorder.path))) == []


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


def test_every_deciding_call_of_the_regulator_is_recorded():
    """A call that is not recorded would make a replay decide differently."""
    deciding = {
        name
        for name in set(dir(Regulator)) - set(dir(Reads))
        if callable(getattr(Regulator, name)) and not name.startswith("_")
    }
    # A fleet takes agents in, and its recording has the calls of the fleet.
    assert deciding - {"take_in"} <= vars(RecordingRegulator).keys()


def test_a_wait_is_written_with_the_numbers_that_caused_it(tmp_path):
    """On a machine without this package `grep` must be enough."""
    recorded, recorder = record(Regulator(make_law("fixed", agents=1)), tmp_path / "run.jsonl")
    with recorder:
        recorded.arrive("first", 0.0)
        recorded.arrive("second", 1.0)
        recorded.leave("first", 2.0)
    said = [line.why for line in Recording(recorder.path) if isinstance(line, RecordedCall)]
    assert said == [None, "1 of 1 agents active", None]
    assert '"why":"1 of 1 agents active"' in recorder.path.read_text("utf-8")


def test_a_flushed_cache_is_in_it_and_is_replayed(tmp_path):
    """The reader took the line for a damaged one, because it names no agent."""
    recorded, recorder = record(Regulator(make_law("fixed", agents=1)), tmp_path / "run.jsonl")
    with recorder:
        recorded.arrive("a", 0.0)
        recorded.flushed(1.0)
    recording = Recording(recorder.path)
    assert [line.name for line in recording] == ["arrive", "flushed"]
    assert list(replay(recording)) == []


def test_a_hold_and_an_aborted_call_are_in_it_and_are_replayed(tmp_path):
    """With the reason of the agent that a weight update stopped."""
    recorded, recorder = record(Regulator(make_law("fixed", agents=1)), tmp_path / "run.jsonl")
    with recorder:
        recorded.arrive("a", 0.0)
        recorded.begin_step("a", 0.0)
        recorded.hold("update", 1.0, 60.0)
        recorded.end_step("a", 2.0, Usage(100, 1), aborted=True)
        recorded.begin_step("a", 3.0)
        recorded.end_hold("update", 4.0)
    recording = Recording(recorder.path)
    assert list(replay(recording)) == []
    begun = [line for line in recording if line.name == "begin_step"][1]
    assert begun.why == "held, as during a weight update, for at most 58 s more"
    assert [line.options.get("timeout_s") for line in recording if line.name == "hold"] == [60.0]


def test_a_recorded_governor_of_several_engines_replays_to_the_bit(tmp_path, scripted_engines):
    """Groups, children, breaks; one engine is dark for 20 s, one is added and one is removed."""
    pools = ["http://gpu1:8000", "http://gpu2:8000", "http://gpu3:8000"]
    dark = {pools[1]: range(6, 26)}
    scripts = {
        pool: lambda now, pool=pool: None if int(now) in dark.get(pool, ()) else reading(now % 20)
        for pool in pools
    }
    path = tmp_path / "run.jsonl"
    events = []

    async def main():
        urls = scripted_engines(scripts)
        async with virtual_governor(urls[:2], record=path, max_wait_s=15.0) as governor:
            governor.on_event(events.append)
            looking = asyncio.ensure_future(look(governor))
            living = asyncio.ensure_future(eventful(governor, 3))
            await asyncio.sleep(4)
            governor.add_pool(urls[2])
            await asyncio.sleep(24)
            governor.remove_pool(urls[0])
            await living
            looking.cancel()

    run(main())
    recording = Recording(path)
    assert list(replay(recording)) == []
    calls = [line for line in recording if isinstance(line, RecordedCall)]
    assert {"add_pool", "remove_pool"} <= {call.name for call in calls}
    assert {pool for call in calls for pool in call.pools.values()} == set(pools)
    failed = [line for line in recording if isinstance(line, Happening) and "poll" in line.kind]
    assert {line.pool for line in failed if line.kind == "poll_failed"} == {pools[1]}
    began = [event for event in events if event.kind == "step_began"]
    assert {event.pool for event in began} == set(pools)
