"""Two gateways with one daemon: they share its places, and not the names of their agents."""

import asyncio
import tempfile
import threading

import pytest

from concur_agents.daemon import Daemon, listen
from concur_agents.governor import Governor
from concur_agents.runtime.daemon_address import daemon_address


@pytest.fixture
def shared():
    """The address of a daemon with one place; the path of a socket has about 100 characters."""
    with tempfile.TemporaryDirectory(prefix="c", dir="/tmp") as folder, Governor(limit=1) as one:
        where = f"unix:{folder}/d"
        address = daemon_address(where)
        listener, _ = listen(address, None)
        daemon = Daemon(one, settle_s=0.0)
        serving = daemon.serve([(listener, address)])
        thread = threading.Thread(target=asyncio.run, args=(serving,), daemon=True)
        thread.start()
        yield where
        daemon.end()
        thread.join(10)


async def test_two_gateways_share_their_places(engine, before, shared):
    here = before(governor=Governor(shared=shared), engines=engine.url)
    there = before(governor=Governor(shared=shared), engines=engine.url)
    async with here as one, there as other:
        assert (await one.ask(agent="a"))[0] == 200
        asking = asyncio.create_task(other.ask(agent="a"))  # of the same name, and another agent
        await other.waiting(1)
        assert len(engine.seen) == 1
        async with one.client.delete(f"{one.url}/agent/a") as answer:
            assert answer.status == 204
        assert (await asking)[0] == 200
