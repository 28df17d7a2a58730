"""`python -m concur_agents.lab.validate` writes `docs/simulator.md` and its picture."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from concur_agents.lab.validate.curves import STEP_13, STEP_24, curve_points
from concur_agents.lab.validate.report import draw, report


def main(argv: Sequence[str] | None = None) -> None:
    """Run everything and write the page and its picture."""
    parser = argparse.ArgumentParser(
        prog="python -m concur_agents.lab.validate", description=__doc__
    )
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder to write to")
    folder: Path = parser.parse_args(argv).docs
    began_s = time.perf_counter()
    curves = {curve.name: curve_points(curve) for curve in (STEP_24, STEP_13)}
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "simulator.md").write_text(report(curves), encoding="utf-8")
    draw(folder / "images" / "simulator.png", curves)
    took_s = time.perf_counter() - began_s
    sys.stdout.write(f"wrote {folder / 'simulator.md'} in {took_s:.0f} s\n")


if __name__ == "__main__":
    main()
