"""Text without secrets."""

import pytest

from concur_agents.recording import (
    scrub,
)


@pytest.mark.parametrize(
    ("said", "written"),
    [
        ("http://u:p@h/x?key=1 fails", "http://h/x?... fails"),
        ("Authorization: Bearer abc.def", "Authorization: ***"),
        ("api_key='sk-12345'", "***'"),
        ("is it there?", "is it there?"),
        ("Authorization: Basic dXNlcjpwYXNz", "Authorization: ***"),
        ("(b'authorization', b'Basic dXNlcjpwYXNz')", "(b'authorization', b'***')"),
        ("{'x-goog-api-key': 'abcd1234'}", "{'x-goog-***'}"),
        ("aws_secret_access_key=wJalrX/K7MDENG+bPx", "aws_secret_access_key=***"),
        ("client_secret: AbC123dEf456", "client_secret: ***"),
        ('{"refresh_token": "abcd1234"}', '{"refresh_token": "***"}'),
        ("SERVICE_KEY=abcd1234", "SERVICE_KEY=***"),
        ("Cookie: session=abcdef; other=ghi", "Cookie: ***"),
        ("{'set-cookie': 'session=abcdef; Path=/'}", "{'set-cookie': '***'}"),
        ("X-Amz-Signature=0123456789abcdef", "X-Amz-Signature=***"),
        ("the secret key is abcd1234", "the secret key is ***"),
        ("gsk_abcdefghijklmnop is wrong", "*** is wrong"),
        ("github_pat_11ABCDEFG0abcd_efgh", "***"),
        ("xoxb-123456789012-abcdef", "***"),
        ("sk_live_abcdefgh1234", "***"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.dozjgNryP4", "***"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY----- x", "*** x"),
        ("postgresql://me:secret@db/x fails", "postgresql://db/x fails"),
        # What only looks like one.
        ("KeyError: 'instance_id'", "KeyError: 'instance_id'"),
        ("{'key': 'issue-17'}", "{'key': 'issue-17'}"),
        ("max_tokens=4096, prompt tokens: 1234", "max_tokens=4096, prompt tokens: 1234"),
        ("Unexpected token: '<'", "Unexpected token: '<'"),
        ("tokenizer: qwen3", "tokenizer: qwen3"),
        ("needs a key (HTTP 401): give api_key=", "needs a key (HTTP 401): give api_key="),
        ("x" * 400, "x" * 300 + "..."),
    ],
)
def test_messages_are_written_without_what_may_be_secret(said, written):
    assert scrub(said) == written


def test_megabytes_of_a_message_are_read_at_once():
    """A message may quote a whole answer; only what can be shown of it is looked at."""
    for text in ("key ", "token:", "cookie=", "-----BEGIN PRIVATE KEY-----", "a"):
        assert len(scrub(text * 1_000_000)) <= 303
