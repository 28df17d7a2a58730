"""The real SGLang evicts the context of an agent that is done first, if it is told. Opt in:
`pytest -m engine`.

Name an environment built by `scripts/engines/sglang_cpu.sh env DIR VLLM_DIR` in CONCUR_SGLANG_ENV.
Tokens are compared and no seconds, so the machine may have other work.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

SCRIPT = Path(__file__).parents[2] / "scripts" / "engines" / "sglang_cpu.sh"
FOLDER = os.environ.get("CONCUR_SGLANG_ENV")

AGENTS = """
import json, logging, sys, time, os
from concur_agents import Governor
from concur_agents.openai import OpenAI

url, told = os.environ["ENGINE_URL"], []
logging.basicConfig(level=logging.INFO, stream=sys.stderr)
class Ear(logging.Handler):
    def emit(self, record):
        told.append(getattr(record, "concur", {}).get("event"))
logging.getLogger("concur_agents").addHandler(Ear())

def call(client, number):
    ids = [10 + (number * 37 + at * 31) % 200 for at in range(2800)]
    answer = client.completions.create(model="tiny", prompt=ids, max_tokens=2)
    return answer.usage.prompt_tokens_details.cached_tokens

with Governor(url, law="fixed", limit=8, poll_interval_s=0.5) as gov, OpenAI(
    governor=gov, base_url=url + "/v1", api_key="-", timeout=600
) as client:
    gov.start()
    ends = time.monotonic() + 60
    while "sessions_found" not in told and "--enable-session" in os.environ["SGLANG_FLAGS"]:
        assert time.monotonic() < ends
        time.sleep(0.1)
    with gov.agent("stays"):
        call(client, 1)
        with gov.agent("leaves", detached=True):
            call(client, 2)
        time.sleep(5)
        with gov.agent("comes", detached=True):
            call(client, 3)
            call(client, 4)
        back = call(client, 1)
print(json.dumps({"back": back, "told": told}))
"""


def cached_on_return(flags: str) -> dict[str, Any]:
    """What an agent finds of its 2,800 tokens after a younger one left and two prompts came."""

    if not FOLDER:
        pytest.skip(
            "no engine: set CONCUR_SGLANG_ENV to a folder made by "
            "`scripts/engines/sglang_cpu.sh env DIR VLLM_DIR`"
        )
    if shutil.which("unshare") is None:
        pytest.skip("the engine listens on every interface and runs under `unshare -n` only")
    ran = subprocess.run(
        [SCRIPT, "run", FOLDER, "tiny", sys.executable, "-c", AGENTS],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "SGLANG_FLAGS": flags},
    )
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def test_an_agent_that_is_done_gives_way_to_one_in_a_long_tool_call() -> None:
    found = cached_on_return("--enable-session-radix-cache")
    assert "sessions_found" in found["told"]
    assert found["back"] > 2500


def test_without_sessions_the_older_context_goes_first() -> None:
    assert cached_on_return("")["back"] < 500
