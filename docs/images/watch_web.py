"""Draws watch-web.png: what `concur watch --web run.jsonl` shows in the middle of a batch.

Usage: python docs/images/watch_web.py [chromium]
"""

import sys
import tempfile
import threading
from pathlib import Path

from browser import screenshot

from concur_agents.cli.watch_recording import Screen
from concur_agents.core import Regulator, make_law
from concur_agents.observe.live import LivePage
from concur_agents.recording import Recording, record
from concur_agents.sim.listener import listen, url_of, uvicorn_server
from concur_agents.sim.profile import load_profile
from concur_agents.sim.runner import RegulatorGate, simulate
from concur_agents.sim.traces import load_traces
from concur_agents.sim.workload import plans_from_traces

HERE = Path(__file__).parent
AT_S = 130.0


def main(browser: str) -> None:
    traces = load_traces("miniswe-gemini3pro", max_context=16_000, cut=True, tool_cap_s=20)
    profile = load_profile("h100-qwen3-8b").replace(kv_blocks=3000)
    page = LivePage("run.jsonl")
    with tempfile.TemporaryDirectory() as folder:
        law = make_law("working_set")
        recorded, recorder = record(Regulator(law, 0.0), Path(folder) / "run.jsonl")
        with recorder:
            simulate(plans_from_traces(traces, 16, 1), profile, RegulatorGate(recorded), seed=1)
        screen = Screen(Recording(recorder.path))
        for line in Recording(recorder.path):
            if line.now > AT_S:
                break
            screen.take(line)
        page.show(screen.frame(), screen.trail())
        page.end()  # or the browser would wait for more
    listener = listen("127.0.0.1", 0)
    server = uvicorn_server(page.app, ready=lambda: None, closing=page.end)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    picture = HERE / "watch-web.png"
    screenshot(browser, url_of(listener), picture, width=1000, height=1560, virtual_s=5)
    server.should_exit = True
    thread.join()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "chromium")
