"""Numbers of the README and the docs: each has an origin, and those with kept runs are computed."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("claims", ROOT / "scripts/claims.py")
claims = sys.modules["claims"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(claims)


def test_every_number_of_the_readme_and_the_docs_has_an_origin():
    rows, wrong = claims.check()
    assert wrong == []
    assert len(rows) > 20


def test_the_scripts_that_it_names_exist():
    named = {
        name
        for claim in claims.read_claims()[1]
        for name in re.findall(r"(?:scripts|docs)/[\w./-]*\w", f"{claim.command} {claim.results}")
    }
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("It is 3.14 times as fast, at 12 agents.", "12 has no command"),
        ("It is 3.15 times as fast.", "the text is gone"),
        ("It is 3.14 times as fast, `--steps 12`.\n\n```\n12\n```\n\n1. A step.\n", ""),
    ],
)
def test_a_number_without_a_command_and_a_text_that_is_gone_are_found(
    text, wrong, tmp_path, monkeypatch
):
    """The test of the test."""
    (tmp_path / "page.md").write_text(text)
    claim = claims.Claim("page.md", "3.14 times as fast", command="scripts/demo")
    monkeypatch.setattr(claims, "ROOT", tmp_path)
    monkeypatch.setattr(claims, "read_claims", lambda: (["page.md"], [claim]))
    found = claims.check()[1]
    assert [sentence for sentence in found if wrong and wrong in sentence] == found[:1]
    assert bool(found) == bool(wrong)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("At most 8 of 12.", []),
        ("At most 8 of 13.", ["page.md: the number 12 is gone", "page.md: 13 has no command"]),
    ],
)
def test_a_claim_of_a_whole_page_is_about_the_numbers_that_it_names(
    text, wrong, tmp_path, monkeypatch
):
    (tmp_path / "page.md").write_text(text)
    claim = claims.Claim("page.md", numbers=("8", "12"), because="defaults")
    monkeypatch.setattr(claims, "ROOT", tmp_path)
    monkeypatch.setattr(claims, "read_claims", lambda: (["page.md"], [claim]))
    assert [sentence.partition(":")[0] for sentence in claims.check()[1]] == ["page.md"] * len(
        wrong
    )
    for found, expected in zip(claims.check()[1], wrong, strict=True):
        assert found.startswith(expected)


def test_a_ratio_that_the_runs_do_not_have_is_found(monkeypatch):
    says = "4.99 times as fast"
    runs = "docs/benchmarks/h200/p32-160k.json.gz"
    claim = claims.Claim("README.md", says, command="x", results=runs, ratios=(("4.99", "none"),))
    monkeypatch.setattr(claims, "read_claims", lambda: ([], [claim]))
    assert any("4.99 is 4.17" in sentence for sentence in claims.check()[1])
