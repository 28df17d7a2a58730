"""The page that shows how far to trust the simulator."""

from pathlib import Path

from concur_agents.lab.validate.report import fast_sections

DOCS = Path(__file__).parents[3] / "docs"


def test_the_page_shows_what_the_code_gives() -> None:
    """A change of the engine or of a profile must come with its new report."""
    page = (DOCS / "simulator.md").read_text(encoding="utf-8")
    stale = [name for name, text in fast_sections().items() if text not in page]
    assert stale == [], "run: python -m concur_agents.lab.validate"
    assert (DOCS / "images" / "simulator.png").stat().st_size > 10_000
