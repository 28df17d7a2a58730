"""terminal-bench's own harness and LiteLLM client, with the pool of docs/frameworks/harbor.md.

A trial needs docker: here it is three calls through terminal-bench's client.
"""

import logging
import os
import re
from pathlib import Path

import pytest

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would ask the network on import
pytest.importorskip("terminal_bench", reason="scripts/stacks harbor has it")

from terminal_bench.harness import harness
from terminal_bench.harness.models import FailureMode, TrialResults
from terminal_bench.llms.lite_llm import LiteLLM

import concur_agents as ca
from concur_agents.testing import assert_idle

CALLS = 3
PAGE = Path(__file__).parents[2] / "docs" / "frameworks" / "harbor.md"


class Harness(harness.Harness):
    """As far as trials are started and collected."""

    def __init__(self, server, trials):
        self._dataset = [Path(f"task-{number}") for number in range(trials)]
        self._is_resuming = self._livestream = False
        self._n_concurrent_trials, self._n_attempts = 100, 1
        self._logger, self._server, self.names = logging.getLogger(__name__), server, []

    def _get_trial_name(self, task_path, attempt):
        return f"{task_path.name}.{attempt}"

    def _write_results(self, results): ...

    def _execute_single_trial(self, trial_name, task_path):
        self.names.append(ca.current_agent().id)
        model, url = f"openai/{self._server.model}", f"{self._server.url}/v1"
        llm = LiteLLM(model_name=model, api_base=url)
        for _ in range(CALLS):
            llm.call(prompt=f"Fix {trial_name}.")
        return TrialResults(
            trial_name=trial_name,
            task_id=task_path.name,
            instruction="-",
            is_resolved=True,
            failure_mode=FailureMode.NONE,
        )


def test_trials_are_agents_and_their_calls_steps(server, watch, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "-")
    monkeypatch.setattr(harness, "ThreadPoolExecutor", harness.ThreadPoolExecutor)
    code = re.findall(r"(?ms)^```python\n(.*?)^```", PAGE.read_text("utf-8"))[1]
    run = Harness(server, 4)
    with ca.Governor(limit=2, ungoverned="error") as gov:
        exec(code, {"ca": ca, "gov": gov})
        seen = watch(gov)
        results = run._execute_tasks()
        assert_idle(gov)
    assert sorted(result.task_id for result in results.results) == [f"task-{n}" for n in range(4)]
    assert sorted(seen.arrived) == sorted(run.names)
    assert len(set(run.names)) == 4
    assert len(seen.used) == 4 * CALLS
