"""What a governed stream passes on, however its bytes are cut."""

import pytest

from concur_agents.adapters.answers import Answer

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


def test_a_long_event_is_searched_once_and_not_once_for_each_chunk(monkeypatch):
    """16 MB in one event took 14 s: each chunk searched all that had come before it."""
    searched = []
    answers = Answer.feed.__globals__
    real = answers["_after_last_event"]
    monkeypatch.setitem(
        answers,
        "_after_last_event",
        lambda text, end: searched.append(len(text)) or real(text, end),
    )
    text = b"data: " + b"x" * 1_000_000 + b"\n\n"
    assert passed(text, 1_000)[0] == text
    assert sum(searched) < 3 * len(text)
