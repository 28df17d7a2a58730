"""Answers on their way to the client: whole, or as server-sent events while they are generated.

A client that goes away gives up its call.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from concur_agents.sim.realtime import ClosingError, Driver, ServedCall
from concur_agents.sim.shapes import (
    finished_response,
    include_usage,
    output_items,
    problem,
    sse,
    tool_call,
    usage,
)
from concur_agents.sim.text import CHARS_PER_TOKEN

__all__ = ["EventStream", "answered", "chat_chunks", "completion_chunks", "response_events"]

_CHUNK_S = 0.05
"""Real time between two chunks of a stream."""


async def answered(driver: Driver, call: ServedCall, receive: Receive) -> None:
    """Waits for a call; gives it up if the client goes away.

    Raises:
        ClosingError: there will be no answer.
    """
    gone = asyncio.ensure_future(_gone(receive))
    first: set[asyncio.Future[Any]] = {call.done, gone}
    try:
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        driver.abandon(call)
    if not call.done.done() or not call.done.result():
        raise ClosingError


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events; the call is given up if the client goes away."""

    def __init__(self, driver: Driver, call: ServedCall, events: AsyncIterator[str]) -> None:
        super().__init__(media_type="text/event-stream", headers={"cache-control": "no-cache"})
        del self.headers["content-length"]
        self._driver = driver
        self._call = call
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        gone = asyncio.ensure_future(_gone(receive))
        sending = asyncio.ensure_future(self._send(send))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            sending.cancel()
            self._driver.abandon(self._call)
        if sending.done() and not sending.cancelled():
            sending.result()

    async def _send(self, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        try:
            async for event in self._events:
                await send(
                    {"type": "http.response.body", "body": event.encode(), "more_body": True}
                )
        except ClosingError:
            why = problem("the server is shutting down", "ServiceUnavailableError")
            body = sse({"error": why}).encode()
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def chat_chunks(
    driver: Driver, call: ServedCall, head: dict[str, Any], body: dict[str, Any]
) -> AsyncIterator[str]:
    """The events of a streamed chat completion."""
    head = {**head, "object": "chat.completion.chunk"}

    def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return sse({**head, "choices": [choice]})

    first: dict[str, Any] = {"role": "assistant", "content": ""}
    async for text in _pieces(driver, call):
        if first:
            yield chunk(first)
            first = {}
        yield chunk({"content": text})
    if first:
        yield chunk(first)
    for i, called in enumerate(call.reply.calls):
        yield chunk({"tool_calls": [{"index": i, **tool_call(called)}]})
    yield chunk({}, call.finish_reason)
    if include_usage(body):
        yield sse({**head, "choices": [], "usage": usage(call)})
    yield "data: [DONE]\n\n"


async def completion_chunks(
    driver: Driver, call: ServedCall, head: dict[str, Any], body: dict[str, Any]
) -> AsyncIterator[str]:
    """The events of a streamed completion."""

    def chunk(text: str, finish_reason: str | None = None) -> str:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}
        return sse({**head, "choices": [choice]})

    async for text in _pieces(driver, call):
        yield chunk(text)
    yield chunk("", call.finish_reason)
    if include_usage(body):
        yield sse({**head, "choices": [], "usage": usage(call)})
    yield "data: [DONE]\n\n"


async def response_events(
    driver: Driver, call: ServedCall, head: dict[str, Any]
) -> AsyncIterator[str]:
    """The events of a streamed response."""
    number = -1

    def event(kind: str, **fields: Any) -> str:
        nonlocal number
        number += 1
        data = {"type": kind, "sequence_number": number, **fields}
        return f"event: {kind}\n{sse(data)}"

    begun = {**head, "status": "in_progress", "output": [], "usage": None}
    yield event("response.created", response=begun)
    yield event("response.in_progress", response=begun)
    items = output_items(call)
    if not call.reply.calls:
        item = items[0]
        place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
        empty = {"type": "output_text", "text": "", "annotations": []}
        opened = {**item, "status": "in_progress", "content": []}
        yield event("response.output_item.added", output_index=0, item=opened)
        yield event("response.content_part.added", **place, part=empty)
        async for text in _pieces(driver, call):
            yield event("response.output_text.delta", **place, delta=text, logprobs=[])
        yield event("response.output_text.done", **place, text=call.reply.text, logprobs=[])
        yield event("response.content_part.done", **place, part=item["content"][0])
        yield event("response.output_item.done", output_index=0, item=item)
    else:
        async for _ in _pieces(driver, call):
            pass
        for at, item in enumerate(items):
            opened = {**item, "arguments": "", "status": "in_progress"}
            place = {"item_id": item["id"], "output_index": at}
            yield event("response.output_item.added", output_index=at, item=opened)
            arguments = item["arguments"]
            yield event("response.function_call_arguments.delta", **place, delta=arguments)
            yield event(
                "response.function_call_arguments.done",
                **place,
                name=item["name"],
                arguments=arguments,
            )
            yield event("response.output_item.done", output_index=at, item=item)
    yield event("response.completed", response=finished_response(call, head))


async def _pieces(driver: Driver, call: ServedCall) -> AsyncIterator[str]:
    """The reply's text as it is made, until the call is done."""
    sent = 0
    while True:
        await asyncio.wait({call.done}, timeout=_CHUNK_S)
        if call.done.done() and not call.done.result():
            raise ClosingError
        made = CHARS_PER_TOKEN * driver.progress(call)
        if made > sent and call.reply.text[sent:made]:
            yield call.reply.text[sent:made]
            sent = made
        if call.done.done():
            return
