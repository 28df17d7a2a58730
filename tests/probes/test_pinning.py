"""The rank header is believed once the counters of the ranks have shown that it pins."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("uvicorn")

from concur_agents.core import Reading
from concur_agents.governor import Governor
from concur_agents.probes.doctor import diagnose
from concur_agents.probes.http import Http, HttpProbe, HttpResponse
from concur_agents.probes.page import PageReading
from concur_agents.probes.pinning import RANK_HEADER, PinProof, prove_pinning
from concur_agents.sim.server import EmbeddedServer


@contextmanager
def serving(**options: Any) -> Iterator[EmbeddedServer]:
    options = {"time_scale": 1000, "engines": 2, **options}
    with EmbeddedServer("h100-qwen3-8b", **options) as server:
        yield server


def prove(server: EmbeddedServer, **options: Any) -> PinProof:
    with Http(server.url, timeout_s=10.0) as http, HttpProbe(server.url) as probe:
        return prove_pinning(http, probe, **{"patience_s": 0.3, **options})


@pytest.mark.parametrize("engines", [2, 4])
@pytest.mark.parametrize("metrics", ["vllm", "sglang"])
def test_a_header_that_is_honoured_is_proved(metrics: str, engines: int) -> None:
    with serving(metrics=metrics, engines=engines) as server:
        proof = prove(server)
    assert (proof.verdict, proof.ranks, proof.works) == ("pinned", engines, True)
    assert server.stats.calls == 4


def test_sglang_may_take_the_rank_in_the_body_alone() -> None:
    with serving(metrics="sglang", rank_header="body") as server:
        proof = prove(server)
    assert (proof.verdict, proof.by_body) == ("pinned", True)
    assert "routed_dp_rank in the body" in proof.text
    with serving(rank_header="body") as server:
        assert prove(server).verdict == "elsewhere", "vLLM has no such field"


def test_a_header_that_is_ignored_is_noticed() -> None:
    with serving(rank_header="ignore") as server:
        proof = prove(server)
    assert proof.verdict == "elsewhere"
    assert "rank 1 were served by rank 0" in proof.text
    assert not proof.works


def test_a_header_that_is_refused_is_noticed() -> None:
    with serving(rank_header="refuse") as server:
        proof = prove(server)
    assert proof.verdict == "refused"
    assert "Rank 1 is refused as out of range" in proof.text


@pytest.mark.parametrize(
    ("engines", "options", "why"),
    [
        (1, {}, "1 KV pools"),
        (2, {"ranks": 4}, "not one for each of 4 ranks"),
        (2, {"model": "another"}, "answered HTTP 404"),
    ],
)
def test_what_cannot_be_proved_is_unknown(engines: int, options: dict[str, Any], why: str) -> None:
    with serving(engines=engines) as server:
        proof = prove(server, **options)
    assert proof.verdict == "unknown"
    assert why in proof.text


def test_an_engine_out_of_reach_is_unknown() -> None:
    with Http("http://127.0.0.1:9") as http, HttpProbe("http://127.0.0.1:9") as probe:
        proof = prove_pinning(http, probe)
    assert proof.verdict == "unknown"
    assert "nothing answers" in proof.text


def test_a_governor_proves_it_for_each_address(caplog: pytest.LogCaptureFixture) -> None:
    with serving() as good, serving(rank_header="ignore") as bad:
        with Governor([good.url, bad.url], ranks=2) as gov:
            proofs = gov.check_pinning()
            assert list(gov.snapshot().pools) == [f"{good.url}#0", f"{good.url}#1", bad.url]
        assert {url: proof.verdict for url, proof in proofs.items()} == {
            good.url: "pinned",
            bad.url: "elsewhere",
        }
        (said,) = [said for said in caplog.messages if "pinned" in said]
        assert said.startswith(bad.url)
        with Governor([good.url, bad.url], ranks=1) as gov:
            assert gov.check_pinning() == {}


def test_a_governor_finds_the_ranks_of_its_page() -> None:
    with serving(engines=3) as server:
        with Governor(server.url) as gov:
            assert gov.check_pinning()[server.url].works
            assert list(gov.addresses) == [f"{server.url}#{rank}" for rank in range(3)]
            assert gov.check_pinning()[server.url].ranks == 3, "it can be asked for again"
        with Governor(server.url, limit=8) as gov:
            assert gov.check_pinning()[server.url].works
            assert len(gov.addresses) == 3
    with serving(engines=1) as server, Governor(server.url) as gov:
        assert gov.check_pinning() == {}
        assert gov.addresses == {}


class Passing:
    """Stands for the page and the calls of an engine whose other callers are busy."""

    def __init__(self, others: list[int], *, is_pinned: bool) -> None:
        self.others, self.is_pinned = iter(others), is_pinned
        self.totals, self.turn = [0.0, 0.0], 0

    def read_page(self) -> PageReading:
        readings = {
            str(rank): Reading(at_s=0.0, query_tokens_total=total)
            for rank, total in enumerate(self.totals)
        }
        return PageReading(engine="vllm", reading=readings["0"], readings=readings)

    def get(self, path: str) -> HttpResponse:
        return HttpResponse(200, '{"data": [{"id": "m"}]}', {})

    def post(self, path: str, body: object, *, headers: Mapping[str, str]) -> HttpResponse:
        asked = int(headers[RANK_HEADER])
        self.totals[asked if self.is_pinned else self.turn % 2] += 10
        self.turn += 1
        self.totals[1 - asked] += next(self.others, 0)
        usage = '{"usage": {"prompt_tokens": 10, "completion_tokens": 1}}'
        return HttpResponse(200, usage, {})


@pytest.mark.parametrize(
    ("others", "verdict"), [([500], "pinned"), ([0, 0, 500, 0, 0, 0], "pinned")]
)
def test_calls_of_others_make_it_try_again(others: list[int], verdict: str) -> None:
    """They are counted on the other rank, and could have been ours."""
    engine: Any = Passing(others, is_pinned=True)
    assert prove_pinning(engine, engine, patience_s=0.0).verdict == verdict


def test_calls_of_others_that_do_not_end_leave_it_open() -> None:
    engine: Any = Passing([500] * 99, is_pinned=True)
    proof = prove_pinning(engine, engine, patience_s=0.0)
    assert proof.verdict == "unknown"
    assert "other calls" in proof.text
    engine = Passing([], is_pinned=False)
    assert prove_pinning(engine, engine, patience_s=0.0).verdict == "elsewhere"


def test_the_doctor_says_whether_each_pool_can_be_governed_by_itself() -> None:
    with serving() as server:
        diagnosis = diagnose(server.url, patience_s=0.3)
    assert diagnosis.pinning is not None
    assert diagnosis.pinning.works
    assert any("Governor(url, ranks=2)" in finding.text for finding in diagnosis.findings)
    with serving(engines=1) as server:
        assert diagnose(server.url, patience_s=0.3).pinning is None
