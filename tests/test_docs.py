"""The docs: every page is reached, every link leads somewhere, the code they show runs."""

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from concur_agents.cli.app import COMMANDS
from concur_agents.core import make_law

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]

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


@pytest.mark.parametrize("page", [*PAGES, *TOP], ids=lambda page: page.relative_to(ROOT).as_posix())
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


MOST_WORDS = 1000
"""In a page of prose: what is read in five minutes."""

LONGER = {
    "benchmarks/history.md": "a record of measurements, looked up and not read through",
    "benchmarks/fleet/results.md": "tables that a program writes",
    "benchmarks/suite/results.md": "tables that a program writes",
    "laws-tried.md": "a record of what was tried, looked up and not read through",
    "wire.md": "a protocol, looked up and not read through",
    "simulator.md": "measurements that a program writes, each beside what the simulator says",
}
"""Page -> why it may be longer."""


def words_in(page):
    """Words of a page without its code and the targets of its links."""
    text = re.sub(r"(?ms)^```.*?^```", "", page.read_text("utf-8"))
    return len(re.findall(r"[^\W\d_][\w'’-]*", re.sub(r"\]\([^)]*\)", "]", text)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_a_page_is_short(page):
    """A longer one is split along its headings."""
    if page.relative_to(DOCS).as_posix() not in LONGER:
        assert words_in(page) <= MOST_WORDS


def test_the_glossary_has_at_most_twenty_words():
    terms = re.findall(r"(?m)^\*\*([^*]+)\*\*", (DOCS / "concepts.md").read_text("utf-8"))
    assert 10 <= len(terms) <= 20


def test_the_readme_fits_on_a_screen_or_two_and_begins_with_code():
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.split()) <= 500
    assert text[: text.index("```python")].count("\n") < 10
    assert {"scripts/demo", "scripts/test"} <= set(text.split())


@pytest.mark.parametrize("page", [*PAGES, *TOP], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_prose_names_the_agent_the_thread_or_the_caller(page):
    """A reader in a hurry, and one whose English is a second language, should not have to guess."""
    vague = r"\b(nobody|somebody|whoever|whom|anybody|everybody)\b"
    assert re.findall(vague, CODE.sub("", page.read_text("utf-8")), re.IGNORECASE) == []


def shown_imports():
    """(page, statement) of every import of ours in a block of Python or of a diff's new lines."""
    for page in [*PAGES, *TOP]:
        for kind, block in re.findall(
            r"(?ms)^```(python|diff)\n(.*?)^```", page.read_text("utf-8")
        ):
            lines = block.splitlines()
            if kind == "diff":
                lines = [line[1:] for line in lines if not line.startswith("-")]
            for line in lines:
                if re.match(r"\s*(from concur_agents|import concur_agents)", line):
                    yield page.relative_to(ROOT).as_posix(), line.strip()


@pytest.mark.parametrize(("page", "statement"), sorted(set(shown_imports())))
def test_every_import_that_the_docs_show_runs(page, statement):
    try:
        exec(statement, {})
    except ImportError as error:
        missing = error.__cause__ or error  # an extra's own message has the real one as its cause
        name = getattr(missing, "name", None) or ""
        if not name or name.startswith("concur_agents"):
            raise
        pytest.skip(f"needs {name}")


@pytest.mark.parametrize("page", [*PAGES, *TOP], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_python_that_the_docs_show_can_be_parsed(page):
    for code in re.findall(r"(?ms)^```python\n(.*?)^```", page.read_text("utf-8")):
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST
        compile(code, page.name, "exec", flags=flags)


def test_the_reference_says_where_each_name_is_imported_from():
    text = (DOCS / "api.md").read_text("utf-8")
    for section in text.split("\n## ")[1:]:
        prose = re.sub(r"(?m)^(:::|    ).*$", "", section)
        said = re.findall(r"`(concur_agents[\w.]*)`", prose) or ["concur_agents"]
        for path in re.findall(r"(?m)^::: (\S+)$", section):
            module, _, name = path.rpartition(".")
            if name != "errors":  # a module, all of whose names are in concur_agents
                assert module in said or any(
                    hasattr(importlib.import_module(each), name) for each in said
                ), path


def test_the_page_of_laws_has_the_options_of_the_default_law():
    section = (
        (DOCS / "laws.md").read_text("utf-8").partition("### Options")[2].partition("\n## ")[0]
    )
    shown = re.findall(r"(?m)^\| `(\w+)` \| ([\d.,]+) \|", section)
    law = make_law("working_set")
    assert {name: float(value.replace(",", "")) for name, value in shown} == asdict(law)


def test_every_command_that_the_docs_name_exists():
    for page in [*PAGES, *TOP]:
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
