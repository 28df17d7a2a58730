"""Frames: what is read is what was said, and nothing else is read."""

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from concur_agents.core import Usage
from concur_agents.wire.codec import decode, encode
from concur_agents.wire.frames import Frames, Receiver, Sender
from concur_agents.wire.messages import (
    MOST_BYTES,
    Hello,
    Op,
    Ops,
    Ping,
    PoolAddress,
    Pools,
    Standing,
    WireError,
)


def test_an_op_is_read_as_types():
    op = Op("end_step", "a", 7, {"usage": (100, 10, None), "overloaded": False})
    n, message = decode(encode(Ops((op,)), 3))
    assert n == 3
    assert message == Ops((op._replace(args={"usage": Usage(100, 10), "overloaded": False}),))


def test_pools_and_hello_come_back_as_they_were():
    for message in (
        Hello(1, "s", 1, 0, 0, "t"),
        Pools((PoolAddress("p", "http://a", None, False, True),)),
        Ping(),
    ):
        assert decode(encode(message, 1)) == (1, message)


@pytest.mark.parametrize(
    "ops",
    [
        ["shout", "a", 1, {}],
        ["leave", "a", -1, {}],
        ["leave", "a", True, {}],
        ["leave", 5, 1, {}],
        ["leave", "a" * 301, 1, {}],
        ["leave", "a", 1, {"now": 5}],
        ["leave", "a", 1],
        ["begin_step", "a", 1, {"prompt_tokens": 1e300}],
        ["begin_step", "a", 1, {"prompt_tokens": -1}],
        ["begin_step", "a", 1, {"prefix": [["x", 1]] * 65}],
        ["begin_step", "a", 1, {"passed": 1}],
        ["end_step", "a", 1, {"usage": [1, 2]}],
        ["end_step", "a", 1, {"retry_after_s": "soon"}],
        ["hold", "", 1, {"name": "x", "timeout_s": 0}],
        ["_end", "a", 1, {}],
    ],
    ids=str,
)
def test_an_op_that_is_none_is_refused(ops):
    with pytest.raises(WireError):
        decode(json.dumps({"n": 1, "kind": "ops", "ops": [ops]}).encode())


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"5",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b'{"n":1,"kind":"shout"}',
        b'{"n":1,"kind":["ops"],"ops":[]}',
        b'{"n":NaN,"kind":"ping"}',
        b'{"n":1.5,"kind":"ping"}',
        b'{"n":1,"kind":"hello","version":1}',
        b'{"n":1,"kind":"roster","agents":[["a"]]}',
    ],
)
def test_a_line_that_is_no_frame_is_refused(line):
    with pytest.raises(WireError):
        decode(line)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)


@settings(max_examples=40)
@given(
    st.sampled_from(["hello", "roster", "ops", "granted", "waits", "open", "pools", "refused"]),
    json_values,
    json_values,
)
def test_whatever_is_in_a_frame_it_is_read_or_refused(kind, first, second):
    """A client of others sends what it likes: nothing but `WireError` may come of it."""
    frame = {"n": 1, "kind": kind}
    for name in ("agents", "ops", "pools", "version", "session", "open"):
        frame[name] = first
    frame |= {"epoch": second, "seq": second}
    with contextlib.suppress(WireError):
        decode(json.dumps(frame).encode())


def test_a_frame_counts_once_and_a_gap_ends_the_connection():
    sender, receiver = Sender(), Receiver()
    first, second, third = (sender.frame(Ping()) for _ in range(3))
    assert receiver.message(first) == Ping()
    assert receiver.message(first) is None
    with pytest.raises(WireError, match="frame 3 came after frame 1"):
        receiver.message(third)
    assert receiver.message(second) == Ping()


@given(st.lists(st.integers(1, 9), max_size=30))
def test_a_stream_is_cut_into_the_same_frames_however_it_arrives(cuts):
    lines = [b"a", b"", b"bcd", b"e" * 20]
    stream = b"\n".join(lines) + b"\n"
    frames, found, start = Frames(), [], 0
    for cut in [*cuts, len(stream)]:
        found += frames.cut(stream[start : start + cut])
        start += cut
    assert found == lines


def test_a_frame_is_bounded_also_before_its_end():
    frames = Frames()
    half = b"x" * (MOST_BYTES // 2 + 1)
    assert frames.cut(half) == []
    with pytest.raises(WireError):
        frames.cut(half)


def test_the_largest_rows_of_a_roster_fit_into_a_frame():
    """A client sends a hundred agents in one."""
    name = "\N{PILE OF POO}" * 64
    one = Standing(
        name, name, True, True, True, True, 9, 9, True, 9, name, 10**12, (10**12, 10**12), name
    )
    assert 100 * len(json.dumps(one)) < MOST_BYTES
