"""The same item twice is two agents with two names, in this run and in the next (fault F)."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import pytest

import concur_agents as ca
from concur_agents import AgentPool, ConfigError
from concur_agents.batch.keys import Keys
from concur_agents.testing import run, virtual_governor

SAMPLES = ["t1", "t2"] * 4
NAMES = ["t1", "t2", "t1#2", "t2#2", "t1#3", "t2#3", "t1#4", "t2#4"]


def passes(path, items=SAMPLES, *, stop_after=None, fail=()):
    """Runs samples with values that are all different; returns outcomes by key and what ran."""
    ran = []

    async def main():
        async def solve(item, agent):
            ran.append(agent.id)
            await asyncio.sleep(1)
            if agent.id in fail:
                raise ValueError(item)
            return f"sample {agent.id}"

        outcomes = {}
        async with virtual_governor(limit=2) as gov, AgentPool(gov, journal=path) as pool:
            async for outcome in pool.as_completed(solve, items):
                assert outcome.key not in outcomes
                outcomes[outcome.key] = outcome
                if len(outcomes) == stop_after:
                    break
        return outcomes

    return run(main()), ran


@pytest.mark.parametrize("has_journal", [False, True])
def test_an_item_k_times_is_k_agents_each_with_its_name_and_value(tmp_path, has_journal):
    outcomes, ran = passes(tmp_path / "runs.jsonl" if has_journal else None)
    assert ran == NAMES
    assert {key: o.value for key, o in outcomes.items()} == {n: f"sample {n}" for n in NAMES}
    assert {o.status for o in outcomes.values()} == {"ok"}
    assert Counter(o.item for o in outcomes.values()) == {"t1": 4, "t2": 4}


def test_interrupted_and_run_again_exactly_the_missing_samples_run(tmp_path):
    path = tmp_path / "runs.jsonl"
    first, _ = passes(path, stop_after=3, fail=["t2"])
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()[1:]]
    kept = {line["key"] for line in lines if line["status"] == "ok"}
    assert kept >= {key for key, o in first.items() if o.status == "ok"}
    assert "t2" not in kept
    second, ran = passes(path)
    assert sorted(ran) == sorted(set(NAMES) - kept)
    assert {key: o.value for key, o in second.items()} == {n: f"sample {n}" for n in NAMES}
    assert {key for key, o in second.items() if o.status == "cached"} == kept
    third, ran = passes(path)
    assert ran == []
    assert {key: o.value for key, o in third.items()} == {n: f"sample {n}" for n in NAMES}


def test_more_samples_than_last_time_run_only_the_new_ones(tmp_path):
    path = tmp_path / "runs.jsonl"
    passes(path)
    outcomes, ran = passes(path, ["t1", "t2"] * 5)
    assert ran == ["t1#5", "t2#5"]
    assert len(outcomes) == 10


def test_map_gives_each_sample_its_own_value_in_the_order_of_the_items(tmp_path):
    async def main():
        async with (
            virtual_governor(limit=2) as gov,
            AgentPool(gov, journal=tmp_path / "runs.jsonl") as pool,
        ):

            async def solve(item, agent):
                await asyncio.sleep(1)
                return agent.id

            assert await pool.map(solve, ["t1"] * 3) == ["t1", "t1#2", "t1#3"]
            assert await pool.map(solve, ["t1"] * 2) == ["t1#4", "t1#5"]
            assert await pool.submit(solve, "t1") == "t1#6"
            tasks = [pool.submit(solve, "x", key="mine") for _ in range(2)]
            assert [task.key for task in tasks] == ["mine", "mine#2"]
            assert [await task for task in tasks] == ["mine", "mine#2"]

    run(main())


@pytest.mark.parametrize(
    ("items", "names"),
    [
        (["a", "a#2", "a", "a"], ["a", "a#2", "a#3", "a#4"]),
        (["a", "a", "a#2"], ["a", "a#2", "a#2#2"]),
        ([7, "7", 7], ["7", "7#2", "7#3"]),
        ([{"id": 1}, {"id": 1}], ["1", "1#2"]),
        ([object(), "item-2", object()], ["item-1", "item-2", "item-2#2"]),
        (["", "", "\n", "\n"], ["", "#2", "\n", "\n#2"]),
    ],
)
def test_no_two_names_are_equal_whatever_the_items_are_called(items, names):
    keys = Keys(None, are_kept=False)
    assert [keys.of(item) for item in items] == names
    assert len(set(names)) == len(names)


def test_a_key_function_that_returns_the_same_twice_is_numbered_too():
    keys = Keys(lambda item: item["task"], are_kept=True)
    assert [keys.of({"task": "t", "seed": seed}) for seed in (1, 2)] == ["t", "t#2"]
    with pytest.raises(ConfigError, match="must return a string"):
        keys.of({"task": ["t"]})
    assert keys.of({"task": 1}) == "1"


def test_two_pools_of_one_governor_run_the_same_items_at_once():
    async def main():
        async with (
            virtual_governor(limit=4) as gov,
            AgentPool(gov) as one,
            AgentPool(gov) as two,
            gov.agent("t2"),
        ):

            async def solve(item):
                async with gov.agent():  # a nameless one inside, whatever the items are called
                    await asyncio.sleep(1)
                return item

            items = ["t1", "t1", "t2"]
            assert await asyncio.gather(one.map(solve, items), two.map(solve, items)) == [items] * 2
            assert await one.map(lambda item: ca.current_agent().id, [object()]) == ["item-1"]

    run(main())
