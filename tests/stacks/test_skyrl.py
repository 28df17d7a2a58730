"""The hook of docs/frameworks/skyrl.md with SkyRL's own code (`scripts/stacks skyrl`).

The generator, its environments and the inference client are SkyRL's, but for the client's last
line: it speaks a route of SkyRL's server, and here the completions of the embedded one.
"""

import asyncio

import pytest

pytest.importorskip("skyrl", reason="scripts/stacks skyrl has it")

import skyrl_gym
from skyrl.backends.skyrl_train.inference_servers.remote_inference_client import (
    RemoteInferenceClient,
)
from skyrl.train.config import GeneratorConfig, SkyRLGymConfig
from skyrl.train.generators.base import TrajectoryID
from skyrl.train.generators.skyrl_gym_generator import SkyRLGymGenerator
from skyrl_gym.envs.base_text_env import BaseTextEnv, BaseTextEnvStepOutput

import concur_agents as ca
from concur_agents.testing import assert_idle

CALLS = 3


class Look(BaseTextEnv):
    """Answers three calls."""

    def __init__(self, env_config=None, extras=None):
        super().__init__()
        self.fails = (extras or {}).get("fails", [])

    def step(self, action):
        if self.fails:
            raise OSError(self.fails.pop())
        self.turns += 1
        seen = [{"role": "user", "content": "Go on."}]
        return BaseTextEnvStepOutput(
            observations=seen, reward=1.0, done=self.turns == CALLS, metadata={}
        )


skyrl_gym.register(id="look", entry_point=Look)


class Letters:
    """A tokenizer: each letter is a token."""

    eos_token, eos_token_id = "\0", 0

    def apply_chat_template(self, messages, *, add_generation_prompt=False, **options):
        text = "".join(f"<{message['content']}>" for message in messages)
        return [ord(letter) for letter in text + "!" * add_generation_prompt]

    def decode(self, ids, **options):
        return "".join(map(chr, ids))


class Client(RemoteInferenceClient):
    """SkyRL's, in front of the embedded server."""

    now = most = 0

    async def _generate_single(self, prompt_token_ids, model, **options):
        session = await self._get_session()
        body = {"prompt": prompt_token_ids, "max_tokens": 5}
        self.now += 1
        self.most = max(self.most, self.now)
        async with session.post(f"{self.proxy_url}/v1/completions", json=body) as answer:
            (choice,) = (await answer.json())["choices"]
        self.now -= 1
        ids = [ord(letter) for letter in "look"] + [0]
        return {"stop_reason": choice["finish_reason"], "response_ids": ids}

    async def detokenize(self, ids):
        return ["look"] * len(ids)

    async def finish_session(self, session_id): ...

    async def close(self):
        await (await self._get_session()).close()
        await asyncio.sleep(0)  # for the transports to close


@pytest.fixture
def hooked(page):
    """`hooked(gov)`: the hook of the page."""
    places = (RemoteInferenceClient, "generate"), (SkyRLGymGenerator, "agent_loop")
    return lambda gov: page("skyrl", gov, *places)


def made(server):
    """A generator of three turns, and its client."""
    client = Client(server.url, [server.url], data_parallel_size=1)
    config = GeneratorConfig(max_turns=CALLS, max_input_length=4_000)
    gym = SkyRLGymConfig(max_env_workers=0)
    return SkyRLGymGenerator(config, gym, client, Letters()), client


def batch(count, **extras):
    """Samples of one instance."""
    return {
        "prompts": [[{"role": "user", "content": "Find it." * 20}] for _ in range(count)],
        "env_classes": ["look"] * count,
        "env_extras": [dict(extras) for _ in range(count)],
        "trajectory_ids": [TrajectoryID("fix", number) for number in range(count)],
    }


def test_trajectories_are_agents_and_their_calls_steps(server, hooked, watch):
    async def main():
        generator, client = made(server)
        output = await generator.generate(batch(6), disable_tqdm=True)
        await client.close()
        return output, client

    with ca.Governor(limit=2, ungoverned="error") as gov:
        hooked(gov)
        seen = watch(gov)
        output, client = asyncio.run(main())
        assert_idle(gov)
    assert output["stop_reasons"] == ["length"] * 6
    assert sorted(seen.arrived) == [f"fix_{number}" for number in range(6)]
    assert len(seen.used) == 6 * CALLS
    assert {used.completion_tokens for used in seen.used} == {5}
    assert client.most == 2


def test_a_trajectory_that_is_tried_again_keeps_its_name(server, hooked, watch):
    async def main():
        generator, client = made(server)
        again = batch(1, fails=["one", "two"])
        for error in ("two", "one"):
            with pytest.raises(OSError, match=error):
                await generator.generate(again, disable_tqdm=True)
        await generator.generate(again, disable_tqdm=True)
        await client.close()

    with ca.Governor(limit=1) as gov:
        hooked(gov)
        seen = watch(gov)
        asyncio.run(main())
        assert_idle(gov)
    assert seen.arrived == ["fix_0"] * 3


def test_trajectories_that_are_cancelled_leave(server, hooked):
    async def main(gov):
        generator, client = made(server)
        task = asyncio.ensure_future(generator.generate(batch(3), disable_tqdm=True))
        while gov.snapshot().active == 0:
            await asyncio.sleep(0.01)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}  # SkyRL's gather leaves its own
        for one in tasks:
            one.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert task.cancelled()
        await client.close()

    with ca.Governor(limit=1) as gov:
        hooked(gov)
        asyncio.run(main(gov))
        assert_idle(gov)
