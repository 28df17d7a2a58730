"""A frame to show."""

import pytest

from concur_agents.observe.frame import Active, Frame, PoolFrame, Waiting


@pytest.fixture
def frame():
    """Two pools, one of which is down; one agent acts, and one of three waiting ones is named."""
    pool = {"active": 1, "waiting": 1, "pressure_tokens": 500, "capacity_tokens": 1000}
    pool |= {"limit_agents": None, "hit_rate": 0.9}
    return Frame(
        at_s=10.0,
        url="http://gpu0:8000",
        law="working_set",
        reason="reported",
        reasoning=0,
        acting=1,
        paused=1,
        queued=2,
        suspended=0,
        pressure_tokens=500,
        capacity_tokens=2000,
        reasoning_tokens=0,
        faded_tokens=100,
        limit_tokens=1000,
        limit_agents=None,
        hit_rate=0.9,
        hit_deficit=0.05,
        pauses_total=4,
        overdue_total=0,
        longest_wait_s=30.0,
        blind=False,
        closed=False,
        waiting=[
            Waiting(agent="issue-<17>", state="paused", waited_s=30, why="1 of 1 agents active")
        ],
        active=[Active(agent="issue-18", state="acting", for_s=9, tokens=500, steps=3)],
        pools=[
            PoolFrame(pool="http://gpu0:8000", limit_tokens=900, reason="reported", **pool),
            PoolFrame(
                pool="http://gpu1:8000", limit_tokens=None, reason="down", unread="HTTP 503", **pool
            ),
        ],
    )
