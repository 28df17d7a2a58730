"""Draws report-fleet.png: the report of twenty-four recorded agents on three small pools.

The second engine is gone from 60 to 180 s.  Usage: python docs/images/report_fleet.py [chromium]
"""

import sys
import tempfile
from pathlib import Path

from browser import screenshot

from concur_agents.core import Fleet, make_law
from concur_agents.recording import Recording, record
from concur_agents.recording.page import page
from concur_agents.recording.timeline_builder import read_timeline
from concur_agents.sim.faults import ReplicaDies
from concur_agents.sim.profile import load_profile
from concur_agents.sim.replicas import FleetGate, simulate_fleet
from concur_agents.sim.traces import load_traces
from concur_agents.sim.workload import plans_from_traces

HERE = Path(__file__).parent


def main(browser: str) -> None:
    traces = load_traces("miniswe-gemini3pro", max_context=16_000, cut=True, tool_cap_s=20)
    profile = load_profile("h100-qwen3-8b").replace(kv_blocks=1500)
    pools = [f"http://gpu{n}:8000" for n in (1, 2, 3)]
    with tempfile.TemporaryDirectory() as folder:
        fleet = Fleet(make_law("working_set"), pools)
        recorded, recorder = record(fleet, Path(folder) / "run.jsonl")
        with recorder:
            simulate_fleet(
                plans_from_traces(traces, 24, 0),
                [profile] * len(pools),
                FleetGate(recorded),  # type: ignore[arg-type]  # it has the whole door
                faults=[ReplicaDies(1, 60.0, 180.0)],
            )
        text = page(read_timeline(Recording(recorder.path)), title="run.jsonl")
        shown = Path(folder) / "report.html"
        shown.write_text(text, encoding="utf-8")
        screenshot(browser, shown, HERE / "report-fleet.png", width=1200, height=1050)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "chromium")
