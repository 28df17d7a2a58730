"""`concur doctor --stack NAME` says how a stack is connected, as its page does."""

import contextlib
from pathlib import Path

import pytest

from concur_agents.adapters.stacks import ALSO, STACKS
from concur_agents.cli.app import main

PAGES = Path(__file__).parents[2] / "docs" / "frameworks"


@pytest.fixture
def said(capsys, monkeypatch):
    """`said("--stack", "verl")`: the exit code, and what the command prints, as one line."""

    def run(*arguments):
        monkeypatch.setenv("COLUMNS", "400")
        try:
            code = main(["doctor", *arguments])
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        return code, " ".join((out + err).split())

    return run


@pytest.mark.parametrize("name", STACKS)
def test_each_stack_has_a_hook_flags_and_what_several_processes_need(name, said):
    code, text = said("--stack", name)
    stack = STACKS[name]
    assert not code
    for part in (stack.agent, *stack.flags, stack.update, stack.replicas, stack.processes):
        assert part in text
    assert (PAGES / stack.page).is_file()


@pytest.mark.parametrize(("other", "name"), ALSO.items())
def test_what_is_connected_in_the_same_way_is_found_by_its_own_name(other, name, said):
    assert said("--stack", other) == said("--stack", name)
    assert other in (PAGES / STACKS[name].page).read_text("utf-8").lower()


def test_no_setting_is_cut_off_on_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    with contextlib.suppress(SystemExit):
        main(["doctor", "--stack", "verl"])
    out = "".join(line[17:].rstrip() for line in capsys.readouterr().out.splitlines())
    assert STACKS["verl"].flags[0] in out


@pytest.mark.parametrize("name", [n for n in STACKS if "semaphore" in "".join(STACKS[n].flags)])
def test_a_stacks_own_semaphore_is_on_its_page_too(name):
    assert "semaphore" in (PAGES / STACKS[name].page).read_text("utf-8")


def test_the_page_names_the_version_that_the_table_names():
    for stack in STACKS.values():
        if stack.version[0].isdigit() and stack.page not in ("inspect-ai.md", "mini-swe-agent.md"):
            assert stack.version in (PAGES / stack.page).read_text("utf-8")


def test_an_unknown_stack_and_nothing_at_all_are_errors_that_help(said):
    code, text = said("--stack", "nosuch")
    assert code
    assert "there are verl, slime" in text
    code, text = said()
    assert code
    assert "give the URL of an endpoint, or --stack NAME" in text
