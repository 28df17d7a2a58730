"""Where the examples find an engine: the URL on the command line, else a simulated engine.

python examples/drop_in_client.py                            # simulated, needs no GPU
python examples/drop_in_client.py http://localhost:8000      # yours
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import openai

TASK = 'Look at two places, then say what you saw. CALL:look{"at": "1"}'
"""The simulated model cannot read; it calls a tool when the text says so."""


def look(at: str) -> str:
    """Looks at a place, and reports what is there."""
    return 'a river, and a sign: CALL:look{"at": "2"}' if at == "1" else "a house"


@contextmanager
def endpoint() -> Iterator[tuple[str, str]]:
    """The engine's URL, without /v1, and the name of its model."""
    url = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("OPENAI_BASE_URL")
    if url is not None:
        url = url.rstrip("/").removesuffix("/v1")
        key = os.environ.get("OPENAI_API_KEY", "-")
        with openai.OpenAI(base_url=f"{url}/v1", api_key=key) as client:
            model = os.environ.get("MODEL") or client.models.list().data[0].id
        yield url, model
        return
    from concur_agents.sim.server import EmbeddedServer

    with EmbeddedServer("h100-qwen3-8b", time_scale=50) as server:
        yield server.url, server.model
