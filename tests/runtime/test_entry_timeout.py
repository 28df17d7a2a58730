"""`agent(..., timeout_s=)`, and a governor that cannot be pickled."""

from __future__ import annotations

import asyncio
import pickle

import pytest

import concur_agents as ca
from concur_agents.testing import run, virtual_governor


def test_the_wait_at_the_entry_is_bounded_and_leaves_nothing_behind():
    async def main():
        async with virtual_governor(limit=1) as gov, gov.agent("a"):
            began_s = asyncio.get_running_loop().time()
            with pytest.raises(TimeoutError):
                async with gov.agent("b", detached=True, timeout_s=5):
                    pass
            assert asyncio.get_running_loop().time() - began_s == 5
            assert gov.snapshot().queued == 0
            assert gov.current_agent().id == "a"

    run(main())


def test_the_same_in_a_thread():
    with ca.Governor(limit=1) as gov, gov.agent("a"):
        with pytest.raises(TimeoutError, match="'b' was not let in within"):
            gov.agent("b", detached=True, timeout_s=0.01).open_sync()
        assert gov.snapshot().queued == 0


@pytest.mark.parametrize("timeout_s", [-1, float("nan"), "5"])
def test_a_timeout_that_is_none_is_refused(timeout_s):
    with pytest.raises(ca.ConfigError, match="timeout_s"):
        ca.Governor(limit=1).agent(timeout_s=timeout_s)


def test_pickling_a_governor_says_what_to_do():
    with pytest.raises(TypeError, match="make one in each process"):
        pickle.dumps(ca.Governor(limit=1))
