"""The benchmark of what governing costs still runs; what it measures is for a quiet machine."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "overhead.py"


def test_the_benchmark_measures_pairs_of_calls() -> None:
    ran = subprocess.run(
        [sys.executable, str(SCRIPT), "--calls", "20"], capture_output=True, text=True, check=True
    )
    rows = ran.stdout.splitlines()[2:]
    assert [row.partition(",")[0].strip().split("  ")[0] for row in rows] == [
        "the gate alone",
        "call",
        "call",
        "stream",
        "stream",
        "call",
        "stream",
    ]
    assert all(" us" in row and "%" in row for row in rows)
