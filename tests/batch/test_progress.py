"""How far a batch has come, as counts, lines and a bar."""

from __future__ import annotations

import asyncio
import io
import sys
from types import SimpleNamespace

import pytest

from concur_agents import AgentPool
from concur_agents.batch.progress import (
    NotebookReporter,
    PlainReporter,
    Progress,
    default_reporter,
)
from concur_agents.testing import run, virtual_governor


async def work(item):
    await asyncio.sleep(1)
    if isinstance(item, str) and item.startswith("bad"):
        raise ValueError(item)
    return f"{item} done"


async def collect(pool, fn, items):
    return {o.key: o async for o in pool.as_completed(fn, items)}


def test_progress_counts_each_agent_once():
    async def main():
        async with virtual_governor(limit=2) as gov:

            class Reporter:
                seen: list[Progress] = []  # noqa: RUF012
                closed = 0

                def update(self, progress):
                    self.seen.append(progress)

                def close(self):
                    self.closed += 1

            reporter = Reporter()
            async with AgentPool(gov, progress=reporter) as pool:
                await collect(pool, work, ["a", "bad", "c", "d", "e"])
            middle = [p for p in reporter.seen if p.running]
            assert (middle[0].running, middle[0].queued, middle[0].total) == (2, 3, 5)
            last = reporter.seen[-1]
            assert (last.done, last.ok, last.errors, last.running) == (5, 4, 1, 0)
            assert str(last) == "5 of 5 done, 0 running, 1 errors"
            assert reporter.closed == 1
            assert repr(pool) == "<AgentPool closed: 5 of 5 done, 0 running, 1 errors>"

    run(main())


def test_a_reporter_that_fails_stops_no_agent(caplog):
    async def main():
        class Reporter:
            def update(self, progress):
                raise RuntimeError("no terminal")

            def close(self):
                pass

        async with virtual_governor(limit=2) as gov, AgentPool(gov, progress=Reporter()) as pool:
            assert await pool.map(work, ["a"]) == ["a done"]

    run(main())
    assert "the reporter failed" in caplog.text


def test_without_a_terminal_progress_is_a_line_now_and_then():
    stream = io.StringIO()
    reporter = PlainReporter(stream, every_s=1e9)
    reporter.update(Progress(total=3, running=2))
    reporter.update(Progress(total=3, ok=3))
    assert stream.getvalue() == ""
    reporter.close()
    assert stream.getvalue() == "agents: 3 of 3 done, 0 running\n"


def test_on_a_terminal_progress_is_a_bar():
    pytest.importorskip("rich")
    from concur_agents.batch.progress import BarReporter

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    reporter = default_reporter(terminal)
    assert isinstance(reporter, BarReporter)
    reporter.update(Progress(total=4, ok=1, running=2, queued=1))
    reporter.close()
    assert "1 of 4 done, 2 running, 1 queued" in terminal.getvalue()
    assert isinstance(default_reporter(io.StringIO()), PlainReporter)


class Cell:
    """What IPython's `display` and its handles do, without a kernel."""

    def __init__(self):
        self.shown = []

    def display(self, what, *, display_id):
        assert display_id is True
        self.shown.append(what)
        return self

    def update(self, what):
        self.shown[-1] = what


def test_in_a_notebook_progress_is_one_bar_below_the_cell(monkeypatch):
    """Its stderr is no terminal, and lines every ten seconds would fill the cell."""
    cell, shell = Cell(), SimpleNamespace(kernel="a kernel")
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    parts = SimpleNamespace(display=cell.display)
    monkeypatch.setitem(sys.modules, "IPython.display", parts)
    reporter = default_reporter()
    reporter.update(Progress(running=2))
    reporter.update(Progress(total=4, ok=1, running=2, queued=1))
    reporter.close()
    (bar,) = cell.shown
    assert bar._repr_html_() == (
        'agents <progress max="4" value="1"></progress> 1 of 4 done, 2 running, 1 queued'
    )
    assert repr(bar) == "agents: 1 of 4 done, 2 running, 1 queued"
    del shell.kernel  # IPython on a terminal
    assert not isinstance(default_reporter(), NotebookReporter)
