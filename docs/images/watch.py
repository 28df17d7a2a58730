"""Draws watch.png: what `concur watch run.jsonl` shows in the middle of a batch on a small pool.

Usage: python docs/images/watch.py [chromium]
"""

import io
import sys
import tempfile
from pathlib import Path

from browser import screenshot
from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME

from concur_agents.cli.dashboard import dashboard
from concur_agents.cli.watch_recording import Screen
from concur_agents.core import Regulator, make_law
from concur_agents.recording import Recording, record
from concur_agents.sim.profile import load_profile
from concur_agents.sim.runner import RegulatorGate, simulate
from concur_agents.sim.traces import load_traces
from concur_agents.sim.workload import plans_from_traces

HERE = Path(__file__).parent
AT_S = 130.0
WIDTH, HEIGHT = 112, 36
PAGE = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; padding: 14px; background: {background}; color: {foreground}; }}
pre {{ margin: 0; font: 14px/17px "DejaVu Sans Mono", monospace; }}
</style><pre>{code}</pre>"""


def main(browser: str) -> None:
    traces = load_traces("miniswe-gemini3pro", max_context=16_000, cut=True, tool_cap_s=20)
    profile = load_profile("h100-qwen3-8b").replace(kv_blocks=3000)
    with tempfile.TemporaryDirectory() as folder:
        law = make_law("working_set")
        recorded, recorder = record(
            Regulator(law, 0.0, max_wait_s=60), Path(folder) / "run.jsonl", max_wait_s=60
        )
        with recorder:
            simulate(plans_from_traces(traces, 16, 1), profile, RegulatorGate(recorded), seed=1)
        screen = Screen(Recording(recorder.path))
        for line in Recording(recorder.path):
            if line.now > AT_S:
                break
            screen.take(line)
        console = Console(width=WIDTH, record=True, file=io.StringIO(), force_terminal=True)
        console.print(
            dashboard(screen.frame(), screen.trail(), "run.jsonl", width=WIDTH, height=HEIGHT)
        )
        html = console.export_html(theme=SVG_EXPORT_THEME, code_format=PAGE, inline_styles=True)
        rows = console.file.getvalue().count("\n")
        shown = Path(folder) / "watch.html"
        shown.write_text(html, encoding="utf-8")
        screenshot(
            browser,
            shown,
            HERE / "watch.png",
            width=round(WIDTH * 8.43) + 28,
            height=17 * rows + 28,
        )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "chromium")
