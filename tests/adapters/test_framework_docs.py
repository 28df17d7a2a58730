"""The pages about frameworks: each says what it must, and shows code that is run."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "frameworks").glob("*.md"))
FRAMEWORKS = [page for page in PAGES if page.name != "index.md"]


@pytest.mark.parametrize("page", FRAMEWORKS, ids=lambda page: page.stem)
def test_each_page_has_the_diff_the_pauses_and_the_limits(page: Path) -> None:
    text = page.read_text("utf-8")
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert headings[0] == "Before, after"
    assert "What is paused, when" in headings
    assert headings[-1] == "Limits"
    assert "```diff" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_linked_pages_exist(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+\.md)", page.read_text("utf-8")):
        assert (page.parent / link).is_file(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_shown_is_the_example_that_is_run(page: Path) -> None:
    """Shown in full, so that it can be read in the repository as well as on the site."""
    text = page.read_text("utf-8")
    assert "--8<--" not in text
    shown = re.findall(r"(?ms)^\[`(examples/\w+\.py)`\]\(\S+\):\n\n```python\n(.*?)^```", text)
    assert len(shown) == text.count("](../../examples/")
    for name, code in shown:
        assert code == (ROOT / name).read_text("utf-8"), f"copy {name} into {page.name} again"


def test_the_index_lists_every_page() -> None:
    text = (ROOT / "docs" / "frameworks" / "index.md").read_text("utf-8")
    assert all(f"({page.name})" in text for page in FRAMEWORKS)
