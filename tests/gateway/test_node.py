"""Clients for Node with a timeout of 2 s and a hold of 6 s.

Runs where `CONCUR_TEST_NODE` names a folder with the packages: `npm install openai
@anthropic-ai/sdk` there.
"""

import asyncio
import json
import os
import shutil
from pathlib import Path

import pytest

from concur_agents.gateway.holding import Times

FOLDER = os.environ.get("CONCUR_TEST_NODE", "")
HELD_S = 6.0

pytestmark = pytest.mark.skipif(
    not FOLDER or shutil.which("node") is None,
    reason="CONCUR_TEST_NODE names no folder with the clients for Node",
)


async def test_no_client_for_node_fails_whose_timeout_is_shorter_than_its_hold(before):
    script = Path(__file__).with_name("node_clients.mjs")
    async with before(limit=1, times=Times()) as front:
        holder = front.governor.agent("holder")
        await holder.open()
        command = ["node", str(script), front.url, FOLDER]
        node = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        await front.waiting(3)
        asyncio.get_running_loop().call_later(HELD_S, holder.close)
        said = json.loads((await node.communicate())[0])
        assert set(said.values()) <= {"hello", "hellohello"}, said
        assert len(said) == 5
        assert await front.metric("concur_gateway_passed_total") == 2
