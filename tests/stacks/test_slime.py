"""The hook of docs/frameworks/slime.md with slime's own code (`scripts/stacks slime --source ...`).

The groups, samples, posts and the abort are slime's; behind its HTTP client `/generate` is answered
by the embedded server.
"""

import asyncio
import json
from argparse import Namespace

import pytest

pytest.importorskip("slime.rollout", reason="scripts/stacks slime --source FOLDER has it")

import httpx
from slime.rollout import sglang_rollout
from slime.utils import http_utils
from slime.utils.types import Sample

import concur_agents as ca
from concur_agents.testing import assert_idle

CALLS = 3
ARGS = Namespace(
    ci_test=False,
    custom_generate_function_path="governed.generate",
    group_rm=False,
    hf_checkpoint="-",
    mask_offpolicy_in_partial_rollout=False,
    partial_rollout=True,
    rollout_max_response_len=50,
    rollout_skip_special_tokens=False,
    rollout_stop=None,
    rollout_stop_token_ids=None,
    rollout_temperature=1.0,
    rollout_top_k=-1,
    rollout_top_p=1.0,
    sglang_dp_size=1,
    sglang_router_ip="router",
    sglang_router_port=80,
    sglang_server_concurrency=100,
    use_rollout_routing_replay=False,
    rollout_num_gpus=1,
    rollout_num_gpus_per_engine=1,
)


class Letters:
    """A tokenizer: each letter is a token."""

    def encode(self, text, **options):
        return [ord(letter) for letter in text]


class Router(httpx.AsyncBaseTransport):
    """SGLang's router, in front of the embedded server."""

    def __init__(self, url):
        self.engine = httpx.AsyncClient(base_url=url, timeout=60)
        self.now = self.most = self.calls = 0
        self.aborted, self.begun = False, asyncio.Event()

    async def handle_async_request(self, request):
        if request.url.path == "/workers":
            return httpx.Response(200, json={"workers": [{"url": "http://router"}]})
        if request.url.path == "/abort_request":
            self.aborted = True
            return httpx.Response(200, json={})
        if request.url.path == "/v1/loads":
            return httpx.Response(200, json={"loads": [{"num_reqs": self.now}]})
        self.now, self.calls = self.now + 1, self.calls + 1
        self.most = max(self.most, self.now)
        self.begun.set()
        asked = json.loads(await request.aread())
        body = {"prompt": asked["input_ids"], "max_tokens": 5}
        answer = (await self.engine.post("/v1/completions", json=body)).json()
        while self.slow and not self.aborted:
            await asyncio.sleep(0.01)
        self.now -= 1
        meta = {
            "finish_reason": {"type": "abort" if self.aborted else "stop"},
            "prompt_tokens": answer["usage"]["prompt_tokens"],
            "completion_tokens": 5,
            "cached_tokens": 0,
            "output_token_logprobs": [[0.0, ord("a"), None]] * 5,
        }
        return httpx.Response(200, json={"text": "aaaaa", "meta_info": meta})

    slow = False


@pytest.fixture
def hooked(page, monkeypatch):
    """`hooked(gov)`: the hook of the page; slime's state is new."""
    monkeypatch.setattr(sglang_rollout, "load_tokenizer", lambda *a, **o: Letters())
    monkeypatch.setattr(sglang_rollout, "load_processor", lambda *a, **o: None)
    monkeypatch.setattr(sglang_rollout.SingletonMeta, "_instances", {})
    monkeypatch.setattr(http_utils, "_http_client", None)
    sglang_rollout.load_function.cache_clear()
    return lambda gov: page("slime", gov, (sglang_rollout, "post"))


def group(number):
    """Two samples of one prompt; slime names them when it begins them."""
    return [
        Sample(group_index=number, index=2 * number + n, prompt="Find it." * 20, reward=1.0)
        for n in range(2)
    ]


def params():
    return {"max_new_tokens": 50}


async def routed(server):
    router = Router(server.url)
    http_utils._http_client = httpx.AsyncClient(transport=router)
    return router


async def closed(router):
    await http_utils._http_client.aclose()
    await router.engine.aclose()


def test_samples_are_agents_and_their_calls_steps(server, hooked, watch):
    async def main():
        router = await routed(server)
        groups = [group(number) for number in range(3)]
        begun = (sglang_rollout.generate_and_rm_group(ARGS, one, params()) for one in groups)
        done = await asyncio.gather(*begun)
        await closed(router)
        return [sample for one in done for sample in one], router

    with ca.Governor(limit=2, ungoverned="error") as gov:
        hooked(gov)
        seen = watch(gov)
        samples, router = asyncio.run(main())
        assert_idle(gov)
    assert {sample.status for sample in samples} == {Sample.Status.COMPLETED}
    assert sorted(seen.arrived) == sorted(sample.session_id for sample in samples)
    assert [used.prompt_tokens for used in seen.used] == [160] * 6
    assert router.most == 2


def test_a_sample_that_is_tried_again_keeps_its_name(server, hooked, watch):
    """A partial rollout: the sample goes back to slime's buffer and comes with the next rollout."""

    async def main():
        router = await routed(server)
        router.aborted = True
        samples = await sglang_rollout.generate_and_rm_group(ARGS, group(0), params())
        assert {sample.status for sample in samples} == {Sample.Status.ABORTED}
        router.aborted = False
        samples = await sglang_rollout.generate_and_rm_group(ARGS, samples, params())
        assert {sample.status for sample in samples} == {Sample.Status.COMPLETED}
        await closed(router)
        return samples

    with ca.Governor(limit=2) as gov:
        hooked(gov)
        seen = watch(gov)
        samples = asyncio.run(main())
        assert_idle(gov)
    assert sorted(seen.arrived) == sorted(2 * [sample.session_id for sample in samples])
    assert {sample.response_length for sample in samples} == {10}


def test_samples_that_wait_when_slime_aborts_end_without_a_call(server, hooked):
    """Or its abort would wait until each of them has been served in full."""

    async def main():
        router = await routed(server)
        router.slow = True
        state = sglang_rollout.GenerateState(ARGS)
        state.submit_generate_tasks([group(number) for number in range(3)])
        await router.begun.wait()
        returned = await sglang_rollout.abort(ARGS, rollout_id=1)
        await closed(router)
        return [sample for one in returned for sample in one], router

    with ca.Governor(limit=1) as gov:
        hooked(gov)
        samples, router = asyncio.run(main())
        assert_idle(gov)
    assert len(samples) == 6
    assert {sample.status for sample in samples} == {Sample.Status.ABORTED}
    assert router.calls == 1


def test_samples_that_are_cancelled_leave(server, hooked):
    async def main():
        router = await routed(server)
        router.slow = True
        task = asyncio.ensure_future(sglang_rollout.generate_and_rm_group(ARGS, group(0), params()))
        await router.begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await closed(router)

    with ca.Governor(limit=1) as gov:
        hooked(gov)
        asyncio.run(main())
        assert_idle(gov)
