"""The benchmarks that the docs name still run: with few agents, for no numbers."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "needs", "said"),
    [
        (["watch_lock.py", "--agents", "50"], (), "a frame of concur watch"),
        (["overhead.py", "--calls", "3"], (), "the gate alone"),
        (
            ["gateway.py", "--only", "makespan", "--agents", "4", "--steps", "2", "--draws", "1"],
            ("aiohttp", "uvicorn"),
            "mean ratio 1.000",
        ),
        (
            ["shared_boundary.py", "--processes", "2", "--agents", "5", "--seconds", "1"],
            (),
            "saturated",
        ),
    ],
    ids=["watch_lock", "overhead", "gateway", "shared_boundary"],
)
def test_a_benchmark_runs(words: list[str], needs: tuple[str, ...], said: str) -> None:
    """Two of them used parts of ours that had changed, and nothing noticed."""
    for name in needs:
        pytest.importorskip(name)
    with tempfile.TemporaryDirectory(prefix="c", dir="/tmp") as folder:  # for sockets of its own
        ran = subprocess.run(
            [sys.executable, FOLDER / words[0], *words[1:]],
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
            env={**os.environ, "XDG_RUNTIME_DIR": folder},
        )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert said in ran.stdout
