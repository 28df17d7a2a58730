"""The governor against the real SGLang on a CPU. Opt in: `pytest -m engine`.

Name an environment built by `scripts/engines/sglang_cpu.sh env DIR VLLM_DIR` in CONCUR_SGLANG_ENV.
The machine should have nothing else to do, because seconds are compared; five minutes on two cores.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

SCRIPT = Path(__file__).parents[2] / "scripts" / "engines" / "sglang_cpu.sh"


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = os.environ.get("CONCUR_SGLANG_ENV")
    if not folder:
        pytest.skip(
            "no engine: set CONCUR_SGLANG_ENV to a folder made by "
            "`scripts/engines/sglang_cpu.sh env DIR VLLM_DIR`"
        )
    if shutil.which("unshare") is None:
        pytest.skip("the engine listens on every interface and runs under `unshare -n` only")
    out = tmp_path_factory.mktemp("sglang") / "replay.json"
    replay = [sys.executable, "-m", "concur_agents.cli.app", "replay"]
    arms = "none,fixed:3,working_set"
    options = ["--workload", "cpu:steps=5", "--overload", "2.5", "--arms", arms]
    arguments = " ".join([*replay, "$ENGINE_URL", *options, "--no-plot", "--out", str(out)])
    subprocess.run([SCRIPT, "run", folder, "small", "bash", "-c", arguments], check=True)
    loaded: dict[str, Any] = json.loads(out.read_text("utf-8"))
    return loaded


def test_the_probe_knows_the_pool(record: dict[str, Any]) -> None:
    assert record["endpoint"]["capacity_tokens"] == 9600


def test_every_arm_did_the_same_work_from_an_empty_cache_without_an_error(
    record: dict[str, Any],
) -> None:
    assert record["work_agrees"]
    for run in record["rounds"]:
        assert run["outcome"] == "finished"
        assert run["cache_reset"]
        assert not run["errors"]
        assert run["wrong_lengths"] == run["agents_failed"] == 0


def test_ungoverned_thrashes_and_governed_does_not(record: dict[str, Any]) -> None:
    rows = {row["arm"]: row for row in record["summary"]}
    assert rows["none"]["hit_deficit"] > 0.8
    assert rows["fixed:3"]["hit_deficit"] < 0.05
    assert rows["working_set"]["hit_deficit"] < 0.5
    # by how much is in docs/benchmarks/history.md, also against the caps, which do better here
    assert rows["working_set"]["makespan_s"] < rows["none"]["makespan_s"]
