"""The command, in a process of its own, before an engine behind TLS and a path."""

import asyncio
import json
import os
import signal
import ssl
import subprocess
import sys

import aiohttp
import pytest
from aiohttp import web

CHAT = "/v1/chat/completions"
SAY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
MAIN = "from concur_agents.cli.app import main; main()"


@pytest.fixture
def certificate(tmp_path):
    """A certificate for 127.0.0.1 that its own key has signed, and the key."""
    pem, key = tmp_path / "server.pem", tmp_path / "server.key"
    try:
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
             "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key,
             "-out", pem],
            check=True, capture_output=True,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    return pem, key


@pytest.fixture
async def engine_url(engine, certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    runner = web.ServerRunner(web.Server(engine.handle, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    yield f"https://127.0.0.1:{runner.addresses[0][1]}/llm/v1"
    await runner.cleanup()


@pytest.fixture
async def url(engine_url, certificate):
    """A gateway that lets one agent in; it is ended by the test."""
    options = ["gateway", "--engine", engine_url, "--limit", "1", "--port", "0", "--json"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", MAIN, *options,
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"SSL_CERT_FILE": str(certificate[0])},
    )  # fmt: skip
    try:
        yield json.loads(await process.stdout.readline())["url"], process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_it_ends_while_it_holds_calls(engine, url):
    """Held clients see their connection end, as with any server that ends, and try again."""
    url, process = url
    async with aiohttp.ClientSession() as client:

        def ask(agent, **more):
            return client.post(f"{url}/agent/{agent}{CHAT}", json=SAY | more)

        async with ask("a") as answer:
            assert answer.status == 200
        held = await ask("b", stream=True)
        assert await held.content.readline() == b": held\n"
        silent = asyncio.create_task(ask("c").__aenter__())
        waiting = 0
        while waiting < 2:
            async with client.get(f"{url}/healthz") as page:
                waiting = (await page.json())["waiting"]
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
        with pytest.raises(aiohttp.ClientPayloadError):
            await held.read()
        with pytest.raises(aiohttp.ClientError):
            await silent
    posts = [seen.path for seen in engine.seen if seen.method == "POST"]
    assert posts == [f"/llm{CHAT}"]
