"""The hook of docs/frameworks/harbor.md with Harbor's own code (`scripts/stacks harbor`).

The queue, its retries, the trials and the LiteLLM client are Harbor's; the container is a folder,
and the agent makes three calls through Harbor's client.
"""

import asyncio
import os
from pathlib import Path

import pytest

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would ask the network on import
pytest.importorskip("harbor", reason="scripts/stacks harbor has it")

from harbor.agents.base import BaseAgent
from harbor.environments.base import BaseEnvironment, ExecResult
from harbor.llms.lite_llm import LiteLLM
from harbor.models.job.config import RetryConfig
from harbor.models.trial.config import (
    AgentConfig,
    EnvironmentConfig,
    TaskConfig,
    TrialConfig,
    VerifierConfig,
)
from harbor.trial.queue import TrialQueue
from harbor.trial.trial import Trial

import concur_agents as ca
from concur_agents.testing import assert_idle

CALLS = 3
URL, MODEL = "CONCUR_TEST_URL", "CONCUR_TEST_MODEL"
runs: list[str] = []


class Folder(BaseEnvironment):
    """A container that is none."""

    @staticmethod
    def type():
        return "folder"

    def _validate_definition(self): ...

    async def start(self, force_build): ...

    async def stop(self, delete): ...

    async def upload_file(self, source_path, target_path): ...

    async def upload_dir(self, source_dir, target_dir): ...

    async def download_file(self, source_path, target_path): ...

    async def download_dir(self, source_dir, target_dir): ...

    async def exec(self, command, cwd=None, env=None, timeout_sec=None, user=None):
        return ExecResult(stdout="", stderr="", return_code=0)


class Caller(BaseAgent):
    """Makes its calls as Terminus does."""

    @staticmethod
    def name():
        return "caller"

    def version(self):
        return "1"

    async def setup(self, environment): ...

    async def run(self, instruction, environment, context):
        runs.append(ca.current_agent().id)
        if "fail once" in instruction and len(runs) == 1:
            raise ConnectionError("try again")
        llm = LiteLLM(model_name=os.environ[MODEL], api_base=f"{os.environ[URL]}/v1")
        for _ in range(CALLS):
            await llm.call(prompt=instruction)


@pytest.fixture
def trials(server, tmp_path, monkeypatch):
    """`trials(n)`: the configurations of n trials of one task."""
    monkeypatch.setenv(URL, server.url)
    monkeypatch.setenv(MODEL, f"openai/{server.model}")
    monkeypatch.setenv("OPENAI_API_KEY", "-")
    runs.clear()

    def made(count, instruction="Fix it."):
        task = tmp_path / "fix-git"
        (task / "environment").mkdir(parents=True)
        (task / "environment" / "Dockerfile").write_text("FROM scratch\n")
        (task / "instruction.md").write_text(instruction)
        (task / "task.toml").write_text('version = "1.0"\n')
        return [
            TrialConfig(
                task=TaskConfig(path=Path(task)),
                trial_name=f"fix-git__{number}",
                trials_dir=tmp_path / "trials",
                agent=AgentConfig(import_path=f"{__name__}:Caller"),
                environment=EnvironmentConfig(import_path=f"{__name__}:Folder"),
                verifier=VerifierConfig(disable=True),
            )
            for number in range(count)
        ]

    return made


def test_trials_are_agents_and_their_calls_steps(trials, page, watch):
    async def main():
        queue = TrialQueue(n_concurrent=50)
        return await asyncio.gather(*queue.submit_batch(trials(4)))

    with ca.Governor(limit=2, ungoverned="error") as gov:
        page("harbor", gov, (Trial, "run"))
        seen = watch(gov)
        results = asyncio.run(main())
        assert_idle(gov)
    assert [result.exception_info for result in results] == [None] * 4
    assert sorted(seen.arrived) == [f"fix-git__{number}" for number in range(4)]
    assert len(seen.used) == 4 * CALLS
    assert all(used.completion_tokens for used in seen.used)


def test_a_trial_that_harbor_tries_again_keeps_its_name(trials, page, watch):
    async def main():
        retries = RetryConfig(max_retries=1, min_wait_sec=0.0, max_wait_sec=0.0)
        (trial,) = TrialQueue(4, retries).submit_batch(trials(1, "fail once"))
        return await trial

    with ca.Governor(limit=1) as gov:
        page("harbor", gov, (Trial, "run"))
        seen = watch(gov)
        result = asyncio.run(main())
        assert_idle(gov)
    assert result.exception_info is None
    assert seen.arrived == runs == ["fix-git__0"] * 2


def test_a_trial_that_is_cancelled_leaves(trials, page):
    async def main(gov):
        queue = TrialQueue(n_concurrent=50)
        tasks = [asyncio.ensure_future(trial) for trial in queue.submit_batch(trials(3))]
        while gov.snapshot().active == 0:
            await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    with ca.Governor(limit=1) as gov:
        page("harbor", gov, (Trial, "run"))
        ends = asyncio.run(main(gov))
        assert_idle(gov)
    assert all(isinstance(end, asyncio.CancelledError) for end in ends)
