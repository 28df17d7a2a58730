"""`concur doctor` against small servers that answer as engines do, well and badly set up."""

from __future__ import annotations

import json
import math
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import pytest

from concur_agents._version import __version__
from concur_agents.errors import ConfigError
from concur_agents.probes import SIGNALS
from concur_agents.probes.diagnosis import MEANINGS, Diagnosis
from concur_agents.probes.doctor import diagnose
from concur_agents.probes.replay import load_page
from concur_agents.sim.profile import load_profile
from concur_agents.sim.server import EmbeddedServer

PAGES = Path(__file__).parents[1] / "fixtures" / "metrics"
VLLM = load_page(PAGES / "vllm-0.32.0-cpu-after-boot.prom.gz")
SGLANG = load_page(PAGES / "sglang-0.5.23-cpu-after-boot.prom.gz")
SGLANG_LOADS = load_page(PAGES / "sglang-0.5.23-cpu-v1-loads-boot.json")
FRONTEND = load_page(PAGES / "dynamo-1.6.1-frontend-after.prom.gz")
VLLM_MODELS = (PAGES / "vllm-0.32.0-v1-models.json").read_text("utf-8")
SGLANG_MODELS = (PAGES / "sglang-0.5.23-cpu-v1-models.json").read_text("utf-8")


@dataclass
class Engine:
    """A server of fixed pages that remembers the prompts it was sent."""

    pages: Mapping[str, str] = field(default_factory=dict)
    status: Mapping[str, int] = field(default_factory=dict)
    tells_cached: bool = True
    caches: bool = True
    chat: bool = True
    key: str | None = None
    moving_counters: bool = True
    prompts: list[str] = field(default_factory=list)
    cached_total: int = 0

    def get(self, path: str) -> tuple[int, str]:
        if path not in self.pages:
            return 404, '{"detail":"Not Found"}'
        page = self.pages[path]
        if path == "/metrics" and self.moving_counters:
            page = page.replace(
                'vllm:prompt_tokens_cached_total{engine="0",model_name="tiny"} 0.0',
                f'vllm:prompt_tokens_cached_total{{engine="0",model_name="tiny"}} '
                f"{self.cached_total}.0",
            )
        return self.status.get(path, 200), page

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, str]:
        if path in self.status:
            return self.status[path], '{"error": "broken on purpose"}'
        if path == "/v1/chat/completions" and self.chat:
            prompt = body["messages"][0]["content"]
        elif path == "/v1/completions":
            prompt = body["prompt"]
        else:
            return 400, '{"error": "no chat template"}'
        assert body["max_tokens"] == 1
        tokens = len(prompt.split())
        cached = tokens // 32 * 32 if self.caches and prompt in self.prompts else 0
        self.prompts.append(prompt)
        self.cached_total += cached
        details = {"cached_tokens": cached} if self.tells_cached else None
        usage = {"prompt_tokens": tokens, "completion_tokens": 1, "prompt_tokens_details": details}
        return 200, json.dumps({"choices": [], "usage": usage})


@contextmanager
def serving(engine: Engine) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def answer(self, status: int, text: str) -> None:
            if engine.key and self.headers.get("authorization") != f"Bearer {engine.key}":
                status, text = 401, '{"error": "no key"}'
            content = text.encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            self.answer(*engine.get(self.path))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            self.answer(*engine.post(self.path, json.loads(body)))

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def vllm(**changes: Any) -> Engine:
    version = '{"version": "0.32.0"}'
    pages = {"/metrics": VLLM, "/v1/models": VLLM_MODELS, "/version": version}
    return Engine(pages=pages | changes.pop("pages", {}), **changes)


def sglang(info: Mapping[str, Any], **changes: Any) -> Engine:
    about = json.dumps({"version": "0.5.23", "decode_log_interval": 10} | dict(info))
    pages = {"/metrics": SGLANG, "/v1/models": SGLANG_MODELS, "/server_info": about}
    return Engine(pages=pages, moving_counters=False, **changes)


def examine(engine: Engine, **options: Any) -> Diagnosis:
    with serving(engine) as url:
        return diagnose(url, **{"patience_s": 0.0, **options})


def texts(diagnosis: Diagnosis, level: str) -> str:
    return "\n".join(f.text for f in diagnosis.findings if f.level == level)


# -- well set up -----------------------------------------------------------------------------


def test_a_vllm_that_reports_everything_is_good() -> None:
    found = examine(vllm())
    assert (found.verdict, found.exit_code, found.flags) == ("good", 0, ())
    assert (found.engine, found.version, found.model) == ("vllm", "0.32.0", "tiny")
    assert (found.capacity_tokens, found.block_size, found.pools) == (9600, 32, 1)
    assert found.max_model_len == 4096
    assert found.prefix_caching is True


def test_cached_tokens_are_proven_by_sending_one_fresh_prompt_twice() -> None:
    engine = vllm()
    proof = examine(engine).proof
    assert len(engine.prompts) == 2
    assert len(set(engine.prompts)) == 1
    assert proof is not None
    assert proof.works
    assert proof.first_cached_tokens == 0
    assert 0 < (proof.second_cached_tokens or 0) <= proof.prompt_tokens
    assert proof.hit_counter_rose_tokens == proof.second_cached_tokens


def test_two_examinations_never_send_the_same_prompt() -> None:
    """A prompt cached by the last visit would prove nothing about its first request."""
    engine = vllm()
    examine(engine)
    examine(engine)
    assert len(set(engine.prompts)) == 2


def test_the_prompt_spans_several_blocks_and_fits_the_context() -> None:
    proof = examine(vllm()).proof
    assert proof is not None
    assert 2 * 32 <= proof.prompt_tokens <= 4096 // 2


def test_a_model_without_a_chat_template_is_asked_as_plain_text() -> None:
    found = examine(vllm(chat=False))
    assert found.verdict == "good"
    assert found.proof is not None and found.proof.works  # noqa: PT018


def test_nothing_is_sent_without_leave() -> None:
    engine = vllm()
    found = examine(engine, send=False)
    assert engine.prompts == []
    assert found.proof is None
    assert found.verdict == "good"
    assert "were not tested" in texts(found, "info")


def test_a_well_set_up_sglang_is_good() -> None:
    found = examine(sglang({"enable_cache_report": True}, tells_cached=True), patience_s=0.0)
    # its counters stand still on a recorded page, which is said
    assert texts(found, "warning").count("\n") == 0
    assert "hit counter did not rise" in texts(found, "warning")
    assert (found.engine, found.version, found.max_model_len) == ("sglang", "0.5.23", 4096)


def test_the_code_to_begin_with_uses_the_address_given() -> None:
    with serving(vllm()) as url:
        found = diagnose(url + "/v1/", patience_s=0.0)
    assert found.code == (
        "import concur_agents as ca",
        f'gov = ca.Governor("{url}")',
        "async with gov.agent(task_id) as agent: ...",
    )


@pytest.mark.parametrize("words", ["vllm", "sglang"])
def test_the_embedded_engine_is_good_in_both_its_tongues(words: Literal["vllm", "sglang"]) -> None:
    pytest.importorskip("uvicorn")
    from concur_agents.sim.server import EmbeddedServer

    with EmbeddedServer("vllm-cpu-tiny", metrics=words, time_scale=20) as server:
        found = diagnose(server.url)
    assert found.findings == ()
    assert (found.engine, found.model, found.verdict) == (words, "tiny", "good")
    assert (found.capacity_tokens, found.block_size, found.max_model_len) == (9600, 32, 4096)
    # proven by the second request, also where the page does not say it
    assert found.prefix_caching is True
    assert found.proof is not None
    assert found.proof.second_cached_tokens == found.proof.prompt_tokens // 32 * 32
    assert found.proof.hit_counter_rose_tokens == found.proof.second_cached_tokens
    # SGLang's counter of retractions is on the page from the first one on
    missing = {"preemptions_total"} if words == "sglang" else set()
    tier = {"host_capacity_tokens", "host_used_tokens"}  # there is none
    assert {signal.name for signal in found.signals if not signal.sources} == missing | tier


# -- flags that would help -------------------------------------------------------------------


def test_a_vllm_that_hides_cached_tokens_gets_the_flag() -> None:
    found = examine(vllm(tells_cached=False))
    assert found.flags == ("--enable-prompt-tokens-details",)
    assert (found.verdict, found.exit_code) == ("usable", 1)


def test_an_sglang_that_hides_cached_tokens_gets_the_flag() -> None:
    found = examine(sglang({}, tells_cached=False))
    assert "--enable-cache-report" in found.flags
    assert found.exit_code == 1


def test_an_sglang_without_metrics_is_read_from_its_loads_and_gets_the_flag() -> None:
    engine = sglang({})
    engine.pages = {**engine.pages, "/v1/loads": SGLANG_LOADS}
    del engine.pages["/metrics"]
    found = examine(engine)
    assert (found.engine, found.capacity_tokens) == ("sglang", 9600)
    assert found.flags == ("--enable-metrics",)
    assert "No hit counters" in texts(found, "warning")


def test_an_sglang_that_seldom_refreshes_gets_the_interval() -> None:
    found = examine(sglang({"decode_log_interval": 40}))
    assert "--decode-log-interval 10" in found.flags


@pytest.mark.parametrize("there", [True, False])
def test_whether_sglang_can_hear_which_agents_are_done(there: bool) -> None:
    found = examine(sglang({"enable_session_radix_cache": there}))
    assert ("--enable-session-radix-cache" in found.flags) is not there
    assert "evict" in " ".join(finding.text for finding in found.findings)


def test_an_sglang_without_that_flag_is_not_told_of_it() -> None:
    assert "--enable-session-radix-cache" not in examine(sglang({})).flags


def test_a_vllm_without_prefix_caching_is_not_usable() -> None:
    off = VLLM.replace('enable_prefix_caching="True"', 'enable_prefix_caching="False"')
    engine = vllm(pages={"/metrics": off})
    found = examine(engine)
    assert (found.exit_code, found.flags, found.code) == (2, ("--enable-prefix-caching",), ())
    assert engine.prompts == []


def test_an_sglang_without_its_radix_cache_is_not_usable() -> None:
    found = examine(sglang({"disable_radix_cache": True}))
    assert found.prefix_caching is False
    assert "start it without --disable-radix-cache" in texts(found, "error")


def test_a_prompt_that_is_never_cached_is_a_warning_with_the_reasons_it_may_have() -> None:
    found = examine(vllm(caches=False))
    assert found.verdict == "usable"
    assert "does a router send each request elsewhere" in texts(found, "warning")


def test_counters_that_stand_still_are_noticed() -> None:
    """A load balancer may send the metrics request to another replica than the completions."""
    found = examine(vllm(moving_counters=False))
    assert "may belong to another replica" in texts(found, "warning")


def test_a_dynamo_frontend_is_known_and_its_trap_is_named() -> None:
    found = examine(vllm(pages={"/metrics": FRONTEND}, moving_counters=False))
    assert (found.engine, found.capacity_tokens) == ("dynamo", 9600)
    assert "KV pool of one worker" in texts(found, "info")


def test_several_pools_ask_for_session_affinity() -> None:
    second = "\n".join(
        line.replace('engine="0"', 'engine="1"') for line in VLLM.split("\n") if "vllm:" in line
    )
    found = examine(vllm(pages={"/metrics": VLLM + second}, moving_counters=False))
    assert (found.pools, found.capacity_tokens, found.smallest_capacity_tokens) == (2, 19200, 9600)
    assert "session affinity" in texts(found, "info")
    assert "ranks=2 makes each a pool of its own" in texts(found, "info")


def test_pools_of_several_models_cannot_be_told_apart_by_rank() -> None:
    second = "\n".join(
        line.replace('model_name="', 'model_name="other-')
        for line in VLLM.split("\n")
        if "vllm:" in line
    )
    found = examine(vllm(pages={"/metrics": VLLM + second}, moving_counters=False))
    assert found.pools == 2
    assert "so ranks= cannot tell them apart" in texts(found, "info")
    assert "other-" in texts(found, "info")


def test_a_pool_for_less_than_two_full_contexts_is_named() -> None:
    models = VLLM_MODELS.replace('"max_model_len":4096', '"max_model_len":8192')
    assert "fewer than two full contexts" in texts(examine(vllm(pages={"/v1/models": models})),
                                                   "info")  # fmt: skip


# -- not what it should be -------------------------------------------------------------------


def test_a_port_without_a_listener_is_not_usable() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    found = diagnose(url)
    assert found.exit_code == 2
    assert "is the server running" in texts(found, "error")
    assert found.code == ()


def test_a_web_page_is_not_taken_for_an_engine() -> None:
    html = "<!DOCTYPE html><html><title>login</title></html>"
    found = examine(Engine(pages={"/metrics": html, "/v1/models": html, "/version": html}))
    assert "got HTML instead of metrics" in texts(found, "warning")
    assert "without a list of models" in texts(found, "warning")
    assert "this is not a serving engine" in texts(found, "error")
    assert (found.engine, found.exit_code, found.code) == (None, 2, ())


def test_a_hosted_api_without_metrics_is_usable_by_its_cached_tokens() -> None:
    found = examine(Engine(pages={"/v1/models": '{"data": [{"id": "big"}]}'}))
    assert (found.verdict, found.engine, found.model) == ("usable", None, "big")
    assert found.code[1].startswith('gov = ca.Governor(law="working_set")')


def test_an_endpoint_without_any_signal_is_offered_a_fixed_cap() -> None:
    found = examine(Engine(pages={"/v1/models": '{"data": [{"id": "m"}]}'}, tells_cached=False))
    assert found.verdict == "usable"
    assert "vLLM needs --enable-prompt-tokens-details" in texts(found, "warning")
    assert found.code[1].startswith("gov = ca.Governor(limit=8)")


def test_a_worker_port_without_the_api_is_usable_for_its_metrics() -> None:
    found = examine(Engine(pages={"/metrics": VLLM}))
    assert found.verdict == "usable"
    assert "A worker's metrics port has none" in texts(found, "warning")


def test_a_missing_key_is_reported_and_a_given_one_is_used() -> None:
    assert "give --api-key" in texts(examine(vllm(key="k-1")), "error")
    found = examine(vllm(key="k-1"), api_key="k-1")
    assert found.verdict == "good"
    assert ", api_key=key)" in found.code[1], "the code to begin with needs it, too"
    assert "k-1" not in str(found.as_dict())


def test_a_model_that_is_not_served_is_refused_with_those_that_are() -> None:
    found = examine(vllm(), model="huge")
    assert found.exit_code == 2
    assert "'huge' is not served; served are tiny" in texts(found, "error")


@pytest.mark.parametrize(("status", "answer"), [(500, "HTTP 500"), (429, "HTTP 429")])
def test_completions_that_fail_make_it_not_usable(status: int, answer: str) -> None:
    found = examine(vllm(status={"/v1/chat/completions": status}))
    assert found.exit_code == 2
    assert answer in texts(found, "error")


def test_what_is_no_address_is_an_error_of_the_caller() -> None:
    with pytest.raises(ConfigError, match="url must look like"):
        diagnose("localhost:8000")


# -- shown -----------------------------------------------------------------------------------


def test_every_signal_has_a_meaning_in_words() -> None:
    assert tuple(MEANINGS) == SIGNALS


def test_the_json_is_the_diagnosis_with_stable_keys() -> None:
    shown = json.loads(json.dumps(examine(vllm()).as_dict()))
    assert set(shown) == {
        "url", "engine", "backend", "version", "model", "models", "max_model_len",
        "capacity_tokens", "smallest_capacity_tokens", "pools", "block_size", "prefix_caching",
        "signals", "proof", "pinning", "findings", "flags", "code", "verdict", "exit_code",
    }  # fmt: skip
    assert [signal["name"] for signal in shown["signals"]] == list(SIGNALS)


def test_the_page_for_people_says_it_in_words() -> None:
    pytest.importorskip("rich")
    from rich.console import Console

    from concur_agents.cli.doctor import show

    console = Console(file=StringIO(), width=100)
    show(examine(vllm(tells_cached=False)), console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "vllm 0.32.0" in shown
    assert "9,600 tokens, blocks of 32" in shown
    assert "add --enable-prompt-tokens-details" in shown
    assert "Verdict: usable" in shown
    assert "gov = ca.Governor(" in shown


@pytest.mark.parametrize("options", [[], ["--json"], ["--no-send"]])
def test_the_command_leaves_with_the_exit_code_of_its_verdict(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("typer")
    from concur_agents.cli.app import main

    with serving(vllm(tells_cached=False)) as url, pytest.raises(SystemExit) as left:
        main(["doctor", url, *options])
    assert left.value.code == (0 if options == ["--no-send"] else 1)
    out = capsys.readouterr().out
    if options == ["--json"]:
        assert json.loads(out)["flags"] == ["--enable-prompt-tokens-details"]
    else:
        assert "Verdict:" in out


def test_the_simulated_engine_with_a_small_pool_is_not_taken_for_a_hybrid_model() -> None:
    """It serves no longer contexts than its pool holds, as vLLM does not, and now says so."""
    small = load_profile("h100-qwen3-8b").replace(kv_blocks=1000)
    with EmbeddedServer(small, time_scale=math.inf) as server:
        found = diagnose(server.url, patience_s=0.0)
    assert found.max_model_len == found.capacity_tokens == 16_000
    assert (found.verdict, [each.level for each in found.findings]) == ("good", ["info"])
    assert found.version == f"{__version__} (simulated)", "or it is taken for an ancient vLLM"


def test_calls_that_take_turns_among_ranks_are_not_taken_for_a_cache_that_is_off() -> None:
    """The two calls with the same prompt went to two ranks, and nothing was cached."""
    with EmbeddedServer("h100-qwen3-8b", time_scale=math.inf, engines=4) as server:
        found = diagnose(server.url, patience_s=1.0)
    assert (found.verdict, texts(found, "warning")) == ("good", "")
    assert found.proof is not None
    assert found.proof.works
    assert found.pinning is not None
    assert found.pinning.works


def test_a_vllm_that_serves_more_than_its_page_reports_counts_in_another_unit() -> None:
    models = VLLM_MODELS.replace('"max_model_len":4096', '"max_model_len":131072')
    found = texts(examine(vllm(pages={"/v1/models": models})), "warning")
    assert "9,600 tokens" in found
    assert "131,072" in found


def test_several_engines_are_compared_in_a_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from concur_agents.cli.app import main

    monkeypatch.setenv("COLUMNS", "120")  # because a narrow terminal folds cells
    other = vllm(tells_cached=False)
    with serving(vllm()) as one, serving(other) as two, pytest.raises(SystemExit) as left:
        main(["doctor", one, two])
    assert left.value.code == 1, "that of the worst"
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines() if line.startswith("http")]
    assert [row[0] for row in rows] == [one, two]
    assert [row[1] for row in rows] == ["vllm", "vllm"]
    assert [row[-1] for row in rows] == ["good", "usable"]
    assert f"({two})" in " ".join(out.split()), "a finding says where"
    assert f'gov = ca.Governor(["{one}", "{two}"])' in out


@pytest.mark.parametrize("columns", [60, 80])
def test_a_narrow_terminal_folds_addresses_and_models_and_never_cuts_a_verdict(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 80 columns the table ended in "verdi", "usabl" and "not u"."""
    from concur_agents.cli.app import main

    monkeypatch.setenv("COLUMNS", str(columns))
    models = VLLM_MODELS.replace('"id":"tiny"', '"id":"Qwen/Qwen3-Coder-30B-A3B-Instruct"')
    with serving(vllm(pages={"/v1/models": models})) as one, pytest.raises(SystemExit):
        main(["doctor", one, "http://127.0.0.1:1"])
    table = capsys.readouterr().out.partition("\n\n")[0]
    assert [word for word in ("verdict", "usable", "not usable") if word not in table] == []
    assert "…" not in table


def test_of_several_engines_json_is_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    from concur_agents.cli.app import main

    with serving(vllm()) as one, serving(sglang({})) as two, pytest.raises(SystemExit):
        main(["doctor", one, two, "--json", "--no-send"])
    found = json.loads(capsys.readouterr().out)
    assert [(each["url"], each["engine"]) for each in found] == [(one, "vllm"), (two, "sglang")]
