"""The governor against the real vLLM on a CPU. Opt in: `pytest -m engine`.

Either name a running vLLM in CONCUR_ENGINE_URL, or an environment built by
scripts/engines/vllm_cpu_env.sh in CONCUR_ENGINE_ENV: then a server is started for these tests and
stopped after them. The machine should have nothing else to do, because seconds are compared; the
whole file takes about ten minutes on two cores.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from concur_agents.lab.replay import (
    ArmRun,
    Endpoint,
    Options,
    Summary,
    WorkloadOptions,
    make_plans,
    parse_arms,
    replay,
    summarize,
    table,
    work_agrees,
)
from concur_agents.probes import HttpProbe

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

SERVE = Path(__file__).parents[2] / "scripts" / "engines" / "vllm_cpu_serve.sh"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    given, folder = os.environ.get("CONCUR_ENGINE_URL"), os.environ.get("CONCUR_ENGINE_ENV")
    if given:
        yield given
        return
    if not folder:
        pytest.skip(
            "no engine: set CONCUR_ENGINE_URL to a running vLLM, or CONCUR_ENGINE_ENV to a folder "
            "made by scripts/engines/vllm_cpu_env.sh"
        )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # the larger random model: prefill weighs more, so that thrashing costs something
    started = subprocess.run(
        [SERVE, folder, "small"],
        env=os.environ | {"PORT": str(port)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert started.returncode == 0, started.stderr
    group = int((Path(folder) / "vllm.pid").read_text("utf-8"))
    try:
        yield started.stdout.split()[-1]
    finally:
        os.killpg(group, signal.SIGTERM)


def test_the_probe_knows_the_engine_and_its_pool(url: str) -> None:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as response:
        text = response.read().decode()
    info = re.search(r"vllm:cache_config_info\{(.*)\}", text)
    assert info is not None
    blocks, size = (
        int(re.findall(rf'\b{name}="(\d+)"', info[1])[0])
        for name in ("num_gpu_blocks", "block_size")
    )
    with HttpProbe(url) as probe:
        page = probe.read_page()
    assert page.engine == "vllm"
    assert page.block_size == size
    assert page.reading.capacity_tokens == blocks * size
    assert page.reading.running == page.reading.waiting == 0
    assert page.reading.kv_usage == 0.0


async def test_cached_tokens_flow_from_the_engine_to_usage_and_counters(url: str) -> None:
    endpoint = Endpoint(url)
    await endpoint.open()
    with HttpProbe(url) as probe:
        try:
            assert endpoint.tells_ids
            assert await endpoint.reset_cache()
            prompt = endpoint.vocabulary("test").spell("once", 640)
            before = probe.read()
            first = await endpoint.complete(prompt, 4)
            again = await endpoint.complete([*prompt, *(first.ids or [])], 4)
            after = probe.read()
        finally:
            await endpoint.close()
    assert (first.prompt_tokens, first.output_tokens, first.cached_tokens) == (640, 4, 0)
    # whole blocks only, and the last token is always computed
    assert again.cached_tokens == 640
    assert before.hit_tokens_total is not None
    assert after.hit_tokens_total is not None
    assert after.hit_tokens_total - before.hit_tokens_total == 640
    assert before.generated_tokens_total is not None
    assert after.generated_tokens_total == before.generated_tokens_total + 8


@pytest.fixture(scope="module")
def runs(url: str) -> list[ArmRun]:
    import asyncio

    async def everything() -> list[ArmRun]:
        endpoint = Endpoint(url)
        await endpoint.open()
        with HttpProbe(url) as probe:
            plans = make_plans(
                WorkloadOptions("cpu:steps=5", overload=2.5), probe.read().capacity_tokens
            )
            try:
                return await replay(
                    endpoint,
                    plans,
                    parse_arms("none,fixed:2,fixed:3,fixed:4,working_set"),
                    probe,
                    Options(limit_s=600.0),
                    print,
                )
            finally:
                await endpoint.close()

    return asyncio.run(everything())


@pytest.fixture(scope="module")
def rows(runs: list[ArmRun]) -> dict[str, Summary]:
    summaries = summarize(runs)
    print(table(summaries))
    return {row.arm: row for row in summaries}


def test_every_arm_did_the_same_work_without_an_error(runs: list[ArmRun]) -> None:
    assert all(run.finished and run.cache_reset for run in runs)
    assert work_agrees(runs)
    assert all(not run.errors and run.wrong_lengths == 0 for run in runs)


def test_ungoverned_thrashes_and_governed_does_not(rows: dict[str, Summary]) -> None:
    none, governed = rows["none"], rows["working_set"]
    assert none.hit_deficit is not None
    assert governed.hit_deficit is not None
    assert none.hit_deficit > 0.8
    assert governed.hit_deficit < 0.5


def test_governing_is_worth_half_as_much_again_and_keeps_up_with_the_best_cap(
    rows: dict[str, Summary],
) -> None:
    governed = rows["working_set"].makespan_s
    best_cap = min(row.makespan_s for arm, row in rows.items() if arm.startswith("fixed:"))
    assert rows["none"].makespan_s / governed >= 1.5
    assert best_cap / governed >= 0.95
