"""Each example runs as a user would start it, against the simulated engine that it brings."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn")

FOLDER = Path(__file__).parents[2] / "examples"
EXAMPLES = sorted(path.name for path in FOLDER.glob("[!_]*.py"))
NEEDS = {
    "langgraph_decorator.py": ["langchain", "langchain_openai", "langgraph"],
    "langgraph_human.py": ["langchain_openai", "langgraph"],
    "langgraph_sub_agents.py": ["langchain", "langchain_openai", "langgraph"],
    "mini_swe_agent_batch.py": ["minisweagent", "litellm"],
    "openai_agents.py": ["agents"],
    "pydantic_ai_limiter.py": ["pydantic_ai"],
    "ray_actors.py": ["ray"],
    "ray_tasks.py": ["ray"],
}
SAYS = {
    "drop_in_client.py": "issue-7: ",
    "langgraph_decorator.py": "left issue-3",
    "langgraph_human.py": "0 agents active while the human thinks",
    "langgraph_sub_agents.py": "boss-1/expert#2 is part of boss-1",
    "long_tool.py": "suspended issue-3",
    "mini_swe_agent_batch.py": "issue-5: Submitted",
    "openai_agents.py": "4 answers",
    "pydantic_ai_limiter.py": "12 requests",
    "ray_actors.py": "tokens asked, by shared",
    "ray_tasks.py": "tokens asked, by shared",
    "swe_pool.py": "issue-5 ok tests passed",
    "your_own_law.py": "tokens each",
}


def test_every_example_is_run_here() -> None:
    assert set(EXAMPLES) == set(SAYS)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_runs(name: str, tmp_path: Path) -> None:
    for module in NEEDS.get(name, []):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed in this environment")
    said = run(name, tmp_path)
    assert SAYS[name] in said, said


def test_an_example_runs_against_the_engine_it_is_given(server: Any, tmp_path: Path) -> None:
    assert "issue-7: " in run("drop_in_client.py", tmp_path, server.url)
    assert server.stats.calls == 24


def run(name: str, folder: Path, *arguments: str) -> str:
    environ = {k: v for k, v in os.environ.items() if k not in ("OPENAI_BASE_URL", "MODEL")}
    environ |= {
        "LANGSMITH_TRACING": "false",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # or importing it asks the network
        "MSWEA_GLOBAL_CONFIG_DIR": str(folder),
    }
    ran = subprocess.run(
        [sys.executable, str(FOLDER / name), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        cwd=folder,
        env=environ,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_fits_on_a_page(name: str) -> None:
    assert 20 <= len((FOLDER / name).read_text("utf-8").splitlines()) <= 60
