"""`concur serve-sim`, started and stopped as a user does."""

import json
import signal
import subprocess
import sys

import openai

from concur_agents.probes import HttpProbe

CODE = "from concur_agents.cli.app import main; main()"


def test_it_serves_an_engine_of_the_size_asked_for_and_ends_on_control_c() -> None:
    words = ["serve-sim", "--port", "0", "--kv-blocks", "500", "--time-scale", "inf", "--json"]
    with subprocess.Popen(
        [sys.executable, "-c", CODE, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            facts = json.loads(process.stdout.readline())
            with HttpProbe(facts["url"], timeout_s=30) as probe:
                reading = probe.read()
            with openai.OpenAI(base_url=facts["url"] + "/v1", api_key="none") as client:
                (served,) = client.models.list().data
                reply = client.completions.create(
                    model=facts["model"], prompt="a b c", max_tokens=3
                )
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()  # or a failure would wait for it for ever
    assert facts["capacity_tokens"] == reading.capacity_tokens == 500 * 16
    assert served.max_model_len == 500 * 16, "doctor takes a smaller pool for a hybrid model's"
    assert facts["time_scale"] is None, "infinity is not JSON"
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 3
    assert (process.returncode, errors) == (0, "")


def test_in_words_it_says_where_it_listens_and_how_it_ends() -> None:
    """Found here: the function that said so called itself, and only `--json` worked."""
    words = ["serve-sim", "--port", "0", "--kv-blocks", "500", "--time-scale", "inf"]
    with subprocess.Popen(
        [sys.executable, "-c", CODE, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert "http://127.0.0.1:" in line
    assert "8,000 tokens of KV cache" in line
    assert "Ctrl-C ends it." in line
    assert (process.returncode, errors) == (0, "")


def test_several_engines_behind_one_port_have_a_pool_each() -> None:
    words = ["serve-sim", "--port", "0", "--kv-blocks", "500", "--engines", "4", "--worker-header"]
    with subprocess.Popen(
        [sys.executable, "-c", CODE, *words, "--time-scale", "inf", "--json"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            facts = json.loads(process.stdout.readline())
            with HttpProbe(facts["url"], timeout_s=30) as probe:
                reading = probe.read()
            with openai.OpenAI(base_url=facts["url"] + "/v1", api_key="none") as client:
                raw = client.completions.with_raw_response.create(
                    model=facts["model"],
                    prompt="a b c",
                    max_tokens=3,
                    extra_headers={"X-data-parallel-rank": "3"},
                )
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
        finally:
            process.kill()
    assert (facts["engines"], facts["capacity_tokens"]) == (4, 500 * 16)
    assert reading.capacity_tokens == 4 * 500 * 16
    assert raw.headers["x-smg-routed-worker-id"] == f"{facts['url']}@3"


def test_replicas_listen_on_ports_of_their_own() -> None:
    """The set-up of `Governor([url, url])`, without a GPU."""
    words = ["serve-sim", "--port", "0", "--kv-blocks", "500", "--replicas", "3"]
    with subprocess.Popen(
        [sys.executable, "-c", CODE, *words, "--time-scale", "inf", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            facts = json.loads(process.stdout.readline())
            with openai.OpenAI(base_url=facts["urls"][1] + "/v1", api_key="none") as client:
                client.completions.create(model=facts["model"], prompt="a b c", max_tokens=3)
            served = []
            for url in facts["urls"]:
                with HttpProbe(url, timeout_s=30) as probe:
                    reading = probe.read()
                    assert reading.capacity_tokens == 500 * 16
                    served.append(bool(reading.query_tokens_total))
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert facts["url"] == facts["urls"][0]
    assert len(set(facts["urls"])) == 3
    assert served == [False, True, False]
    assert (process.returncode, errors) == (0, "")
