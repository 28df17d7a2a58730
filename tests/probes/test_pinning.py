"""The rank header is believed once the counters of the ranks have shown that it pins."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("uvicorn")

from concur_agents.governor import Governor
from concur_agents.probes.doctor import diagnose
from concur_agents.probes.http import Http, HttpProbe
from concur_agents.probes.pinning import PinProof, prove_pinning
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
        assert {url: proof.verdict for url, proof in proofs.items()} == {
            good.url: "pinned",
            bad.url: "elsewhere",
        }
        (said,) = [said for said in caplog.messages if "pinned" in said]
        assert said.startswith(bad.url)
        with Governor([good.url, bad.url]) as gov:
            assert gov.check_pinning() == {}


def test_the_doctor_says_whether_each_pool_can_be_governed_by_itself() -> None:
    with serving() as server:
        diagnosis = diagnose(server.url, patience_s=0.3)
    assert diagnosis.pinning is not None
    assert diagnosis.pinning.works
    assert any("Governor(url, ranks=2)" in finding.text for finding in diagnosis.findings)
    with serving(engines=1) as server:
        assert diagnose(server.url, patience_s=0.3).pinning is None
