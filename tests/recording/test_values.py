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
        ("x" * 400, "x" * 300 + "..."),
    ],
)
def test_messages_are_written_without_what_may_be_secret(said, written):
    assert scrub(said) == written
