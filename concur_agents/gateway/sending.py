"""Sends requests to engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from concur_agents.adapters.addresses import Base
from concur_agents.gateway.bodies import Body, begins_object, front_of, with_fields
from concur_agents.gateway.engines import Destination, Engines, as_sent
from concur_agents.gateway.flight import Flight, Head
from concur_agents.gateway.identity import Identity
from concur_agents.gateway.numbers import Record
from concur_agents.runtime.agent import Agent

_REFUSED = (400, 422)  # how servers refuse a field that they do not know


class EngineError(Exception):
    """An engine cannot be reached, or has ended a connection too early."""


@dataclass(slots=True)
class Asked:
    """A request for a call.

    Attributes:
        request: as it came.
        path: the engine's, with its query.
        body: as far as it has been read.
        record: what becomes of it.
        is_json: whether its body is a JSON object, and was read.
        has_fields: whether that object has any.
        is_stream: whether it asks for a stream.
        asks_usage: whether it says of that stream if it wants its usage.
        identity: who makes it; None: it has no agent.
        process: the process that sent it, where processes are agents.
        retry_count: how often its client has tried before; None: it does not say.
        digest: what its retries have in common with it; empty: they cannot be told.
    """

    request: web.BaseRequest
    path: str
    body: Body
    record: Record
    is_json: bool = False
    has_fields: bool = False
    is_stream: bool = False
    asks_usage: bool = False
    identity: Identity | None = None
    process: int | None = None
    retry_count: int | None = None
    digest: bytes = b""


class Sender:
    """Sends requests to the engines of one governor.

    Args:
        engines: where requests go.
        session: connections to them.
    """

    def __init__(self, engines: Engines, session: aiohttp.ClientSession) -> None:
        self._engines = engines
        self._session = session
        self._no_usage: set[str] = set()  # engines that refuse to be asked for a stream's usage

    async def plain(self, request: web.BaseRequest, path: str, agent: Agent | None) -> Head:
        """Sends a request that is no call.

        Raises:
            EngineError: the engine cannot be reached.
        """
        data = Body(b"", request.content).pieces() if request.can_read_body else None
        sent = as_sent(request.raw_headers)
        destination = self._engines.destination(agent)
        response = await self._request(request.method, path, destination, sent, data)
        return Head(response, base=destination.base)

    async def to_all(
        self, request: web.BaseRequest, path: str, body: bytes
    ) -> list[Head | EngineError]:
        """Sends a request that concerns every engine; returns what came of it at each."""
        sent = as_sent(request.raw_headers)

        async def ask(base: Base) -> Head | EngineError:
            destination = Destination(base, {})
            try:
                response = await self._request(
                    request.method, path, destination, sent, body or None
                )
                return Head(response, await response.read(), base=base)
            except EngineError as error:
                return error
            except (aiohttp.ClientError, OSError) as error:
                return EngineError(f"the engine at {base} ended in its answer: {error}")

        return await asyncio.gather(*map(ask, self._engines.bases))

    async def call(self, asked: Asked, flight: Flight) -> Head:
        """Sends a call; once more if an engine refuses what the gateway adds.

        Raises:
            EngineError: the engine cannot be reached.
        """
        request, body = asked.request, asked.body
        agent = None if flight.living is None else flight.living.agent
        destination = self._engines.destination(agent, asked.record.path)
        asks = self._asks_usage(asked, destination)
        while True:
            sent = as_sent(request.raw_headers)
            if asks or flight.is_begun:
                sent = [pair for pair in sent if pair[0].lower() != "accept-encoding"]
                sent.append(("Accept-Encoding", "identity"))
            added = self._added(asked, destination, asks_usage=asks)
            if body.is_whole:
                data: Any = with_fields(body.read, added)
                sent = [pair for pair in sent if pair[0].lower() != "content-length"]
            else:
                data = body.pieces(added)
                sent = [_longer(pair, len(added)) for pair in sent]
            response = await self._request(request.method, asked.path, destination, sent, data)
            status, route = response.status, destination.route
            if status < 400 or not body.is_whole:
                break
            is_on_trial = asks and status in _REFUSED
            is_pinned = route is not None and route.may_be_refused(status)
            if not is_on_trial and not is_pinned:
                break
            answer = await response.read()
            if is_on_trial and b"stream_options" in answer:
                self._no_usage.add(str(destination.base))
                asks = False
            elif route is None or not route.was_refused(answer):
                return Head(response, answer, base=destination.base)
        if destination.route is not None:
            destination.route.meet(response.status, response.headers)
        return Head(response, asks_usage=asks, base=destination.base)

    def _added(self, asked: Asked, destination: Destination, *, asks_usage: bool) -> bytes:
        """What is added to the front of the body."""
        fields: dict[str, object] = {}
        if asks_usage:
            fields["stream_options"] = {"include_usage": True}
        is_object = asked.has_fields if asked.body.is_whole else begins_object(asked.body.read)
        if is_object and "content-encoding" not in asked.request.headers:
            fields |= destination.fields()
        return front_of(fields)

    def _asks_usage(self, asked: Asked, destination: Destination) -> bool:
        """Whether to ask for the usage of a stream: OpenAI's report none unless they are asked."""
        return (
            asked.is_stream
            and not asked.asks_usage
            and asked.record.path.endswith("/completions")
            and str(destination.base) not in self._no_usage
        )

    async def _request(
        self,
        method: str,
        path: str,
        destination: Destination,
        sent: list[tuple[str, str]],
        data: Any,
    ) -> aiohttp.ClientResponse:
        headers = self._engines.request_headers(sent, destination)
        try:
            return await self._session.request(
                method,
                URL(destination.url(path), encoded=True),
                headers=CIMultiDict(headers),
                data=data,
                allow_redirects=False,
            )
        except (aiohttp.ClientError, OSError) as error:
            raise EngineError(
                f"the engine at {destination.base} cannot be reached: {error}"
            ) from error


def _longer(header: tuple[str, str], by: int) -> tuple[str, str]:
    """A header of a request whose body gets so many bytes more."""
    name, value = header
    return (name, str(int(value) + by)) if by and name.lower() == "content-length" else header


async def pieces_of(head: Head) -> AsyncIterator[bytes]:
    """The body of an answer.

    Raises:
        EngineError: it ends too early.
    """
    if head.body is not None:
        yield head.body
        return
    try:
        async for piece in head.response.content.iter_any():
            yield piece
    except (aiohttp.ClientError, OSError) as error:
        raise EngineError(f"an engine ended in the middle of an answer: {error}") from error
