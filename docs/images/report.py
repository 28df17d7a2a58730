"""Draws report.png: the report of twelve recorded agents on a small pool, as a browser shows it.

Usage: python docs/images/report.py [chromium]
"""

import sys
import tempfile
from pathlib import Path

from browser import screenshot

from concur_agents.core import Regulator, make_law
from concur_agents.recording import Recording, record
from concur_agents.recording.page import page
from concur_agents.recording.timeline_builder import read_timeline
from concur_agents.sim.profile import load_profile
from concur_agents.sim.runner import RegulatorGate, simulate
from concur_agents.sim.traces import load_traces
from concur_agents.sim.workload import plans_from_traces

HERE = Path(__file__).parent


def main(browser: str) -> None:
    traces = load_traces("miniswe-gemini3pro", max_context=16_000, cut=True, tool_cap_s=20)
    profile = load_profile("h100-qwen3-8b").replace(kv_blocks=3000)
    with tempfile.TemporaryDirectory() as folder:
        law = make_law("working_set")
        recorded, recorder = record(Regulator(law, 0.0), Path(folder) / "run.jsonl")
        with recorder:
            simulate(plans_from_traces(traces, 12, 0), profile, RegulatorGate(recorded), seed=0)
        text = page(read_timeline(Recording(recorder.path)), title="run.jsonl")
        shown = Path(folder) / "report.html"
        shown.write_text(text, encoding="utf-8")
        screenshot(browser, shown, HERE / "report.png", width=1100, height=1960)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "chromium")
