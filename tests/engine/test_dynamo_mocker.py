"""A second opinion: NVIDIA Dynamo's mock engine sees the same thrashing. Opt in: `pytest -m
engine`.

Name an environment built by `scripts/engines/dynamo_mocker.sh env DIR` in CONCUR_DYNAMO_ENV. Only
token counts are judged here: the mocker's seconds come from a profile of ours.
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

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

SCRIPT = Path(__file__).parents[2] / "scripts" / "engines" / "dynamo_mocker.sh"


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = os.environ.get("CONCUR_DYNAMO_ENV")
    if not folder:
        pytest.skip(
            "no mocker: set CONCUR_DYNAMO_ENV to a folder made by "
            "`scripts/engines/dynamo_mocker.sh env DIR`"
        )
    if shutil.which("unshare") is None:
        pytest.skip("the mocker listens on every interface and runs under `unshare -n` only")
    out = tmp_path_factory.mktemp("dynamo") / "replay.json"
    replay = [sys.executable, "-m", "concur_agents.cli.app", "replay"]
    options = ["--workload", "cpu", "--time-scale", "0.25", "--arms", "none,fixed:3,working_set"]
    arguments = " ".join([*replay, "$ENGINE_URL", *options, "--no-plot", "--out", str(out)])
    subprocess.run(
        [SCRIPT, "run", folder, "bash", "-c", arguments],
        env=os.environ | {"SPEEDUP": "4"},
        check=True,
    )
    loaded: dict[str, Any] = json.loads(out.read_text("utf-8"))
    return loaded


def test_the_probe_knows_the_mockers_pool(record: dict[str, Any]) -> None:
    assert record["endpoint"]["capacity_tokens"] == 9600


def test_the_mocker_thrashes_ungoverned_and_keeps_prefixes_under_a_fitting_cap(
    record: dict[str, Any],
) -> None:
    rows = {row["arm"]: row for row in record["summary"]}
    assert record["work_agrees"]
    assert rows["none"]["hit_deficit"] > 0.9
    assert rows["fixed:3"]["hit_deficit"] < 0.05
    assert rows["working_set"]["hit_deficit"] < 0.5
    assert not any(row["errors"] for row in record["summary"])
