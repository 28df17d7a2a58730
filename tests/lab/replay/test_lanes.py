"""A sitting on several GPUs, rehearsed: lanes of `scripts/engines/gpu_lanes.sh` with the embedded
server in vLLM's place, and their results in one table.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

ENGINES = Path(__file__).parents[3] / "scripts" / "engines"

VLLM = """\
#!/usr/bin/env bash
# takes vLLM's words and serves the embedded engine
port=8000 blocks=0
while [ $# -gt 0 ]; do
  case $1 in --port) port=$2; shift ;; --num-gpu-blocks-override) blocks=$2; shift ;; esac
  shift
done
exec PYTHON -m concur_agents.cli.app serve-sim --port "$port" --kv-blocks "$blocks" --time-scale 50
"""

LANES = """\
# both lanes do the same work, in another order
lane 0 qwen3-8b 2500 --max-num-seqs 64
work-1 --workload main:steps=2 --agents 6 --time-scale 0.02 --arms none,fixed:2 --no-plot
lane 1,2 qwen3-8b 2500
work-2 --workload main:steps=2 --agents 6 --time-scale 0.02 --arms fixed:2,none --no-plot
"""


def _merge(files: list[Path]) -> Any:
    spec = importlib.util.spec_from_file_location("results", ENGINES / "results.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.merge(files)


def _free_ports() -> int:
    """A port that is free, and the one after it."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


def _executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.mark.slow
def test_lanes_serve_and_replay_side_by_side_and_become_replicates(tmp_path: Path) -> None:
    binaries = tmp_path / "bin"
    binaries.mkdir()
    _executable(binaries / "vllm", VLLM.replace("PYTHON", sys.executable))
    _executable(binaries / "python3", f'#!/usr/bin/env bash\nexec {sys.executable} "$@"\n')
    _executable(binaries / "nvidia-smi", "#!/usr/bin/env bash\n")
    (tmp_path / "two.lanes").write_text(LANES)
    ours = {"OUT": str(tmp_path / "out"), "RUN": str(tmp_path / "run"), "PORT": str(_free_ports())}
    try:
        done = subprocess.run(
            [ENGINES / "gpu_lanes.sh", tmp_path / "two.lanes"],
            env=os.environ | ours | {"PATH": f"{binaries}:{os.environ['PATH']}", "TIME_S": "100"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "lane-1: == work-2" in done.stdout
        files = sorted(tmp_path.glob("out/lane-*/work-*.json"))
        merged, runs = _merge(files)
        assert merged["work_agrees"]
        assert [(run.arm, run.round) for run in runs] == [
            ("none", 0),
            ("none", 1),
            ("fixed:2", 0),
            ("fixed:2", 1),
        ]
        assert [made["from"] for made in merged["rounds"][:2]] == ["lane-0/work-1", "lane-1/work-2"]
        assert all(row["rounds"] == 2 for row in merged["summary"])
        other = json.loads(files[1].read_text("utf-8"))
        other["endpoint"]["capacity_tokens"] += 16
        files[1].write_text(json.dumps(other))
        with pytest.raises(SystemExit, match=r"capacity_tokens is 40016\.0, in .* it is 40000\.0"):
            _merge(files)
    finally:
        for pid in tmp_path.glob("run-lane-*/vllm.pid"):
            with suppress(ProcessLookupError):
                os.killpg(int(pid.read_text("utf-8")), signal.SIGTERM)
