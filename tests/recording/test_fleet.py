"""Recordings of several pools: they replay to the bit, and say where each agent was."""

import json
import random
from itertools import count

import pytest

from concur_agents.core import Fleet, Reading, State, Usage, make_law
from concur_agents.recording import RecordedCall, Recording, record, replay
from concur_agents.recording.timeline_builder import TimelineBuilder, read_timeline
from concur_agents.recording.what_if import what_if

POOLS = ["http://gpu1:8000", "http://gpu2:8000", "http://gpu3:8000"]
OPTIONS = {"max_wait_s": 60.0, "max_open": 14, "first_reading_s": 2.0}


class Story:
    """A random life of a fleet: groups, children, breaks, pools that fail, come and go."""

    def __init__(self, fleet, seed, *, finds=False):
        self.finds = finds  # whether calls are served by pools that a router picks
        self.fleet, self.dice, self.now = fleet, random.Random(seed), 0.0
        self.names, self.pools = count(), list(POOLS)
        self.roots, self.children = [], {}
        self.calls = {}  # agent -> its calls in flight
        self.waits = set()
        self.dark = set()

    def call(self, name, *args, **options):
        for agent in getattr(self.fleet, name)(*args, **options):
            self.waits.discard(agent)

    def step(self):
        self.now += self.dice.expovariate(4.0)
        here = [*self.roots, *(child for some in self.children.values() for child in some)]
        active = [who for who in here if self.fleet.agent_state(who) in ("reasoning", "acting")]
        busy = [who for who in here if self.calls.get(who)]
        act = self.dice.choice(["arrive", "child", "begin", "begin", "end", "end", "end", "tick",
                                "tick", "leave", "suspend", "dark", "pool", "flushed",
                                "hold", "advance"] + ["found"] * self.finds)  # fmt: skip
        if act == "arrive" and len(self.roots) < 20:
            agent = f"a{next(self.names)}"
            self.roots.append(agent)
            self.waits.add(agent)
            group = self.dice.choice([None, "inf", "the first prompt of a group\nwith two lines"])
            self.call("arrive", agent, self.now, prompt_tokens=1000, group=group)
        elif act == "child" and active:
            parent = self.dice.choice(active)
            root = next((r for r, some in self.children.items() if parent in some), parent)
            child = f"a{next(self.names)}"
            self.children.setdefault(root, []).append(child)
            self.call("arrive", child, self.now, parent=root if root in self.roots else parent)
        elif act == "begin":
            idle = [who for who in here if not self.calls.get(who) and who not in self.waits]
            if idle:
                agent = self.dice.choice(idle)
                self.waits.add(agent)
                self.calls[agent] = 1
                self.call("begin_step", agent, self.now, prompt_tokens=self.dice.randrange(9000))
        elif act == "end":
            ready = [who for who in busy if who not in self.waits]
            if ready:
                agent = self.dice.choice(ready)
                del self.calls[agent]
                usage = self.dice.choice([Usage(self.dice.randrange(9000), 50, 400), None])
                how = self.dice.choice([{}, {}, {"aborted": True}])
                self.call("end_step", agent, self.now, usage, **how)
        elif act == "found":
            ready = [who for who in busy if who not in self.waits]
            if ready:
                pool = self.dice.choice(self.pools)
                self.call("found", self.dice.choice(ready), self.now, pool=pool)
        elif act == "leave" and self.roots and self.dice.random() < 0.5:
            agent = self.dice.choice(self.roots)
            for who in (*self.children.pop(agent, ()), agent):
                self.call("leave", who, self.now)
                self.calls.pop(who, None)
                self.waits.discard(who)
            self.roots.remove(agent)
        elif act == "suspend" and active:
            agent = self.dice.choice(active)
            if agent in self.roots and not self.calls.get(agent):
                self.call("suspend", agent, self.now)
        elif act == "dark" and self.dice.random() < 0.2:
            self.dark ^= {self.dice.choice(self.pools)}
        elif act == "pool" and self.dice.random() < 0.2:
            if len(self.pools) > 2:
                pool = self.pools.pop(self.dice.randrange(len(self.pools)))
                self.call("remove_pool", pool, self.now)
            else:
                name = f"http://gpu{10 + next(self.names)}:8000"
                self.pools.append(name)
                self.call("add_pool", name, self.now)
        elif act == "flushed":
            self.call("flushed", self.now, self.dice.choice(self.pools))
        elif act == "hold":
            self.call("hold", "an update", self.now, 2.0)
            self.now += self.dice.uniform(0.0, 3.0)
            self.call("end_hold", "an update", self.now)
        elif act == "advance":
            self.call("advance", self.now)
        else:
            for pool in self.pools:
                good = Reading(at_s=self.now, kv_usage=0.5, capacity_tokens=30_000,
                               hit_tokens_total=90 * self.now,
                               query_tokens_total=100 * self.now)  # fmt: skip
                self.call("tick", None if pool in self.dark else good, self.now, pool)


def told(path, seed, law="working_set", steps=1000, finds=False, **recorder_options):
    law = make_law(law, agents=3) if law == "fixed" else make_law(law)
    fleet = Fleet(law, POOLS, **OPTIONS)
    recorded, recorder = record(fleet, path, **OPTIONS, **recorder_options)
    story = Story(recorded, seed, finds=finds)
    with recorder:
        for done in range(steps):
            story.step()
            if not done % 500:  # or a busy machine is behind when the file is closed
                recorder.flush()
    return fleet, Recording(path)


@pytest.mark.parametrize("law", ["working_set", "cache_aimd", "fixed"])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_recorded_fleet_replays_to_the_bit(tmp_path, law, seed):
    _, recording = told(tmp_path / "run.jsonl", seed, law)
    assert recording.header.pools == tuple(POOLS)
    assert list(replay(recording)) == []
    names = {line.name for line in recording}
    assert names >= {"arrive", "begin_step", "end_step", "leave", "suspend", "tick", "flushed"}
    assert names >= {"add_pool", "remove_pool", "hold", "end_hold"}
    reasons = {line.tick.view.pools[line.options["pool"]].reason
               for line in recording if line.tick and line.tick.view.pools}  # fmt: skip
    assert "down" in reasons


@pytest.mark.parametrize("seed", [1, 2])
def test_what_was_found_behind_a_router_replays_to_the_bit(tmp_path, seed):
    _, recording = told(tmp_path / "run.jsonl", seed, finds=True)
    assert list(replay(recording)) == []
    assert "found" in {line.name for line in recording}


@pytest.mark.parametrize(("seed", "finds"), [(4, False), (5, False), (4, True), (5, True)])
def test_the_lines_say_which_pool_each_agent_is_in(tmp_path, seed, finds):
    """Followed line by line beside a fleet that makes the same calls."""
    _, recording = told(tmp_path / "run.jsonl", seed, finds=finds)
    fleet = Fleet(recording.header.make_law(), POOLS, **OPTIONS)
    builder = TimelineBuilder(recording.header)
    for line in recording:
        arguments = () if line.agent is None else (line.agent,)
        options = dict(line.options)
        if line.name == "tick":
            arguments = (options.pop("reading"),)
        getattr(fleet, line.name)(*arguments, now=line.now, **options)
        builder.take(line)
        for who in builder.tracker.agents.values():
            if builder.tracker.root(who).state in ("reasoning", "acting"):
                assert who.pool == fleet.pool_of(who.id), (line, who)
    timeline = builder.timeline()
    moved = [lane for lane in timeline.lanes.values() if len(lane.pools) > 1]
    assert moved, "agents of a pool that was down or removed have moved"
    assert sum(pool.steps for pool in timeline.pools.values()) == sum(
        lane.steps for lane in timeline.lanes.values()
    )
    assert any(pool.down_s > 0 for pool in timeline.pools.values())
    assert any(pool.removed_s is not None for pool in timeline.pools.values())


def test_a_file_that_has_turned_over_knows_the_pools_of_its_agents(tmp_path):
    path = tmp_path / "run.jsonl"
    _, recording = told(path, 6, steps=4000, max_bytes=2**17)
    assert recording.header.part > 0
    assert any(who.pool for who in recording.header.agents)
    timeline = read_timeline(recording)
    assert set(timeline.pools) >= set(recording.header.pools)


def test_a_tick_holds_the_sums_and_its_own_pool(tmp_path):
    """Not every pool: eight pools would write sixty-four views a second."""
    _, recording = told(tmp_path / "run.jsonl", 1)
    ticks = [line for line in recording if line.tick is not None]
    assert all(list(line.tick.view.pools) in ([line.options["pool"]], []) for line in ticks)


def test_a_group_is_written_as_ids_are(tmp_path):
    """It may be a whole prompt."""
    told(tmp_path / "run.jsonl", 1)
    text = (tmp_path / "run.jsonl").read_text("utf-8")
    assert "first prompt" not in text
    assert '"group":"text~' in text


def test_lines_of_one_pool_are_as_before(batch):
    """An older version reads them."""
    for raw in batch.path.read_text("utf-8").splitlines()[:300]:
        line = json.loads(raw)
        assert not {"pool", "pools"} & line.keys()
        assert "pools" not in line.get("view", {})


def test_another_law_over_a_recorded_fleet(tmp_path):
    _, recording = told(tmp_path / "run.jsonl", 2)
    outcome = what_if(recording, make_law("fixed", agents=1))
    assert outcome.recorded.law == "working_set"
    assert outcome.other.waits.total_s > outcome.recorded.waits.total_s
    assert outcome.first is not None
    same = what_if(recording, make_law("working_set"))
    assert same.first is None


def test_a_simulated_batch_on_three_engines_replays_to_the_bit(batch_of_three):
    assert list(replay(batch_of_three)) == []
    timeline = read_timeline(batch_of_three)
    assert list(timeline.pools) == POOLS
    assert [pool.down_s > 0 for pool in timeline.pools.values()] == [False, True, False]
    assert all(pool.steps > 10 for pool in timeline.pools.values())
    assert len(timeline.samples) * 2.5 < sum(len(p.samples) for p in timeline.pools.values())
    moved = [lane for lane in timeline.lanes.values() if len(lane.pools) > 1]
    assert any(POOLS[1] in [pool for _, pool in lane.pools] for lane in moved), "it was down"
    waits = [wait for wait in timeline.waits if wait.ended_by is not None]
    assert waits
    assert all(wait.pool in POOLS for wait in waits if wait.ended_by.cause != "left")


def test_the_explanation_of_an_agent_names_its_pool():
    fleet = Fleet(make_law("fixed", agents=1), POOLS[:2], first_reading_s=0.0)
    for n in range(5):
        fleet.arrive(f"a{n}", 0.0)
    assert str(fleet.explain("a0", 1.0)) == "a0: acting in http://gpu1:8000: holding 2304 tokens"
    assert str(fleet.explain("a2", 1.0)).startswith("a2: queued in http://gpu1:8000: 1 of 1 agents")
    assert str(fleet.explain("a4", 1.0)) == "a4: queued: waits for one of 2 pools"
    assert fleet.agents(["a0"])[0].pool == POOLS[0]
    fleet.arrive("a5", 1.0)
    assert fleet.why("a5", 1.0).numbers == "waits for one of 2 pools, as does 1 other"
    assert State.QUEUED.value == fleet.agent_state("a5")


def test_calls_of_no_pool_or_agent_that_the_file_names_are_refused(tmp_path):
    path = tmp_path / "run.jsonl"
    told(path, 1, steps=50)
    lines = path.read_text("utf-8").splitlines()
    good = next(line for line in lines if '"call":"tick"' in line)
    for bad in (
        {**json.loads(good), "pool": 7},
        {**json.loads(good), "pools": ["x"]},
        {"call": "add_pool", "now": 1.0, "agent": "a", "name": "x", "let_in": []},
    ):
        path.write_text("\n".join([lines[0], json.dumps(bad), ""]))
        with pytest.raises(Exception, match="not a line of a recording"):
            list(Recording(path))


def test_the_names_of_pools_are_safe_for_a_terminal(tmp_path):
    path = tmp_path / "run.jsonl"
    told(path, 1, steps=100)
    text = path.read_text("utf-8").replace("http://gpu1:8000", "\\u001b[31mred")
    path.write_text(text)
    recording = Recording(path)
    assert all("\x1b" not in pool for pool in recording.header.pools)
    calls = [line for line in recording if isinstance(line, RecordedCall)]
    assert not any("\x1b" in pool for line in calls for pool in line.pools.values())
    assert not any("\x1b" in pool for line in calls if line.tick for pool in line.tick.view.pools)


@pytest.mark.parametrize("seed", [7, 9])
def test_counts_of_a_fleet_are_those_of_its_agents_one_by_one(tmp_path, seed):
    """An agent that waits for another pool is paused, also where that pool has it as new."""
    fleet = Fleet(make_law("working_set"), POOLS, **OPTIONS)
    story = Story(fleet, seed)
    moved = 0
    for _ in range(1000):
        story.step()
        view = fleet.view(story.now)
        roots = [fleet.agent_state(agent) for agent in story.roots]
        for state in ("reasoning", "acting"):
            assert getattr(view, state) == roots.count(state), state
        assert view.paused + view.queued == roots.count("paused") + roots.count("queued")
        assert fleet._line.begun <= view.paused <= roots.count("paused")
        moved += fleet._line.begun
    assert moved
