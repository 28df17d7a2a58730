"""The hook of docs/frameworks/nemo-gym.md with NeMo Gym's own code (`scripts/stacks nemo-gym`).

The agent server's episode and the client of the servers are NeMo Gym's; the model server is the
embedded one, which stands for the resources server, too: it knows no tool, and says so.
"""

import asyncio
from types import SimpleNamespace

import pytest

pytest.importorskip("nemo_gym", reason="scripts/stacks nemo-gym has it")

from fastapi import Response
from nemo_gym import server_utils
from nemo_gym.config_types import BaseServerConfig
from nemo_gym.openai_utils import NeMoGymResponseCreateParamsNonStreaming
from nemo_gym.server_utils import ServerClient
from omegaconf import OmegaConf
from responses_api_agents.simple_agent.app import SimpleAgent, SimpleAgentConfig

import concur_agents as ca
from concur_agents.testing import assert_idle

CALLS = 2
ASK = {
    "input": 'Look: CALL:look{"where": "here"}',
    "tools": [
        {
            "type": "function",
            "name": "look",
            "description": "Looks.",
            "parameters": {"type": "object", "properties": {"where": {"type": "string"}}},
            "strict": False,
        }
    ],
}


@pytest.fixture
def hooked(page):
    """`hooked(gov)`: the hook of the page."""
    places = (SimpleAgent, "responses"), (ServerClient, "post")
    return lambda gov: page("nemo-gym", gov, *places)


def agent_for(server):
    host, port = server.url.removeprefix("http://").split(":")
    address = {"host": host, "port": int(port), "entrypoint": "app.py"}
    servers = OmegaConf.create(
        {
            "policy_model": {"responses_api_models": {"m": address}},
            "tools": {"resources_servers": {"t": address}},
        }
    )
    client = ServerClient(
        head_server_config=BaseServerConfig(host=host, port=int(port)), global_config_dict=servers
    )
    config = SimpleAgentConfig(
        name="agent",
        host=host,
        port=1,
        entrypoint="app.py",
        resources_server={"type": "resources_servers", "name": "tools"},
        model_server={"type": "responses_api_models", "name": "policy_model"},
        max_steps=CALLS,
    )
    return SimpleAgent.model_construct(config=config, server_client=client)


async def episode(agent, number):
    request = SimpleNamespace(cookies={}, path_params={"rollout_id": f"r{number}"})
    body = NeMoGymResponseCreateParamsNonStreaming(**ASK)
    return await agent.responses(request, Response(), body)


async def closed():
    client = server_utils._GLOBAL_AIOHTTP_CLIENT
    server_utils._GLOBAL_AIOHTTP_CLIENT = None
    if client is not None:
        await client.close()


def test_episodes_are_agents_and_calls_of_the_model_are_steps(server, hooked, watch):
    async def main():
        server_utils.set_global_aiohttp_client(server_utils.GlobalAIOHTTPAsyncClientConfig())
        agent = agent_for(server)
        done = await asyncio.gather(*(episode(agent, number) for number in range(4)))
        await closed()
        return done

    with ca.Governor(limit=2, ungoverned="error") as gov:
        hooked(gov)
        seen = watch(gov)
        done = asyncio.run(main())
        assert_idle(gov)
    kinds = [[item.type for item in one.output] for one in done]
    assert all("function_call_output" in kind for kind in kinds)
    assert sorted(seen.arrived) == ["r0", "r1", "r2", "r3"]
    assert len(seen.used) == 4 * CALLS
    assert all(used.completion_tokens for used in seen.used)


def test_an_episode_that_is_tried_again_keeps_its_name(server, hooked, watch):
    async def main():
        server_utils.set_global_aiohttp_client(server_utils.GlobalAIOHTTPAsyncClientConfig())
        agent, client = agent_for(server), None
        agent.server_client, client = client, agent.server_client
        with pytest.raises(AttributeError):
            await episode(agent, 1)
        agent.server_client = client
        await episode(agent, 1)
        await closed()

    with ca.Governor(limit=1) as gov:
        hooked(gov)
        seen = watch(gov)
        asyncio.run(main())
        assert_idle(gov)
    assert seen.arrived == ["r1", "r1"]


def test_episodes_that_are_cancelled_leave(server, hooked):
    async def main(gov):
        server_utils.set_global_aiohttp_client(server_utils.GlobalAIOHTTPAsyncClientConfig())
        agent = agent_for(server)
        tasks = [asyncio.ensure_future(episode(agent, number)) for number in range(3)]
        while gov.snapshot().active == 0:
            await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        await closed()
        return ends

    with ca.Governor(limit=1) as gov:
        hooked(gov)
        ends = asyncio.run(main(gov))
        assert_idle(gov)
    assert all(isinstance(end, asyncio.CancelledError) for end in ends)
