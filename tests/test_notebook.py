"""The notebook of the examples: its cells run in order, and show what they promise."""

import ast
import asyncio
import inspect
import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "notebook.ipynb"


def cells():
    return json.loads(NOTEBOOK.read_text("utf-8"))["cells"]


async def run_cell(source, names):
    """Runs a cell as IPython does, also with `await` at its top; returns its last expression."""
    tree, value = ast.parse(source), None
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    parts = [(tree, "exec")]
    if last is not None:
        parts.append((ast.Expression(last.value), "eval"))
    for part, mode in parts:
        code = compile(part, NOTEBOOK.name, mode, flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        value = eval(code, names)
        if inspect.iscoroutine(value):
            value = await value
    return value if last is not None else None


def test_the_notebook_is_kept_without_outputs():
    """Those of an earlier version would say what is no longer true."""
    for cell in cells():
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)


def test_its_cells_run_in_order_and_show_the_governor_and_the_report(tmp_path, monkeypatch, capsys):
    pytest.importorskip("uvicorn")
    monkeypatch.chdir(tmp_path)

    async def main():
        names = {"__name__": "__main__"}
        sources = ["".join(cell["source"]) for cell in cells() if cell["cell_type"] == "code"]
        return [await run_cell(source, names) for source in sources]

    values = asyncio.run(main())
    shown = [value._repr_html_() for value in values if hasattr(value, "_repr_html_")]
    governor, report = shown
    assert "Active: " in governor
    assert report.startswith("<iframe")
    assert "issue-15" in report
    out, err = capsys.readouterr()
    assert out.startswith("16 agents, ")
    assert "16 of 16 done" in err
