"""The docs: every page is reached, every link leads somewhere, the examples of ours run."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from concur_agents.cli.app import COMMANDS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))

LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")
CODE = re.compile(r"(?ms)^```.*?^```|`[^`\n]*`")


def anchors(page):
    found = set()
    for title in re.findall(
        r"(?m)^#+ (.*)$",
        CODE.sub(lambda m: m.group(0).strip("`"), page.read_text("utf-8")),
    ):
        slug = re.sub(r"[^\w\s-]", "", title.lower()).strip()
        found.add(re.sub(r"[\s]+", "-", slug))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_every_link_leads_somewhere(page):
    broken = []
    for target in LINK.findall(CODE.sub("", page.read_text("utf-8"))):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_the_site_has_every_page_once():
    listed = re.findall(r"(?m)^ +- .*?: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"))
    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in PAGES)


def test_every_command_that_the_docs_name_exists():
    for page in [*PAGES, ROOT / "README.md"]:
        named = set(re.findall(r"(?m)(?:`|^|\$ )concur ([a-z-]+)", page.read_text("utf-8")))
        assert named - set(COMMANDS) - {"run"} == set(), page.name


@pytest.mark.parametrize(
    "code",
    re.findall(r"(?ms)^```python\n(.*?)^```", (DOCS / "testing.md").read_text("utf-8")),
)
def test_the_examples_of_the_page_on_testing_run(code):
    names = {}
    exec(compile(code, "testing.md", "exec"), names)
    for name, value in list(names.items()):
        if name.startswith("test_"):
            value()


def test_the_site_builds_without_a_warning(tmp_path):
    if importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("material") is None:
        pytest.skip('needs mkdocs-material: pip install "concur-agents[docs]"')
    ran = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "excluded from the built site" not in ran.stderr, "found: pictures that are on no page"
    assert (tmp_path / "api" / "index.html").stat().st_size > 10_000
