"""Questions change nothing: a Regulator that is asked all the time decides as one that is not."""

import itertools
import random

import pytest

from concur_agents.core import Reading, Regulator, Usage, make_law

QUESTIONS = 10_000


def batch(seed, *, ask, **options):
    """A busy hour of agents that come, call, suspend and leave: everything that was decided.

    Prompts grow, and a context that has been idle for long is missed: the pool is learned.

    Args:
        ask: called as `ask(regulator, agent, now)` after each event.
    """
    rng, now, names = random.Random(seed), 0.0, itertools.count()
    r = Regulator(make_law("working_set"), **options)
    story, last_s = [], {}
    prompts = {}

    def note(decision):
        story.append((list(decision), decision.transitions, r.state, r.limit))

    def ended(agent):
        cached = prompts[agent] if now - last_s.get(agent, now) < 40.0 else 0
        prompts[agent] += rng.randrange(100, 3_000)
        last_s[agent] = now
        usage = Usage(prompts[agent], rng.randrange(10, 400), min(cached, prompts[agent]))
        return rng.choice([usage, usage, usage, None])

    for event in range(2_000):
        now += rng.expovariate(2.0)
        alive = list(prompts)
        acting = [a for a in alive if r.agent_state(a) == "acting"]
        calling = [a for a in alive if r.agent_state(a) == "reasoning"]
        out = [a for a in alive if r.agent_state(a) == "suspended"]
        agent = rng.choice(alive) if alive else ""
        match rng.randrange(12):
            case 0 | 1 if len(alive) < 40:
                agent = f"a{next(names)}"
                prompts[agent] = rng.randrange(500, 4_000)
                note(r.arrive(agent, now, priority=rng.randrange(2)))
            case 2 | 3 | 4 if acting:
                note(r.begin_step(rng.choice(acting), now))
            case 5 | 6 | 7 if calling:
                agent = rng.choice(calling)
                note(r.end_step(agent, now, ended(agent)))
            case 8 if acting and rng.random() < 0.5:
                note(r.suspend(rng.choice(acting), now))
            case 9 if out:
                note(r.resume(rng.choice(out), now))
            case 10 if agent and rng.random() < 0.3:
                note(r.leave(agent, now))
                del prompts[agent]
            case _:
                reading = Reading(at_s=now, kv_usage=0.5, running=3.0)
                note(r.tick(rng.choice([reading, None]), now))
        if event % 5 == 0:
            wake_s = r.next_wake(now)
            story.append(wake_s)
            if wake_s is not None and wake_s < now + 5.0:
                now = max(now, wake_s)
                note(r.advance(now))
        ask(r, agent, now)
    return r, story


def silence(regulator, agent, now):
    pass


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", [{}, {"max_wait_s": 20.0}, {"max_open": 12, "max_wait_s": 5.0}])
def test_ten_thousand_questions_change_not_one_decision(seed, options):
    rng, asked = random.Random(seed), [0]

    def ask(r, agent, now):
        later = now + rng.choice([0.0, 0.001, 0.2, 100.0])  # also of times that have not come
        questions = [
            lambda: r.view(later),
            lambda: r.explain(agent, later),
            lambda: r.why(agent, later),
            r.agents,
            lambda: r.next_wake(later),
            r.ids,
            r.waiting,
            lambda: repr(r),
            lambda: (r.limit, r.reason, r.agent_state(agent)),
        ]
        for question in rng.sample(questions, 6):
            question()
            asked[0] += 1

    quiet, expected = batch(seed, ask=silence, **options)
    curious, story = batch(seed, ask=ask, **options)
    assert asked[0] >= QUESTIONS
    assert story == expected
    assert curious.view(1e4) == quiet.view(1e4)
    assert curious.last_snapshot == quiet.last_snapshot
    view = quiet.view(1e4)
    assert quiet.last_snapshot.learned_tokens is not None, "the pool was learned"
    assert view.pauses_total > 10, "and felt"


def test_when_next_wake_is_asked_does_not_matter():
    """Found here: the answer was reckoned from the moment of the first question."""
    answers = set()
    for asked_s in (1.0, 1.1, 1.7):
        r = Regulator(make_law("working_set", start_tokens=4_000.0))
        for agent in "abc":
            r.arrive(agent, 0.0, prompt_tokens=1_500)
        r.begin_step("a", 0.0)
        r.end_step("a", 0.9, Usage(1_500, 100, 0))
        r.tick(None, 1.0)
        answers.add(r.next_wake(asked_s))
    assert len(answers) == 1
