"""mini-swe-agent's own batch runner of SWE-bench, with the pool of its page (`--env litellm`).

Its instances, agents, shell and LiteLLM model are mini-swe-agent's; the data set is two lines, the
container a folder of this machine and the model the embedded server.
"""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("minisweagent", reason="the litellm environment has it")
swebench = pytest.importorskip("minisweagent.run.benchmarks.swebench")

import concur_agents as ca  # noqa: E402
from concur_agents.testing import assert_idle  # noqa: E402

# LiteLLM's types, which are made at the first call, and may not have been before.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

PAGE = Path(__file__).parents[2] / "docs" / "frameworks" / "mini-swe-agent.md"
SUBMIT = 'CALL:bash{"command": "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"}'
CONFIG = """
agent: {system_template: You fix issues., instance_template: "{{task}}", step_limit: 5}
environment: {environment_class: local}
model:
  model_name: hosted_vllm/MODEL
  model_kwargs: {api_base: URL/v1, api_key: "-", max_tokens: 100}
  cost_tracking: ignore_errors
"""


@pytest.fixture
def run(server, tmp_path, monkeypatch):
    """`run(gov)`: the runner as its command runs it, on four instances; what it has written."""
    data = ModuleType("datasets")
    data.load_dataset = lambda path, split: [
        {"instance_id": f"fix-{number}", "problem_statement": f"Fix {number}. {SUBMIT}"}
        for number in range(4)
    ]
    monkeypatch.setitem(sys.modules, "datasets", data)
    monkeypatch.setattr(swebench, "concurrent", swebench.concurrent)
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.replace("URL", server.url).replace("MODEL", server.model))

    def begin(gov):
        monkeypatch.setattr(ca.Governor, "from_env", classmethod(lambda cls: gov))
        code = re.findall(r"(?ms)^```python\n(.*?)^```", PAGE.read_text("utf-8"))[1]
        exec(code, {})
        swebench.main(
            subset="lite",
            split="dev",
            slice_spec="",
            filter_spec="",
            shuffle=False,
            output=str(tmp_path / "out"),
            workers=32,
            model=None,
            model_class=None,
            redo_existing=False,
            config_spec=[str(config)],
            environment_class=None,
        )
        return (tmp_path / "out" / "preds.json").read_text()

    return begin


def test_instances_are_agents_and_their_calls_steps(run, watch):
    with ca.Governor(limit=2, ungoverned="error") as gov:
        seen = watch(gov)
        written = run(gov)
        assert_idle(gov)
    assert all(f"fix-{number}" in written for number in range(4))
    assert len(seen.arrived) == len(set(seen.arrived)) == 4
    assert len(seen.used) == 4
    assert all(used.completion_tokens for used in seen.used)


def test_other_modules_keep_their_thread_pools(run):
    import concurrent.futures

    pool = concurrent.futures.ThreadPoolExecutor
    with ca.Governor(limit=2) as gov:
        run(gov)
    assert concurrent.futures.ThreadPoolExecutor is pool
