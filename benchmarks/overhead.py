"""What governing costs per call, when no agent waits.

    python benchmarks/overhead.py [--calls 2000] [--check]

Plain and governed calls take turns (plain, governed, governed, plain, ...) within one run, so that
whatever else the machine does falls on both; the figure is the median difference of such pairs.
The endpoint is in this process and answers at once, so the difference is all ours; it is also given
as a share of a call that takes 5 ms. Times are CPU time of the calling thread, to which other
processes add little. `--check` ends with an error if a goal is missed: 50 us at the gate, 5 % of a
5 ms call.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import json
import platform
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import openai

import concur_agents as ca

CALL_S = 0.005
GATE_GOAL_S = 50e-6
SHARE_GOAL = 0.05

httpx: Any = importlib.import_module("httpx2" if openai.__version__ >= "3" else "httpx")
REPLY = {
    "id": "c",
    "object": "chat.completion",
    "created": 0,
    "model": "m",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107},
}


CHUNK = {
    **REPLY,
    "object": "chat.completion.chunk",
    "choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": None}],
    "usage": None,
}
LAST = {**CHUNK, "choices": [], "usage": REPLY["usage"]}
PLAIN = json.dumps(REPLY).encode()
STREAM = f"data: {json.dumps(CHUNK)}\n\n".encode() * 20
USAGE = f"data: {json.dumps(LAST)}\n\n".encode()
END = b"data: [DONE]\n\n"


def answer(request: Any) -> Any:
    """The endpoint."""
    body = request.content
    if b'"stream":true' not in body:
        return httpx.Response(200, headers={"content-type": "application/json"}, content=PLAIN)
    asked = body.find(b"include_usage", 0, 200) >= 0
    text = STREAM + (USAGE if asked else b"") + END
    return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Body(text))


class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """An answer that comes in pieces, one of them per event."""

    def __init__(self, text: bytes) -> None:
        self._pieces = [event + b"\n\n" for event in text.split(b"\n\n")[:-1]]

    def __iter__(self) -> Iterator[bytes]:
        yield from self._pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece


def medians(calls: int, plain: Callable[[], Any], governed: Callable[[], Any]) -> list[float]:
    """Median time [s] of a plain call, and median of what the governed one beside it took more."""
    times: tuple[list[float], list[float]] = ([], [])
    for call in (plain, governed) * 20:
        call()
    gc.collect()
    gc.disable()
    for turn in range(calls):
        order = (0, 1) if turn % 2 else (1, 0)
        for which in order:
            call = governed if which else plain
            began_s = time.thread_time()
            call()
            times[which].append(time.thread_time() - began_s)
    gc.enable()
    return summary(times)


def summary(times: tuple[list[float], list[float]]) -> list[float]:
    """Of plain calls, and of the pairs."""
    more = [governed - plain for plain, governed in zip(*times, strict=True)]
    return [statistics.median(times[0]), statistics.median(more)]


async def medians_async(
    calls: int, plain: Callable[[], Any], governed: Callable[[], Any]
) -> list[float]:
    """The same of coroutines."""
    times: tuple[list[float], list[float]] = ([], [])
    for call in (plain, governed) * 20:
        await call()
    gc.collect()
    gc.disable()
    for turn in range(calls):
        order = (0, 1) if turn % 2 else (1, 0)
        for which in order:
            call = governed if which else plain
            began_s = time.thread_time()
            await call()
            times[which].append(time.thread_time() - began_s)
    gc.enable()
    return summary(times)


def ask(prompt_bytes: int, **options: Any) -> dict[str, Any]:
    """Arguments of a call."""
    message = {"role": "user", "content": "word " * (prompt_bytes // 5)}
    return {"model": "m", "messages": [message], **options}


def sync_calls(gov: ca.Governor, calls: int, told: dict[str, Any]) -> list[float]:
    """Calls with openai's client and with ours."""
    from concur_agents.openai import OpenAI

    given: dict[str, Any] = {"base_url": "http://engine/v1", "api_key": "-"}
    http = httpx.Client(transport=httpx.MockTransport(answer))
    clients = [openai.OpenAI(http_client=http, **given)]
    clients.append(OpenAI(governor=gov, http_client=http, **given))

    def run(client: Any) -> Callable[[], Any]:
        if told.get("stream"):
            return lambda: list(client.chat.completions.create(**told))
        return lambda: client.chat.completions.create(**told)

    with gov.agent():
        return medians(calls, *(run(client) for client in clients))


async def async_calls(gov: ca.Governor, calls: int, told: dict[str, Any]) -> list[float]:
    """The same with the asynchronous clients."""
    from concur_agents.openai import AsyncOpenAI

    given: dict[str, Any] = {"base_url": "http://engine/v1", "api_key": "-"}
    http = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    clients = [openai.AsyncOpenAI(http_client=http, **given)]
    clients.append(AsyncOpenAI(governor=gov, http_client=http, **given))

    def run(client: Any) -> Callable[[], Any]:
        async def once() -> None:
            reply = await client.chat.completions.create(**told)
            if told.get("stream"):
                async for _ in reply:
                    pass

        return once

    async with gov.agent():
        return await medians_async(calls, *(run(client) for client in clients))


async def gate(gov: ca.Governor, calls: int) -> list[float]:
    """Gate and end of a call, against an `await` that does nothing."""
    usage = ca.Usage(prompt_tokens=1000, completion_tokens=50, cached_tokens=900)
    async with gov.agent() as agent:

        async def nothing() -> None:
            return None

        async def once() -> None:
            step = await agent.gate(1000)
            agent.done(usage, step)

        return await medians_async(calls, nothing, once)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=2000, help="of each kind, per row")
    parser.add_argument("--check", action="store_true", help="fail if a goal is missed")
    options = parser.parse_args()
    calls = options.calls
    gov = ca.Governor(limit=1000)
    missed = []
    print(f"Python {platform.python_version()}, openai {openai.__version__}, {calls} calls a row")
    print(f"{'':34}{'plain':>10}{'more':>9}{'of 5 ms':>9}")

    def row(name: str, times: list[float], *, goal_s: float | None) -> None:
        plain_s, more_s = times
        print(f"{name:34}{plain_s * 1e6:7.0f} us{more_s * 1e6:6.0f} us{more_s / CALL_S:9.1%}")
        if goal_s is not None and more_s > goal_s:
            missed.append(f"{name}: {more_s * 1e6:.0f} us, goal {goal_s * 1e6:.0f} us")

    share_s = SHARE_GOAL * CALL_S
    row("the gate alone", asyncio.run(gate(gov, calls)), goal_s=GATE_GOAL_S)
    row("call, 1 KB prompt, sync", sync_calls(gov, calls, ask(1000)), goal_s=share_s)
    row("call, 1 KB prompt, async", asyncio.run(async_calls(gov, calls, ask(1000))), goal_s=share_s)
    # Without a goal: openai's client alone takes some ms for such a stream, and an engine takes
    # far more than 5 ms for such a prompt.
    stream = ask(1000, stream=True)
    row("stream, 1 KB, 20 chunks, sync", sync_calls(gov, calls, stream), goal_s=None)
    row("stream, 1 KB, 20 chunks, async", asyncio.run(async_calls(gov, calls, stream)), goal_s=None)
    few = max(20, calls // 20)
    long = ask(400_000)
    row("call, 400 KB prompt, async", asyncio.run(async_calls(gov, few, long)), goal_s=None)
    long["stream"] = True
    row("stream, 400 KB prompt, async", asyncio.run(async_calls(gov, few, long)), goal_s=None)
    if options.check and missed:
        sys.exit("missed: " + "; ".join(missed))


if __name__ == "__main__":
    main()
