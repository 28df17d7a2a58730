"""Takes the requests of agents, and passes them on when their agents may run.

    request ─▶ who is it? ─▶ is it a retry? ─▶ hold, until its turn ─▶ engine ─▶ pass on its answer

Bytes are passed as they are. Errors of the engine are its own: its status and its body where the
answer has not begun, an event of the stream where a comment has begun it, and a connection that
ends where the engine's ended. The gateway itself never answers 429, because not every client
retries it.
"""

from __future__ import annotations

import asyncio
import logging

from aiohttp import web

from concur_agents.adapters.emptying import empties_cache, hold_if_emptying
from concur_agents.adapters.prompts import of_body
from concur_agents.adapters.routes import is_llm_call
from concur_agents.errors import ConcurError, UngovernedError
from concur_agents.gateway import holding, retries
from concur_agents.gateway.agents import Agents, Living
from concur_agents.gateway.bodies import Room
from concur_agents.gateway.flight import Flight, Head
from concur_agents.gateway.holding import Times
from concur_agents.gateway.identity import identify, read_keys, split_path
from concur_agents.gateway.numbers import Numbers, Record
from concur_agents.gateway.processes import Processes
from concur_agents.gateway.relay import Relay, end_with, hang_up, problem
from concur_agents.gateway.sending import Asked, EngineError, Sender
from concur_agents.runtime.agent import Governing

logger = logging.getLogger("concur_agents")

PATIENCE_S = 60.0
"""A body of which nothing comes for so long [s] is given up."""

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Proxy:
    """Takes requests.

    Args:
        governor: decides.
        agents: the agents that make them.
        sender: sends them to engines.
        relay: passes their answers on.
        numbers: counts them.
        token: what clients have to send as, or in, their key; None: nothing.
        times: how calls are held.
        processes: finds the process that sent a request, where processes are agents.
        may_guess: whether to guess who makes a call that does not say so.
    """

    def __init__(
        self,
        governor: Governing,
        agents: Agents,
        sender: Sender,
        relay: Relay,
        numbers: Numbers,
        *,
        token: str | None = None,
        times: Times | None = None,
        processes: Processes | None = None,
        may_guess: bool = True,
    ) -> None:
        self._governor = governor
        self._agents = agents
        self._sender = sender
        self._relay = relay
        self._numbers = numbers
        self._token = token
        self._times = times or Times()
        self._processes = processes
        self._may_guess = may_guess
        self._room = Room()
        self._tries: retries.Tries[Flight] = retries.Tries()
        self._lingering: set[Flight] = set()
        self._said: set[type[ConcurError]] = set()
        self._loop = asyncio.get_running_loop()

    def admits(self, request: web.BaseRequest) -> bool:
        """Whether a request has the token."""
        return read_keys(request.headers, self._token)[0]

    async def close(self) -> None:
        """Ends the calls whose retry has not come yet."""
        for flight in self._lingering:
            flight.abandon()
        tasks = [flight.task for flight in self._lingering]
        await asyncio.gather(*tasks, return_exceptions=True)

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answers a request that is for an engine."""
        named, path = split_path(_path_of(request))
        is_admitted, of_key = read_keys(request.headers, self._token)
        plain = path.partition("?")[0]
        record = Record(request.method, plain, holding.dialect_of(plain), self._loop.time())
        try:
            if not is_admitted:
                record.outcome = "no token"
                wish = "a token is needed, as the key or as sk-agent-ID:TOKEN"
                return problem(record.dialect, 401, wish)
            if request.method == "CONNECT":
                record.outcome = "refused"
                wish = "it is no forward proxy: give its address as the base URL"
                return problem(record.dialect, 405, wish, close=True)
            if request.headers.get("expect", "").lower() == "100-continue":
                await request.writer.write(_CONTINUE)
                request.writer.output_size = 0
            if is_llm_call(request.method, plain, self._governor.routes):
                return await self._call(await self._read(request, named, path, of_key, record))
            if empties_cache(request.method, plain):
                return await self._empty(request, path, record)
            return await self._pass(request, named, path, of_key, record)
        except EngineError as error:
            record.outcome = "unreachable"
            return problem(record.dialect, 502, str(error))
        except UngovernedError as error:
            record.outcome = "ungoverned"
            return problem(record.dialect, 403, str(error))
        except TimeoutError:
            record.outcome = "half sent"
            wish = "the rest of the request did not come"
            return problem(record.dialect, 408, wish, close=True)
        except web.RequestPayloadError as error:
            record.outcome = "malformed"
            return problem(record.dialect, 400, f"the body cannot be read: {error}", close=True)
        except ConnectionError:
            record.outcome = "hung up"
            return hang_up(request)
        except asyncio.CancelledError:
            record.outcome = "hung up"
            raise
        finally:
            self._numbers.note(record, self._loop.time())

    async def _pass(
        self,
        request: web.BaseRequest,
        named: list[str],
        path: str,
        of_key: str | None,
        record: Record,
    ) -> web.StreamResponse:
        """Passes on what is no call; that of an agent goes to its pool."""
        identity = identify(named, of_key, request.headers, None)
        living = None if identity is None else self._agents.find(identity.agent)
        agent = None if living is None else living.agent
        record.agent = "" if agent is None else agent.id
        head = await self._sender.plain(request, path, agent)
        return await self._relay.pass_on(request, head, record)

    async def _empty(
        self, request: web.BaseRequest, path: str, record: Record
    ) -> web.StreamResponse:
        """Passes on what empties a cache: to all engines, and the worst answer is the client's."""
        async with asyncio.timeout(PATIENCE_S):
            body = await request.read()
        with hold_if_emptying(self._governor, request.method, record.path) as answered:
            answers = await self._sender.to_all(request, path, body)
            heads = [answer for answer in answers if isinstance(answer, Head)]
            for head in heads:
                answered(head.response.status, head.base)
        for answer in answers:
            if isinstance(answer, EngineError):
                raise answer
        worst = max(heads, key=lambda head: head.response.status)
        return await self._relay.pass_on(request, worst, record)

    # A call

    async def _read(
        self,
        request: web.BaseRequest,
        named: list[str],
        path: str,
        of_key: str | None,
        record: Record,
    ) -> Asked:
        body = await self._room.read(request.content, PATIENCE_S)
        parsed = None if "content-encoding" in request.headers else body.parsed()
        process = None if self._processes is None else await self._processes.of(request)
        asked = Asked(request, path, body, record)
        if parsed is not None:  # which is as large as the body, and is not kept
            asked.is_json, asked.has_fields = True, bool(parsed)
            asked.is_stream = parsed.get("stream") is True
            asked.asks_usage = "stream_options" in parsed
        asked.identity = identify(
            named,
            of_key,
            request.headers,
            parsed,
            process=None if process is None else f"process-{process}",
            may_guess=self._may_guess,
        )
        asked.process = process
        if asked.identity is not None:
            record.agent, record.is_guess = asked.identity.agent, asked.identity.is_guess
        asked.retry_count = retries.retry_count(request.headers)
        if asked.retry_count is not None and asked.identity is not None and body.is_whole:
            asked.digest = retries.digest(asked.identity.agent, path, body.read)
        return asked

    async def _call(self, asked: Asked) -> web.StreamResponse:
        """Holds a call until its turn, and passes its answer on."""
        hold = holding.plan(
            asked.record.dialect,
            stream=asked.is_stream,
            timeout_s=holding.client_timeout_s(asked.request.headers),
            times=self._times,
        )
        flight = self._tries.find(asked.digest, asked.retry_count or 0)
        if flight is None or flight.is_lost:
            flight = self._launch(asked, hold.most_s)
        else:
            flight.extend()
            asked.record.joined = True
            self._room.free(asked.body)
        request, record = asked.request, asked.record
        flight.owner = request
        try:
            opened = await self._keep(asked, flight, hold)
            if flight.owner is not request:
                record.outcome = "taken over"
                return hang_up(request)
            self._tries.remove(asked.digest, flight)
            record.held_s, record.passed = flight.held_s, flight.has_passed
            try:
                head = flight.task.result()
            except EngineError as error:
                if opened is None:
                    raise
                record.outcome = "unreachable"
                return await end_with(opened, record.dialect, 502, str(error).encode())
            return await self._relay.pass_on(request, head, record, opened=opened, flight=flight)
        except BaseException as error:
            if flight.owner is request:
                flight.owner = None
                is_gone = isinstance(error, asyncio.CancelledError | ConnectionError)
                self._let_go(asked, flight, may_return=is_gone)
            raise

    def _launch(self, asked: Asked, most_s: float | None) -> Flight:
        flight: Flight | None = None
        try:
            prompt = of_body(asked.body.read) if asked.is_json else None
            living = self._meet(asked)

            async def send(flight: Flight) -> Head:
                return await self._sender.call(asked, flight)

            flight = Flight(self._agents, living, prompt, most_s, send)
            flight.task.add_done_callback(lambda _: self._room.free(asked.body))
        finally:
            if flight is None:
                self._room.free(asked.body)
        if asked.digest:
            self._tries.add(asked.digest, flight)
        return flight

    def _meet(self, asked: Asked) -> Living | None:
        """The agent that makes a call; None: the call is sent as it is."""
        identity = asked.identity
        if identity is None:
            self._governor.meet_ungoverned(asked.record.path)
            return None
        try:
            return self._agents.meet(identity, asked.process)
        except ConcurError as error:  # the governor is closed, or has an agent of this name
            if type(error) not in self._said:
                self._said.add(type(error))
                logger.warning(
                    "a call of %s passes ungoverned: %s (logged once)", identity.agent, error
                )
            return None

    async def _keep(
        self, asked: Asked, flight: Flight, hold: holding.Hold
    ) -> web.StreamResponse | None:
        """Waits for the head of the answer; returns the answer if a sign of life has begun it."""
        opened: web.StreamResponse | None = None
        pause_s = hold.first_s
        while True:
            await asyncio.wait({flight.task}, timeout=pause_s)
            if flight.task.done() or flight.owner is not asked.request:
                return opened
            if opened is None:
                if flight.is_sent:  # its status is worth more than a sign of life
                    pause_s = None
                    continue
                flight.is_begun = True
                self._tries.remove(asked.digest, flight)
                headers = {"Content-Type": "text/event-stream; charset=utf-8"}
                opened = web.StreamResponse(headers=headers | {"Cache-Control": "no-cache"})
                await opened.prepare(asked.request)
            await opened.write(hold.sign)
            pause_s = hold.every_s

    def _let_go(self, asked: Asked, flight: Flight, *, may_return: bool) -> None:
        """A request waits no more. Its call goes on for a moment if a retry may take it over."""
        count = asked.retry_count
        if not may_return or count is None or not asked.digest or flight.is_begun:
            self._tries.remove(asked.digest, flight)
            flight.abandon()
            return

        def end() -> None:
            self._lingering.discard(flight)
            if flight.owner is None:
                self._tries.remove(asked.digest, flight)
                flight.abandon()

        self._lingering.add(flight)
        self._loop.call_later(retries.linger_s(count), end)


def _path_of(request: web.BaseRequest) -> str:
    path = request.raw_path
    return path if path.startswith("/") else f"/{path.partition('://')[2].partition('/')[2]}"
