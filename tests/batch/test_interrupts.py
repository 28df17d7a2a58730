"""Ctrl-C during a batch, pressed for real in a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from concur_agents import AgentPool
from concur_agents.testing import run, virtual_governor

CTRL_C = """
    import asyncio, os, signal, sys, threading, time
    import concur_agents as ca

    def press():                        # when two agents have begun, and again if asked
        while len(begun) < 2:
            time.sleep(0.005)
        for _ in range(int(sys.argv[1])):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
        hurry.set()

    begun, hurry = [], threading.Event()

    async def solve(i):
        begun.append(i)
        while not hurry.is_set():
            await asyncio.sleep(0.005)
        return i

    async def main():
        threading.Thread(target=press, daemon=True).start()
        with ca.Governor(limit=2) as gov:
            async with ca.AgentPool(gov, journal=sys.argv[2]) as pool:
                async for outcome in pool.as_completed(solve, range(100)):
                    print(outcome.key, outcome.status, flush=True)
            print("interrupted", pool.interrupted, flush=True)

    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        print("KeyboardInterrupt")
"""


def press_ctrl_c(times, path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CTRL_C), str(times), str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr


def test_the_first_ctrl_c_finishes_what_runs_and_keeps_it(tmp_path):
    lines, errors = press_ctrl_c(1, tmp_path / "runs.jsonl")
    assert {"0 ok", "1 ok", "interrupted True"} <= set(lines)
    assert "KeyboardInterrupt" not in lines
    assert "the 2 running agents finish" in errors
    kept = [
        json.loads(line) for line in (tmp_path / "runs.jsonl").read_text("utf-8").splitlines()[1:]
    ]
    assert {line["key"] for line in kept if line["status"] == "ok"} == {"0", "1"}


def test_the_second_ctrl_c_cancels(tmp_path):
    lines, _ = press_ctrl_c(2, tmp_path / "runs.jsonl")
    assert {"0 cancelled", "1 cancelled"} <= set(lines)
    assert lines[-1] == "KeyboardInterrupt"


def test_an_idle_pool_leaves_ctrl_c_alone_and_puts_the_old_handler_back():
    async def main():
        before = signal.getsignal(signal.SIGINT)
        async with virtual_governor(limit=1) as gov, AgentPool(gov):
            assert signal.getsignal(signal.SIGINT) != before
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(1)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(main())
    assert signal.getsignal(signal.SIGINT) == before
