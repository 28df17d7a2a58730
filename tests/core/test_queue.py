"""The queue: best first, removed lazily, nothing left behind."""

import random

from hypothesis import given
from hypothesis import strategies as st

from concur_agents.core.family import Account
from concur_agents.core.order import first_come, warm_new_least
from concur_agents.core.queue import Queue


def account(seq, *, admitted_ever=False, waiting_since_s=0.0):
    return Account(f"a{seq}", seq, admitted_ever=admitted_ever, waiting_since_s=waiting_since_s)


def test_the_best_key_goes_first():
    queue = Queue(first_come, lambda account: False)
    third, first = account(3), account(1)
    for waiting in (third, first):
        queue.push(waiting)
    assert queue.head() is first
    queue.remove(first)
    assert queue.head() is third
    assert len(queue) == 1


def test_new_agents_can_be_left_out():
    queue = Queue(first_come, lambda account: False)
    queue.push(account(1))
    assert queue.head(new_allowed=False) is None
    known = account(2, admitted_ever=True)
    queue.push(known)
    assert queue.head(new_allowed=False) is known


def test_the_oldest_is_who_has_waited_longest_whatever_the_order():
    queue = Queue(first_come, lambda account: False)
    late, early = (
        account(1, waiting_since_s=1.0),
        account(2, waiting_since_s=2.0, admitted_ever=True),
    )
    queue.push(late)
    queue.push(early)
    assert queue.oldest() is late
    assert queue.oldest(admitted_ever=True) is early
    queue.remove(late)
    assert queue.oldest() is early
    queue.remove(early)
    assert queue.oldest() is None


def test_an_agent_that_has_gone_cold_while_waiting_falls_behind():
    warm = {"a1", "a2"}
    queue = Queue(warm_new_least, lambda account: account.agent in warm)
    for seq in (1, 2):
        waiting = account(seq, admitted_ever=True)
        waiting.has_context, waiting.idle_since_s = True, float(seq)
        queue.push(waiting)
    assert queue.head().agent == "a1"
    warm.discard("a1")
    assert queue.head().agent == "a2"


def test_an_agent_that_waits_again_stands_in_line_once():
    queue = Queue(first_come, lambda account: False)
    waiting = account(1)
    for _ in range(100):
        queue.push(waiting)
        queue.remove(waiting)
    queue.push(waiting)
    assert queue.waiting() == [waiting]
    queue.remove(queue.head())
    assert queue.head() is None
    assert queue.oldest() is None


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30)), max_size=120))
def test_head_and_oldest_are_those_of_a_sorted_list(moves):
    queue, waiting, now = Queue(first_come, lambda account: False), {}, 0.0
    for admitted_ever, seq in moves:
        now += 1.0
        if seq in waiting:
            queue.remove(waiting.pop(seq))
        else:
            waiting[seq] = account(seq, admitted_ever=admitted_ever, waiting_since_s=now)
            queue.push(waiting[seq])
        assert len(queue) == len(waiting)
        best = min(waiting.values(), key=lambda who: who.seq, default=None)
        assert queue.head() is best
        open_ones = [who for who in waiting.values() if who.admitted_ever]
        assert queue.head(new_allowed=False) is min(open_ones, key=lambda w: w.seq, default=None)
        assert queue.oldest() is next(iter(waiting.values()), None)
        assert queue.oldest(admitted_ever=True) is next(iter(open_ones), None)
        assert queue.waiting() == list(waiting.values())


def test_removed_agents_are_not_kept_in_memory():
    queue, rng = Queue(first_come, lambda account: False), random.Random(1)
    waiting = [account(seq, admitted_ever=seq % 2 == 0) for seq in range(10_000)]
    for who in waiting:
        queue.push(who)
    rng.shuffle(waiting)
    for left, who in enumerate(waiting, start=1):
        queue.remove(who)
        held = max(map(len, (queue._open, queue._new, queue._by_wait, queue._open_by_wait)))
        assert held <= 2 * (10_000 - left) + 64
    assert not queue._open
    assert not queue._new
    assert not queue._by_wait
    assert not queue._open_by_wait
