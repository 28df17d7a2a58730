"""What a governed stream passes on, however its bytes are cut."""

import gzip
import json
import tracemalloc
import zlib

import pytest

from concur_agents.adapters.answers import Answer, usage_of_ids, was_aborted
from concur_agents.core import Usage

DELTA = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
OURS = (
    b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":1,"total_tokens":6}}\n\n'
)
DONE = b"data: [DONE]\n\n"


def passed(text, size):
    answer = Answer(hide_usage=True)
    pieces = [answer.feed(text[at : at + size]) for at in range(0, len(text), size)]
    return b"".join([*pieces, answer.finish()]), answer.usage()


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 50, 10_000])
def test_the_answer_to_our_question_is_hidden_wherever_the_stream_is_cut(size, newline):
    text, rest = (part.replace(b"\n", newline) for part in (DELTA + OURS + DONE, DELTA + DONE))
    shown, usage = passed(text, size)
    assert shown == rest
    assert (usage.prompt_tokens, usage.completion_tokens) == (5, 1)


@pytest.mark.parametrize("size", [1, 5, 10_000])
@pytest.mark.parametrize("newline", [b"\n", b"\r"])
def test_lines_without_blank_ones_between_them_pass_as_they_come(size, newline):
    """Clients that read line by line take them; all of it was kept back up to 64 KB."""
    text, ours = (DELTA * 3).replace(b"\n\n", newline), OURS.replace(b"\n\n", newline)
    answer = Answer(hide_usage=True)
    shown = b"".join(answer.feed(text[at : at + size]) for at in range(0, len(text), size))
    # A carriage return may be half of a line's end, so the line waits for what comes next.
    assert len(shown) >= len(text) - (0 if newline == b"\n" else len(DELTA))
    assert shown + answer.feed(ours) + answer.finish() == text


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_an_event_that_has_more_than_our_line_is_not_torn(size):
    text = b": a comment\n\nid: 7\n" + OURS + b"event: x\n" + OURS + DONE
    assert passed(text, size)[0] == text


def test_a_line_passes_as_soon_as_it_has_ended():
    """The blank line after it may come much later."""
    answer = Answer(hide_usage=True)
    first = DELTA[:-1]
    assert answer.feed(first) == first
    assert answer.feed(b"\n" + DELTA[:20]) == b"\n"


def test_a_long_event_is_searched_once_and_not_once_for_each_chunk(monkeypatch):
    """16 MB in one event took 14 s: each chunk searched all that had come before it."""
    searched = []
    answers = Answer.feed.__globals__
    real = answers["_only_tells_usage"]
    monkeypatch.setitem(
        answers, "_only_tells_usage", lambda line: searched.append(len(line)) or real(line)
    )
    text = b"data: " + b"x" * 1_000_000 + b"\n\n"
    assert passed(text, 1_000)[0] == text
    assert 0 < sum(searched) <= len(text)


def test_an_event_that_never_ends_is_not_kept():
    """A server could fill the memory of the agents' process, and the user saw nothing of it."""
    answer = Answer(hide_usage=True)
    assert answer.feed(b"data: ") == b""
    given = b"data: "
    shown = b""
    for _ in range(100):
        given += b"x" * 10_000
        shown += answer.feed(b"x" * 10_000)
        assert len(given) - len(shown) < 100_000
    shown += answer.feed(b"\n")
    shown += answer.feed(b"\n" + OURS + DONE)
    assert shown + answer.finish() == given + b"\n\n" + DONE


ANSWER = {"choices": [{"text": "x" * 300_000}], "usage": {"prompt_tokens": 5}}


@pytest.mark.parametrize("size", [1, 100, 1_000_000])
@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_the_usage_of_a_zipped_answer_is_read(pack, size):
    text = pack(json.dumps(ANSWER).encode())
    answer = Answer("gzip")
    for at in range(0, len(text), size):
        assert answer.feed(text[at : at + size]) == text[at : at + size]
    assert answer.usage() == Usage(5, 0)


def test_a_bomb_passes_and_is_not_unpacked():
    """A chunk of 200 KB held 200 MB, and all of it was in memory at once."""
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join(packer.compress(bytes(1_000_000)) for _ in range(200)) + packer.flush()
    assert len(bomb) < 250_000
    answer = Answer("gzip")
    tracemalloc.start()
    assert answer.feed(bomb) == bomb
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2_000_000
    assert answer._unzipped < 70_000_000  # and the rest has cost no time
    assert answer.feed(b"more") == b"more"
    assert answer.usage() is None


@pytest.mark.parametrize(
    ("text", "aborted"),
    [
        (b'{"choices":[{"finish_reason":"abort","text":""}]}', True),  # vLLM
        (b'{"text":"a","meta_info":{"id":"7","finish_reason":{"type": "abort"}}}', True),  # SGLang
        (b'{"meta_info":{"finish_reason":{"message":"Abort in queue","type":"abort"}}}', True),
        (b'{"choices":[{"finish_reason":"stop","message":{"content":"abort"}}]}', False),
        # What a model writes is escaped, and is not the server's word.
        (json.dumps({"text": '{"finish_reason":"abort"}'}).encode(), False),
    ],
)
def test_an_answer_that_was_cut_short_is_recognised_whole_and_in_a_stream(text, aborted):
    assert was_aborted(text) is aborted
    stream = Answer()
    for piece in (b"data: ", text[:20], text[20:], b"\n\n"):
        stream.feed(piece)
    assert stream.was_aborted() is aborted


def test_token_ids_stand_in_for_a_usage_that_is_not_reported():
    """vLLM's `/inference/v1/generate` takes and gives ids, and reports no counts."""
    sent = b'{"model":"m","token_ids":[1, 2, 3],"sampling_params":{"max_tokens":8}}'
    got = b'{"request_id":"r","choices":[{"index":0,"finish_reason":"stop","token_ids":[9,8]}]}'
    assert usage_of_ids(sent, got) == Usage(3, 2)
    assert usage_of_ids(sent, b'{"choices":[{"token_ids":null}]}') is None
    assert usage_of_ids(b'{"messages":[]}', got) is None
