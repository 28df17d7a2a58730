"""Passes the answers of engines on to their readers."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from concur_agents.adapters.answers import OVERLOADED, Answer, retry_after_s
from concur_agents.adapters.routes import meet_unknown
from concur_agents.errors import UngovernedError
from concur_agents.gateway.engines import answer_headers, as_sent, redirection
from concur_agents.gateway.flight import Flight, Head
from concur_agents.gateway.holding import Dialect
from concur_agents.gateway.identity import prefix_of
from concur_agents.gateway.numbers import Record
from concur_agents.gateway.sending import EngineError, pieces_of
from concur_agents.runtime.agent import Governing

logger = logging.getLogger("concur_agents")

READER_S = 60.0
"""A reader that takes nothing for so long [s] is given up."""

_WRITE_AHEAD = 256 * 1024
"""Bytes of an answer that may wait for a slow reader while the engine goes on."""

_LONGEST_ERROR = 64 * 1024


class Relay:
    """Passes answers on.

    Args:
        governor: hears of calls whose route it does not know.
    """

    def __init__(self, governor: Governing) -> None:
        self._governor = governor
        self._loop = asyncio.get_running_loop()
        self._writing: dict[asyncio.Transport, float] = {}  # since when [s]

    def give_up_readers(self) -> None:
        """Ends the connections of readers that have taken nothing for too long."""
        late_s = self._loop.time() - READER_S
        for transport in [one for one, since_s in self._writing.items() if since_s < late_s]:
            transport.abort()

    async def pass_on(
        self,
        request: web.BaseRequest,
        head: Head,
        record: Record,
        *,
        opened: web.StreamResponse | None = None,
        flight: Flight | None = None,
    ) -> web.StreamResponse:
        """Passes an answer on, and reads what the call has used as it passes.

        Args:
            request: it is answered.
            head: the beginning of the engine's answer.
            record: what became of the request.
            opened: the answer, if a sign of life has begun it.
            flight: the call; None: the request is no call.
        """
        response = head.response
        record.status = response.status
        is_events = response.headers.get("content-type", "").startswith("text/event-stream")
        hides = head.asks_usage and is_events
        encoding = response.headers.get("content-encoding", "").lower()
        answer = Answer(encoding, hide_usage=hides)
        passed = opened
        try:
            if flight is not None and response.status in OVERLOADED:
                flight.end(overloaded=True, retry_after_s=retry_after_s(response.headers))
            if opened is not None and (response.status >= 400 or not is_events):
                text = await _beginning(head)
                answer.feed(text)
                return await end_with(opened, record.dialect, response.status, text)
            if passed is None:
                passed = await self._begin(request, head, changes_length=hides)
            async for piece in pieces_of(head):
                out = answer.feed(piece)
                if out:
                    await self._write(request, passed, out)
            rest = answer.finish()
            if flight is not None:
                flight.end(
                    answer.usage(), aborted=answer.was_aborted()
                )  # and not when a slow reader has taken it
            elif request.method == "POST" and response.status < 400:
                self._meet_unknown(record.path, answer)
            if rest:
                await self._write(request, passed, rest)
            await passed.write_eof()
            return passed
        except EngineError as error:
            record.outcome = "cut off"
            logger.warning("%s", error)
            return hang_up(request, passed)
        finally:
            response.close()
            if flight is not None and not flight.is_over:
                flight.end(answer.usage(), aborted=answer.was_aborted())

    async def _begin(
        self, request: web.BaseRequest, head: Head, *, changes_length: bool
    ) -> web.StreamResponse:
        response = head.response
        passed = web.StreamResponse(status=response.status, reason=response.reason)
        for name, value in answer_headers(as_sent(response.raw_headers)):
            lower = name.lower()
            if lower == "location" and head.base is not None:
                passed.headers.add(name, redirection(value, head.base, prefix_of(request.raw_path)))
            elif not (changes_length and lower == "content-length"):
                passed.headers.add(name, value)
        if request.transport is not None:
            request.transport.set_write_buffer_limits(high=_WRITE_AHEAD)
        await passed.prepare(request)
        return passed

    async def _write(
        self, request: web.BaseRequest, passed: web.StreamResponse, out: bytes
    ) -> None:
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the reader has gone")
        self._writing[transport] = self._loop.time()
        try:
            await passed.write(out)
        finally:
            del self._writing[transport]

    def _meet_unknown(self, path: str, answer: Answer) -> None:
        try:
            meet_unknown(self._governor, path, answer.usage())
        except UngovernedError as error:  # too late to refuse it
            logger.warning("%s", error)


def problem(
    dialect: Dialect, status: int, message: str, *, close: bool = False
) -> web.StreamResponse:
    """An error of the gateway's own, in the form that clients of a dialect read."""
    error: dict[str, Any] = {"message": f"concur gateway: {message}", "type": "gateway_error"}
    body: dict[str, Any] = {"error": error}
    if dialect == "anthropic":
        body = {"type": "error", "error": error | {"type": "api_error"}}
    answer = web.Response(
        status=status, text=json.dumps(body), content_type="application/json", charset="utf-8"
    )
    if close:
        answer.force_close()
    return answer


async def end_with(
    opened: web.StreamResponse, dialect: Dialect, status: int, text: bytes
) -> web.StreamResponse:
    """Ends a stream whose status is sent already with an answer that is no stream: an error."""
    try:
        said: Any = json.loads(text)
    except ValueError:
        said = {"message": text.decode("utf-8", "replace")}
    if status >= 400:
        if not isinstance(said, Mapping) or "error" not in said:
            said = {"error": said if isinstance(said, Mapping) else {"message": str(said)}}
        if dialect == "anthropic":
            said = {"type": "error"} | dict(said)
    name = "event: error\n" if dialect == "anthropic" and status >= 400 else ""
    await opened.write(f"{name}data: {json.dumps(said)}\n\n".encode())
    await opened.write_eof()
    return opened


def hang_up(
    request: web.BaseRequest, passed: web.StreamResponse | None = None
) -> web.StreamResponse:
    """Ends a connection where it stands, as that of the engine has ended."""
    if request.transport is not None:
        request.transport.close()
    return passed if passed is not None else web.Response(status=499)


async def _beginning(head: Head) -> bytes:
    """An answer that is no stream, or as much of it as an error is long."""
    read = bytearray()
    async for piece in pieces_of(head):
        read += piece
        if len(read) >= _LONGEST_ERROR:
            break
    return bytes(read)
