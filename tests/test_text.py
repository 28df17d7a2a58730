"""Ids and lines of text are safe wherever they go."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from concur_agents._text import escaped, printable, shown_id, wire_id

ANY = st.text(st.characters(codec=None), max_size=200)
"""Control characters and lone surrogates included."""


@given(ANY)
@example("\ud800")
@example("")
@example("x" * 100_000)
def test_an_id_on_the_wire_is_short_printable_ascii(text):
    found = wire_id(text)
    assert re.fullmatch(r"[\x21-\x7e]([\x20-\x7e]{0,62}[\x21-\x7e])?", found)
    assert wire_id(found) == found


@given(ANY, ANY)
def test_different_ids_stay_different_on_the_wire(one, other):
    assert (wire_id(one) == wire_id(other)) == (one == other)


@pytest.mark.parametrize("name", ["issue-17", "django__django-11099", "a/b#2", "What is 2 + 2?"])
def test_an_ordinary_id_stays_as_it_is(name):
    assert wire_id(name) == shown_id(name) == name


def test_another_id_keeps_a_readable_prefix():
    assert wire_id("Größe").startswith("Gro_e~")
    assert wire_id("Jürgen").startswith("Jurgen~")
    assert wire_id("x" * 100_000).startswith("x" * 40 + "~")


@pytest.mark.parametrize("text", ["SECRET plan\nin two lines", "SECRET words " * 20])
def test_nothing_of_a_prompt_is_left_in_an_id(text):
    assert re.fullmatch("text~[0-9a-f]{16}", wire_id(text))
    assert wire_id(text) == shown_id(text)


def test_people_see_a_short_id_in_their_own_script():
    assert shown_id("Größe") == "Größe"
    assert shown_id("\x1b]0;gotcha\x07") == wire_id("\x1b]0;gotcha\x07")


@given(ANY)
def test_what_is_printed_is_one_line_without_control_characters(text):
    assert printable(text).isprintable()
    assert len(printable(text, 10)) <= 13 * len(r"\U0010ffff")


def test_escapes_are_shown_instead_of_obeyed():
    assert printable("a\x1b[2Jb\r\n\x9b\u202ec\ud800") == r"a\x1b[2Jb\r\n\x9b\u202ec\ud800"
    assert escaped("two\nlines\x1b", keep="\n") == "two\nlines\\x1b"
