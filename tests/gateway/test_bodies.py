"""Bodies are read as far as there is room, and passed on byte for byte."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from concur_agents.gateway.bodies import LEAST_READ, MOST_READ, Body, Room, front_of, with_fields
from concur_agents.testing import run


class Pieces:
    """A body that comes in pieces."""

    def __init__(self, *pieces):
        self._pieces = list(pieces)

    async def readany(self):
        await asyncio.sleep(0)
        return self._pieces.pop(0) if self._pieces else b""


async def whole(body):
    return b"".join([piece async for piece in body.pieces()])


@given(st.lists(st.binary(min_size=1, max_size=9), max_size=9))
def test_bytes_stay_as_they_are(pieces):
    async def main():
        body = await Room().read(Pieces(*pieces), 60)
        assert body.is_whole
        assert await whole(body) == b"".join(pieces)

    run(main())


def test_of_a_large_body_the_rest_stays_with_its_client():
    """A hundred megabytes must not be a hundred megabytes of memory for as long as a call waits."""

    async def main():
        room, piece = Room(), b"x" * (1024 * 1024)
        content = Pieces(*[piece] * 100)
        body = await room.read(content, 60)
        assert not body.is_whole
        assert MOST_READ < room.used <= MOST_READ + len(piece)
        assert body.parsed() is None
        assert len(await whole(body)) == 100 * len(piece)
        room.free(body)
        assert room.used == 0

    run(main())


def test_many_bodies_have_a_bound_together():
    async def main():
        room = Room(most=200 * 1024)
        size = 64 * 1024
        bodies = [await room.read(Pieces(*[b"x" * 1024] * 64), 60) for _ in range(3)]
        assert room.used == 3 * size
        assert all(body.is_whole for body in bodies)
        late = await room.read(Pieces(*[b"x" * 1024] * 500), 60)
        assert LEAST_READ < late.counted <= LEAST_READ + 1024
        for body in (*bodies, late):
            room.free(body)
            room.free(body)
        assert room.used == 0

    run(main())


def test_a_body_that_stops_coming_is_given_up():
    class Stuck(Pieces):
        async def readany(self):
            return await super().readany() or await asyncio.sleep(3600)

    async def main():
        room = Room()
        with pytest.raises(TimeoutError):
            await room.read(Stuck(b"half"), 60)
        assert room.used == 0
        assert asyncio.get_running_loop().time() == pytest.approx(60)

    run(main())


def test_a_slow_body_is_not_given_up():
    class Slow(Pieces):
        async def readany(self):
            await asyncio.sleep(50)
            return await super().readany()

    assert run(Room().read(Slow(b"a", b"b", b"c"), 60)).read == b"abc"


@pytest.mark.parametrize("text", [b"", b"[1]", b"{", b'{"a":', b"\xff", b'{"a":' * 100_000])
def test_what_is_no_object_is_not_parsed(text):
    assert Body(text).parsed() is None


def test_fields_are_added_without_touching_the_rest():
    body = b'{"model": "m",  "stream":true}'
    added = front_of({"stream_options": {"include_usage": True}, "routed_dp_rank": 1})
    asked = with_fields(body, added)
    assert asked.endswith(body[1:])
    assert Body(asked).parsed() == Body(body).parsed() | {
        "stream_options": {"include_usage": True},
        "routed_dp_rank": 1,
    }
    assert with_fields(body, front_of({})) is body


def test_a_field_of_the_clients_own_is_not_overridden():
    asked = with_fields(b'{"routed_dp_rank": 0}', front_of({"routed_dp_rank": 1}))
    assert Body(asked).parsed() == {"routed_dp_rank": 0}
