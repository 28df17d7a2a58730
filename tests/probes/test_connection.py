"""Headers and certificates of a metrics page, and what is said where they are wrong."""

import ssl
import subprocess
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import concur_agents as ca
from concur_agents.probes import HttpProbe
from concur_agents.probes.connection import read_headers, read_verify
from concur_agents.probes.doctor import diagnose
from concur_agents.probes.replay import load_page
from concur_agents.runtime.config import environment, governor_options, settings

PAGES = Path(__file__).parents[1] / "fixtures" / "metrics"
VLLM = load_page(PAGES / "vllm-0.32.0-cpu-sweep-cap3.prom.gz")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for 127.0.0.1 that its own key has signed, and the key."""
    folder = tmp_path_factory.mktemp("tls")
    pem, key = folder / "server.pem", folder / "server.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
         "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", pem],
        check=True, capture_output=True,
    )  # fmt: skip
    return pem, key


@contextmanager
def engine(certificate=None):
    """A metrics page, over TLS if there is a certificate; yields its URL and the headers seen."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(dict(self.headers.items()))
            self.send_response(200)
            self.send_header("content-length", str(len(VLLM.encode())))
            self.end_headers()
            self.wfile.write(VLLM.encode())

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    scheme = "http"
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        scheme = "https"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"{scheme}://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()


def test_a_self_signed_certificate_is_named_as_such_with_what_to_do(certificate):
    """It used to ask whether the server was running."""
    with engine(certificate) as (url, _), pytest.raises(ca.ProbeError) as found:
        HttpProbe(url).read()
    text = str(found.value)
    assert "certificate" in text
    assert "self-signed" in text
    assert "metrics_verify=" in text
    assert "CONCUR_METRICS_VERIFY" in text
    assert "is the server running" not in text


def test_its_file_a_context_or_false_is_enough(certificate):
    with engine(certificate) as (url, _):
        for verify in (certificate[0], str(certificate[0]), False,
                       ssl.create_default_context(cafile=str(certificate[0]))):  # fmt: skip
            assert HttpProbe(url, verify=verify).read().capacity_tokens


def test_a_governor_takes_both(certificate):
    with engine(certificate) as (url, seen):
        gov = ca.Governor(url, metrics_verify=certificate[0], metrics_headers={"X-Tenant": "a"})
        with gov:
            assert gov.check().capacity_tokens
    assert seen[0]["x-tenant"] == "a"


def test_a_diagnosis_says_the_same_and_takes_the_same(certificate):
    with engine(certificate) as (url, _):
        texts = " ".join(found.text for found in diagnose(url, send=False).findings)
        assert "certificate" in texts
        trusting = diagnose(url, send=False, verify=certificate[0])
        assert trusting.engine == "vllm"


def test_headers_by_name_or_as_text_go_with_each_request():
    with engine() as (url, seen):
        HttpProbe(url, headers={"X-Tenant": "a"}).read()
        HttpProbe(url, headers="X-Tenant=b%2Cc,X-Other=d", api_key="k").read()
    assert seen[0]["x-tenant"] == "a"
    assert (seen[1]["x-tenant"], seen[1]["x-other"]) == ("b,c", "d")
    assert seen[1]["authorization"] == "Bearer k"
    assert seen[1]["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    "headers",
    ["X-Tenant", {"X Tenant": "a"}, {"X-Tenant": "a\r\nb: c"}, {"X-Tenant": "ä"},
     {"Accept-Encoding": "gzip"}, {"X-Tenant": 5}],
)  # fmt: skip
def test_a_header_that_cannot_be_sent_is_refused_at_once(headers):
    with pytest.raises(ca.ConfigError):
        read_headers(headers)


def test_a_secret_value_is_in_no_message():
    with pytest.raises(ca.ConfigError) as found:
        read_headers({"X-Key": "geheim\n"})
    assert "geheim" not in str(found.value)


@pytest.mark.parametrize("verify", ["/no/such/file.pem", None, 5, __file__])
def test_certificates_that_cannot_be_read_are_refused_at_once(verify):
    with pytest.raises(ca.ConfigError, match="verify"):
        read_verify(verify)


def test_both_come_from_the_environment_and_go_to_a_child():
    environ = {
        "CONCUR_URL": "https://h",
        "CONCUR_METRICS_HEADERS": "X-Tenant=a",
        "CONCUR_METRICS_VERIFY": "false",
        "CONCUR_ROUTES": "/rollout/step,/b",
    }
    found = settings({}, environ)
    keywords = governor_options(found)
    assert keywords["metrics_headers"] == "X-Tenant=a"
    assert keywords["metrics_verify"] is False
    assert found["metrics_headers"].shown == "(set)"
    again = governor_options(settings({}, environment(found)))
    assert again == keywords


def test_they_need_a_url():
    with pytest.raises(ca.ConfigError, match="give the url"):
        ca.Governor(limit=1, metrics_verify=False)
