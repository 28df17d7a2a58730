"""The simulated engine: what a step costs, who gets into it, and that jumping changes nothing."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from concur_agents.sim.engine import Engine, EngineCounters, Event, Request, Run
from concur_agents.sim.profile import Profile

ROUND = Profile(
    name="round",
    description="round numbers",
    source="made up",
    model="none",
    block_size=10,
    kv_blocks=100,
    max_num_seqs=8,
    max_batched_tokens=100,
    max_model_len=1000,
    step_overhead_s=1.0,
    prefill_s_per_token=0.01,
    prefill_s_per_token2=0.0,
    decode_s_per_seq=0.1,
    decode_s_per_kv_token=0.0,
)


def request(
    name: str, prompt: int | tuple[Run, ...], output: int = 1, at_s: float = 0.0
) -> Request:
    runs = prompt if isinstance(prompt, tuple) else (Run((name, "prompt"), prompt),)
    return Request(name, runs, Run((name, "output"), output), at_s)


def finish(engine: Engine) -> list[Event]:
    """Run until idle, asking for every next instant as a runner does."""
    events: list[Event] = []
    for _ in range(100_000):
        at_s = engine.next_event_s()
        if at_s is None:
            return events
        events += engine.advance(at_s)
    raise AssertionError("the engine does not come to an end")


def told(events: list[Event]) -> list[tuple[str, float, str]]:
    return [(event.kind, event.at_s, event.request.id) for event in events]


# -- what a step costs


def test_a_request_alone_takes_its_prefill_and_a_step_per_further_token() -> None:
    engine = Engine(ROUND)
    engine.submit(request("a", 50, output=3))
    # 1 s + 50 x 0.01 s gives the first token; then two steps of 1 s + 0.1 s.
    assert told(finish(engine)) == [("first_token", 1.5, "a"), ("finished", 3.7, "a")]


def test_time_starts_where_the_caller_says() -> None:
    engine = Engine(ROUND, start_s=1_000.0)
    engine.submit(request("a", 50, at_s=1_000.0))
    assert told(finish(engine)) == [("first_token", 1001.5, "a"), ("finished", 1001.5, "a")]


def test_a_long_prompt_is_prefilled_in_chunks_of_the_budget() -> None:
    engine = Engine(ROUND)
    engine.submit(request("a", 250))
    assert told(finish(engine))[0] == ("first_token", 5.5, "a")
    assert engine.counters().steps_total == 3


def test_attention_costs_more_the_further_in_a_token_is() -> None:
    engine = Engine(ROUND.replace(prefill_s_per_token=0.0, prefill_s_per_token2=0.001))
    engine.submit(request("a", 200))
    # Chunks of 100 tokens at mean positions 50 and 150.
    assert told(finish(engine))[0] == ("first_token", 1 + 5 + 1 + 15, "a")


def test_decodes_pay_for_the_kv_they_read_which_grows() -> None:
    engine = Engine(ROUND.replace(decode_s_per_kv_token=0.001, decode_s_per_seq=0.0))
    engine.submit(request("a", 100, output=4))
    assert told(finish(engine))[-1] == ("finished", 2 + 3 * 1 + 0.1 + 0.101 + 0.102, "a")


def test_a_cached_prompt_costs_only_what_is_new() -> None:
    engine = Engine(ROUND)
    first = request("a", 90, output=11)
    engine.submit(first)
    finish(engine)
    at_s = first.finish_s
    assert at_s is not None
    second = request("b", (*first.prompt, first.output, Run("tool", 19)), at_s=at_s)
    engine.submit(second)
    finish(engine)
    # 90 + 10 tokens have KV: the last token of an answer is never fed back in.
    assert second.cached_tokens == 100
    assert second.finish_s == pytest.approx(at_s + 1 + 0.01 * 20)


def test_request_overhead_delays_a_request_but_nobody_else() -> None:
    engine = Engine(ROUND.replace(request_overhead_s=0.25))
    engine.submit(request("a", 50))
    assert told(finish(engine))[0] == ("first_token", 1.75, "a")


# -- who gets in


def test_an_arrival_in_the_middle_of_a_step_joins_the_next() -> None:
    engine = Engine(ROUND)
    engine.submit(request("a", 50, output=3))
    engine.advance(2.0)  # in the middle of the step from 1.5 to 2.6
    engine.submit(request("b", 40, at_s=2.0))
    events = told(engine.advance(2.6))
    assert events == []
    assert engine.counters().running == 1
    # b's step: 1 s + 0.1 s for a's decode + 40 x 0.01 s
    assert told(finish(engine))[0] == ("finished", 4.1, "a")


def test_an_arrival_at_a_boundary_joins_the_step_that_starts_there() -> None:
    engine = Engine(ROUND)
    engine.submit(request("a", 50, output=3))
    engine.advance(1.5)
    engine.submit(request("b", 40, at_s=1.5))
    assert ("first_token", 3.0, "b") in told(finish(engine))


def test_looking_ahead_does_not_shut_out_an_arrival_at_the_same_instant() -> None:
    engine = Engine(ROUND)
    engine.submit(request("a", 50))
    assert engine.next_event_s() == 1.5
    engine.submit(request("b", 40))
    assert engine.next_event_s() == pytest.approx(1.9)
    assert [event.at_s for event in finish(engine)] == [pytest.approx(1.9)] * 4


def test_waiting_requests_are_let_in_first_come_first_served() -> None:
    """A small request behind one that does not fit waits, as in vLLM."""
    engine = Engine(ROUND.replace(max_batched_tokens=2000, max_num_seqs=100))
    engine.submit(request("big", 700, output=20))
    engine.submit(request("too-big", 400, output=5))
    engine.submit(request("small", 10, output=5))
    events = told(finish(engine))
    starts = [name for kind, _, name in events if kind == "first_token"]
    assert starts == ["big", "too-big", "small"]
    assert events[1][:1] + events[1][2:] == ("finished", "big")


def test_no_more_sequences_run_than_there_are_places() -> None:
    engine = Engine(ROUND.replace(max_num_seqs=2))
    for name in "abc":
        engine.submit(request(name, 10, output=5))
    engine.advance(3.0)
    assert (engine.counters().running, engine.counters().waiting) == (2, 1)


def test_with_reserve_a_prompt_waits_until_all_of_it_fits() -> None:
    tight = ROUND.replace(kv_blocks=30)
    for reserve, running in ((True, 1), (False, 2)):
        engine = Engine(tight.replace(reserve_full_prompt=reserve))
        engine.submit(request("a", 120, output=50))
        engine.submit(request("b", 200, output=5))
        engine.advance(3.5)
        assert engine.counters().running == running


def test_requests_of_one_step_share_what_the_first_of_them_computes() -> None:
    engine = Engine(ROUND.replace(max_batched_tokens=1000))
    system = Run("system", 100)
    for name in "abc":
        engine.submit(request(name, (system, Run(name, 20))))
    cached = {event.request.id: event.request.cached_tokens for event in finish(engine)}
    assert cached == {"a": 0, "b": 100, "c": 100}


# -- running out of blocks


def test_the_latest_is_preempted_when_decodes_run_out_of_blocks() -> None:
    engine = Engine(ROUND.replace(kv_blocks=20))
    engine.submit(request("a", 90, output=60))
    engine.submit(request("b", 90, output=60))
    events = told(finish(engine))
    assert [name for kind, _, name in events if kind == "preempted"] == ["b"]
    assert [name for kind, _, name in events if kind == "finished"] == ["a", "b"]
    assert [name for kind, _, name in events if kind == "first_token"] == ["a", "b"]
    counters = engine.counters()
    assert counters.preemptions_total == 1
    assert counters.generated_tokens_total == 120
    assert counters.query_tokens_total == 180  # looked up again, but counted once
    # "b" had 100 tokens when it lost its place; 50 of them were still there when "a" was done.
    assert counters.computed_tokens_total == 180 + 50


def test_a_preempted_request_finds_again_what_nobody_needed_meanwhile() -> None:
    """Its blocks go back to the cache, so only the evicted tail is computed twice."""
    engine = Engine(ROUND.replace(kv_blocks=20))
    engine.submit(request("a", 90, output=20))
    engine.submit(request("b", 90, output=20))
    finish(engine)
    counters = engine.counters()
    assert counters.preemptions_total == 1
    assert 180 < counters.computed_tokens_total < 220


# -- the other doors


def test_cancelling_frees_blocks_and_says_nothing_more() -> None:
    engine = Engine(ROUND)
    engine.submit(request("a", 50, output=100))
    engine.submit(request("b", 50, output=5))
    engine.advance(4.0)
    engine.cancel("a", 4.0)
    events = told(finish(engine))
    assert {name for _, _, name in events} == {"b"}
    assert engine.counters().kv_usage == 0
    engine.submit(request("a", 50, at_s=99.0))  # the id is free again
    assert told(finish(engine))[-1][2] == "a"


def test_cancelling_what_waits_lets_the_next_one_in() -> None:
    engine = Engine(ROUND.replace(max_num_seqs=1))
    for name in "abc":
        engine.submit(request(name, 10, output=3))
    engine.advance(0.5)
    engine.cancel("b", 0.5)
    engine.cancel("nobody", 0.5)
    assert [name for kind, _, name in told(finish(engine)) if kind == "finished"] == ["a", "c"]


def test_progress_counts_output_tokens_step_by_step() -> None:
    engine = Engine(ROUND)
    engine.submit(request("a", 50, output=5))
    seen = []
    for at_s in (1.0, 1.5, 2.5, 2.6, 3.69, 3.7):
        engine.advance(at_s)
        seen.append(engine.progress("a"))
    assert seen == [0, 1, 1, 2, 2, 3]
    with pytest.raises(KeyError):
        engine.progress("b")


def test_reset_cache_makes_the_next_prompt_cold() -> None:
    engine = Engine(ROUND)
    engine.submit(request("a", (Run("p", 90),)))
    finish(engine)
    engine.reset_cache()
    again = request("b", (Run("p", 90),), at_s=10.0)
    engine.submit(again)
    finish(engine)
    assert again.cached_tokens == 0


def test_a_restart_zeroes_counters_and_sends_what_was_in_flight_again() -> None:
    engine = Engine(ROUND.replace(max_num_seqs=2))
    for name in "abc":
        engine.submit(request(name, 50, output=20))
    engine.advance(10.0)
    engine.restart()
    assert engine.counters().generated_tokens_total == 0
    assert engine.counters().kv_usage == 0
    events = finish(engine)
    assert min(event.at_s for event in events) > 10.0
    assert sorted(event.request.id for event in events if event.kind == "finished") == [*"abc"]
    assert engine.counters().generated_tokens_total == 60


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda: request("a", 0), "at least 1 prompt"),
        (lambda: request("a", 10, output=0), "at least 1 prompt"),
        (lambda: request("a", 990, output=20), "max_model_len 1000"),
        (lambda: request("taken", 10), "in use"),
    ],
)
def test_a_request_that_can_never_run_is_refused(bad: Callable[[], Request], message: str) -> None:
    engine = Engine(ROUND)
    engine.submit(request("taken", 10))
    with pytest.raises(ValueError, match=message):
        engine.submit(bad())


def test_a_request_larger_than_the_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="pool of 500 tokens"):
        Engine(ROUND.replace(kv_blocks=50)).submit(request("a", 490, output=20))


def test_counters_add_up() -> None:
    engine = Engine(ROUND)
    system = Run("system", 100)
    for i, name in enumerate("abcd"):
        engine.submit(request(name, (system, Run(name, 30)), output=10, at_s=3.0 * i))
    events = finish(engine)
    done = [event.request for event in events if event.kind == "finished"]
    counters = engine.counters()
    assert counters.prompt_tokens_total == counters.query_tokens_total == 4 * 130
    assert counters.cached_tokens_total == sum(r.cached_tokens or 0 for r in done)
    assert counters.computed_tokens_total + counters.cached_tokens_total == 4 * 130
    assert counters.finished_total == 4
    lives = sum((r.finish_s or 0) - r.at_s for r in done)
    spent = counters.queue_s_total + counters.prefill_s_total + counters.decode_s_total
    assert spent == pytest.approx(lives)


# -- properties

SMALL = ROUND.replace(
    block_size=4,
    max_num_seqs=6,
    max_batched_tokens=24,
    max_model_len=120,
    prefill_s_per_token2=0.0001,
    decode_s_per_kv_token=0.003,
)


Story = list[tuple[str, float, str]]


def play(
    seed: int, profile: Profile, *, max_jump: int = 1 << 62
) -> tuple[Story, EngineCounters, dict[str, tuple[int, int]]]:
    """A closed loop of agents with tools, cancels and shared prefixes: all that happened, the
    counters, and per request what it hit and how much of it was ever sent before [tokens].
    """
    rng = random.Random(seed)
    engine = Engine(profile, max_jump=max_jump)
    agents: list[dict[str, Any]] = [
        {"prompt": (Run(("system", rng.randrange(2)), 13),), "step": 0}
        for _ in range(rng.randint(3, 12))
    ]
    plan = [
        [(rng.randint(1, 12), rng.randint(1, 15), rng.choice([0.0, 0.3, 7.0])) for _ in range(9)]
        for _ in agents
    ]
    # When, whose turn, and what to cancel then ("": nothing, send the next step).
    todo = [(rng.choice([0.0, 2.5]), i, "") for i in range(len(agents))]
    hits: dict[str, tuple[int, int]] = {}
    story: Story = []
    while True:
        todo.sort()
        times = [t for t in (engine.next_event_s(), todo[0][0] if todo else None) if t is not None]
        if not times:
            return story, engine.counters(), hits
        at_s = min(times)
        for event in engine.advance(at_s):
            name = event.request.id
            story.append((event.kind, event.at_s, name))
            if event.kind == "first_token":
                sent = event.request.prompt[:-1]  # all but what the tool has just said
                hits[name] = (event.request.cached_tokens or 0, sum(run.tokens for run in sent))
            if event.kind == "finished":
                i = int(name.split(".")[0])
                agents[i]["step"] += 1
                agents[i]["prompt"] = (*event.request.prompt, event.request.output)
                todo.append((event.at_s + plan[i][agents[i]["step"]][2], i, ""))
        todo.sort()
        while todo and todo[0][0] <= at_s:
            due_s, i, cancel = todo.pop(0)
            if cancel:
                engine.cancel(cancel, due_s)
                continue
            step = agents[i]["step"]
            new, output, _ = plan[i][step]
            prompt = (*agents[i]["prompt"], Run((i, step, "tool"), new))
            if step == 8 or sum(run.tokens for run in prompt) + output > profile.max_model_len:
                continue
            name = f"{i}.{step}"
            engine.submit(Request(name, prompt, Run((name, "output"), output), due_s))
            if (i + step) % 7 == 6:
                todo.append((due_s + 1.9, i, name))


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 100_000), st.integers(31, 120), st.integers(1, 7), st.booleans())
def test_jumping_over_steps_changes_nothing(
    seed: int, kv_blocks: int, max_jump: int, reserve: bool
) -> None:
    """Same events, at the same instants to the last bit, same counters."""
    profile = SMALL.replace(kv_blocks=kv_blocks, reserve_full_prompt=reserve)
    assert play(seed, profile) == play(seed, profile, max_jump=max_jump)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 100_000), st.integers(31, 120))
def test_no_request_is_lost_and_no_hit_exceeds_what_was_sent(seed: int, kv_blocks: int) -> None:
    story, counters, hits = play(seed, SMALL.replace(kv_blocks=kv_blocks))
    times = [at_s for _, at_s, _ in story]
    assert times == sorted(times)
    started = [name for kind, _, name in story if kind == "first_token"]
    finished = [name for kind, _, name in story if kind == "finished"]
    assert len(set(started)) == len(started)
    assert len(set(finished)) == len(finished)
    assert (counters.running, counters.waiting, counters.kv_usage) == (0, 0, 0)
    assert counters.finished_total == len(finished)
    cancellable = {name for name in started if sum(map(int, name.split("."))) % 7 == 6}
    assert set(started) - set(finished) <= cancellable
    assert counters.hit_tokens_total <= counters.query_tokens_total
    for hit, sent in hits.values():
        assert hit <= sent
        assert hit % SMALL.block_size == 0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 100_000), st.integers(31, 120), st.integers(1, 5))
def test_how_often_the_engine_is_asked_changes_nothing(
    seed: int, kv_blocks: int, slices: int
) -> None:
    """A host may run it in pieces of any size (a server does), and need not ask ahead."""
    profile = SMALL.replace(kv_blocks=kv_blocks, request_overhead_s=0.013)
    rng = random.Random(seed)
    jobs = [
        request(f"{i}", rng.randint(1, 60), rng.randint(1, 50), rng.uniform(0, 30))
        for i in range(rng.randint(1, 25))
    ]
    stories = []
    for pieces in (0, slices):
        engine, story = Engine(profile), []
        for job in sorted(jobs, key=lambda job: job.at_s):
            now = engine.counters().at_s
            for cut in sorted(rng.uniform(now, job.at_s) for _ in range(pieces)):
                story += told(engine.advance(cut))
                if pieces % 2:
                    engine.next_event_s()
            story += told(engine.advance(job.at_s))
            engine.submit(Request(job.id, job.prompt, job.output, job.at_s))
        story += told(finish(engine))
        stories.append((story, engine.counters()))
    assert stories[0] == stories[1]
