"""OpenAI's HTTP API in front of a simulated engine that runs by the event loop's clock.

One event loop owns requests, engine and clock, so nothing here needs a lock. It translates: what a
prompt is made of and what the model answers is decided in ``text``, how long it takes by the
engine, what ``/metrics`` says in ``pages``; ``answers`` sends what comes out.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from concur_agents._version import __version__
from concur_agents.sim.answers import (
    EventStream,
    answered,
    chat_chunks,
    completion_chunks,
    response_events,
)
from concur_agents.sim.client_clock import ClientClock, WaitingDriver
from concur_agents.sim.engine import Engine, Run
from concur_agents.sim.pages import Kind, MetricsPage, RankHeader, text_of
from concur_agents.sim.profile import Profile
from concur_agents.sim.realtime import ClosingError, Driver, ServedCall, ServerStats
from concur_agents.sim.routers import RouterKind, SimulatedRouter
from concur_agents.sim.sessions import SimulatedSessions
from concur_agents.sim.shapes import finished_response, problem, tool_call, usage
from concur_agents.sim.text import (
    BadRequestError,
    DeterministicModel,
    FlatPrompts,
    Message,
    Reply,
    count_tokens,
    flat_bytes,
    read_messages,
    read_responses_input,
    token_ids,
    tool_names,
    tools_run,
)

__all__ = ["App", "ServerStats"]


class App:
    """The ASGI application of one engine, or of several data-parallel ones.

    Args:
        engines: how many there are; calls go to them in turn.
        rank_header: what `X-data-parallel-rank` does, see `RankHeader`.
        worker_header: answers say in `x-smg-routed-worker-id` which engine took the call.
        router: what is in front of the engines, see `routers`.
        sessions: whether closing a session lets its context go, see `sessions`.
    """

    def __init__(
        self,
        profile: Profile,
        *,
        time_scale: float,
        metrics: Kind,
        model: DeterministicModel,
        name: str,
        clock: ClientClock | None = None,
        engines: int = 1,
        rank_header: RankHeader = "honour",
        worker_header: bool = False,
        router: RouterKind | None = None,
        sessions: bool = False,
    ) -> None:
        self.profile = profile
        self.name = name
        self.stats = ServerStats()
        page_scale = 1.0 if time_scale == math.inf else time_scale
        self.drivers: list[Driver] = []
        for rank in range(engines):
            engine = Engine(profile)
            of_many = rank if engines > 1 else None
            page = MetricsPage(engine, metrics, page_scale, name, of_many)
            self.drivers.append(
                Driver(engine, time_scale, page, self.stats, rank)
                if clock is None
                else WaitingDriver(engine, page, clock, self.stats, rank)
            )
        self._router = SimulatedRouter(
            engines, router, metrics, rank_header, names_worker=worker_header
        )
        self._sessions = SimulatedSessions(self.stats, engines) if sessions else None
        self._rank_header = rank_header
        self._metrics = metrics
        self._model = model
        self._flat = FlatPrompts()
        self._started = int(time.time())
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self._taking(self._chat), methods=["POST"]),
                Route("/v1/completions", self._taking(self._completions), methods=["POST"]),
                Route("/v1/responses", self._taking(self._responses), methods=["POST"]),
                Route("/v1/models", self._models),
                Route("/tokenize", self._taking(self._tokenize), methods=["POST"]),
                Route("/reset_prefix_cache", self._reset, methods=["POST"]),
                Route("/flush_cache", self._reset, methods=["GET", "POST"]),
                Route("/health", self._health),
                Route("/ping", self._health),
                Route("/version", self._version),
                Route("/stats", self._stats),
                Route("/metrics", self._metrics_page),
                Route("/engine/{rank:int}/metrics", self._metrics_page),
                *(() if self._sessions is None else self._sessions.routes),
            ]
        )

    def _taking(
        self, handle: Callable[[HttpRequest, dict[str, Any]], Awaitable[Response]]
    ) -> Callable[[HttpRequest], Awaitable[Response]]:
        """Reads the body, and turns what can go wrong into the errors that clients know."""

        async def taken(http: HttpRequest) -> Response:
            try:
                body = json.loads(await http.body())
                if not isinstance(body, dict):
                    raise BadRequestError("the body must be a JSON object")
                wanted = body.get("model")
                if wanted is not None and wanted != self.name:
                    return _error(
                        404,
                        f"The model `{wanted}` does not exist.",
                        "NotFoundError",
                        "model",
                        "model_not_found",
                    )
                answer = await handle(http, body)
                if hasattr(http.state, "rank"):
                    said = self._router.said(str(http.base_url), http.state.rank)
                    answer.headers.update(said)
                return answer
            except ValueError as error:
                return _error(400, f"the body is not JSON: {error}", "BadRequestError")
            except BadRequestError as error:
                return _error(400, str(error), "BadRequestError", error.param, error.code)
            except (ClosingError, ClientDisconnect):
                return _error(503, "the server is shutting down", "ServiceUnavailableError")

        return taken

    # -- chat completions

    async def _chat(self, http: HttpRequest, body: dict[str, Any]) -> Response:
        messages = read_messages(body.get("messages"))
        call = self._call(http, body, messages, ("max_completion_tokens", "max_tokens"))
        head = self._head("chatcmpl", call, "chat.completion")
        if body.get("stream"):
            return EventStream(call.driver, call, chat_chunks(call.driver, call, head, body))
        await answered(call.driver, call, http.receive)
        message: dict[str, Any] = {"role": "assistant", "content": call.reply.text or None}
        if call.reply.calls:
            message["tool_calls"] = [tool_call(c) for c in call.reply.calls]
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": call.finish_reason,
        }
        return JSONResponse({**head, "choices": [choice], "usage": usage(call)})

    # -- completions

    async def _completions(self, http: HttpRequest, body: dict[str, Any]) -> Response:
        prompt = body.get("prompt")
        if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
            prompt = prompt[0]
        if not isinstance(prompt, str | list) or not prompt:
            raise BadRequestError("prompt must be one text, or one list of token ids", "prompt")
        data, width = flat_bytes(prompt)
        runs = self._flat.runs(data, width)
        reply = self._reply(runs, (), (), body, ("max_tokens",))
        output = reply.message.run
        call = self._send(http, body, runs, reply)
        if isinstance(prompt, str):
            said = reply.text if prompt.isascii() else ""
            self._flat.remember(data + said.encode(), width, (*runs, output))
            ids = None
        else:
            ids = token_ids(reply.text, output.tokens)
            self._flat.remember(data + flat_bytes(ids)[0], width, (*runs, output))
        head = self._head("cmpl", call, "text_completion")
        if body.get("stream"):
            return EventStream(call.driver, call, completion_chunks(call.driver, call, head, body))
        await answered(call.driver, call, http.receive)
        choice = {
            "index": 0,
            "text": reply.text,
            "logprobs": None,
            "finish_reason": call.finish_reason,
        }
        if body.get("return_token_ids"):
            choice["token_ids"] = ids if ids is not None else token_ids(reply.text, output.tokens)
        return JSONResponse({**head, "choices": [choice], "usage": usage(call)})

    # -- responses

    async def _responses(self, http: HttpRequest, body: dict[str, Any]) -> Response:
        if body.get("previous_response_id") or body.get("conversation"):
            raise BadRequestError(
                "this server keeps no conversations: send the whole input", "previous_response_id"
            )
        messages = read_responses_input(body.get("input"), body.get("instructions"))
        call = self._call(http, body, messages, ("max_output_tokens",))
        head = {
            "id": f"resp_{call.request.id}",
            "object": "response",
            "created_at": int(time.time()),
            "model": self.name,
            "error": None,
            "incomplete_details": None,
            "instructions": body.get("instructions"),
            "metadata": body.get("metadata") or {},
            "parallel_tool_calls": True,
            "temperature": body.get("temperature"),
            "tool_choice": body.get("tool_choice") or "auto",
            "tools": body.get("tools") or [],
            "top_p": body.get("top_p"),
        }
        if body.get("stream"):
            return EventStream(call.driver, call, response_events(call.driver, call, head))
        await answered(call.driver, call, http.receive)
        return JSONResponse(finished_response(call, head))

    # -- the rest

    async def _models(self, http: HttpRequest) -> Response:
        model = {
            "id": self.name,
            "object": "model",
            "created": self._started,
            "owned_by": self._metrics,
            "root": self.profile.model,
            "parent": None,
            "max_model_len": self.profile.longest_context,
        }
        return JSONResponse({"object": "list", "data": [model]})

    async def _tokenize(self, http: HttpRequest, body: dict[str, Any]) -> Response:
        if isinstance(body.get("prompt"), str):
            text = body["prompt"]
            count = count_tokens(text)
        else:
            messages = read_messages(body.get("messages"))
            text = "".join(message.text for message in messages)
            count = sum(run.tokens for run in _prompt(messages, body.get("tools") or []))
        return JSONResponse(
            {
                "count": count,
                "max_model_len": self.profile.longest_context,
                "tokens": token_ids(text, count),
            }
        )

    async def _reset(self, http: HttpRequest) -> Response:
        # vLLM keeps what a host tier holds unless it is asked for
        asked = http.query_params.get("reset_external", "false") == "true"
        for driver in self.drivers:
            driver.engine.reset_cache(tier=asked or http.url.path == "/flush_cache")
        return JSONResponse({"success": True})

    async def _health(self, http: HttpRequest) -> Response:
        return Response()

    async def _version(self, http: HttpRequest) -> Response:
        return JSONResponse(
            {"version": f"{__version__} (simulated)", "engine": "concur-agents embedded engine"}
        )

    async def _stats(self, http: HttpRequest) -> Response:
        return JSONResponse(self.stats.summary())

    async def _metrics_page(self, http: HttpRequest) -> Response:
        rank = http.path_params.get("rank")
        shown = self.drivers if rank is None else self.drivers[rank : rank + 1]
        page = text_of([driver.page for driver in shown])
        return Response(page, media_type="text/plain; version=0.0.4; charset=utf-8")

    # -- from body to call

    def _call(
        self,
        http: HttpRequest,
        body: dict[str, Any],
        messages: Sequence[Message],
        limits: Sequence[str],
    ) -> ServedCall:
        tools = body.get("tools") or []
        if not isinstance(tools, list):
            raise BadRequestError("tools must be a list", "tools")
        prompt = _prompt(messages, tools)
        offered = () if body.get("tool_choice") == "none" else tool_names(tools)
        return self._send(http, body, prompt, self._reply(prompt, messages, offered, body, limits))

    def _reply(
        self,
        prompt: tuple[Run, ...],
        messages: Sequence[Message],
        tools: Sequence[str],
        body: dict[str, Any],
        limits: Sequence[str],
    ) -> Reply:
        if body.get("n", 1) not in (1, None):
            raise BadRequestError(f"n must be 1, got {body['n']}", "n")
        prompt_tokens = sum(run.tokens for run in prompt)
        most = self.profile.longest_context
        asked = [
            _whole_number(body, name, least=1) for name in limits if body.get(name) is not None
        ]
        wanted = min(asked, default=1)
        if prompt_tokens + wanted > most:
            raise BadRequestError(
                f"This model's maximum context length is {most} tokens. However, you requested "
                f"{prompt_tokens + wanted} tokens ({prompt_tokens} in the prompt, {wanted} in the "
                "completion). Please reduce the length of the prompt or completion.",
                "messages" if messages else "prompt",
                "context_length_exceeded",
            )
        room = most - prompt_tokens
        max_tokens = min(asked, default=room)
        least = _whole_number(body, "min_tokens", least=0) if body.get("min_tokens") else 0
        if least > max_tokens:
            raise BadRequestError(
                f"min_tokens must be at most {max_tokens}, got {least}", "min_tokens"
            )
        return self._model.reply(
            prompt,
            messages,
            tools,
            min_tokens=least,
            max_tokens=max_tokens,
            ignore_eos=bool(body.get("ignore_eos")),
        )

    def _send(
        self, http: HttpRequest, body: dict[str, Any], prompt: tuple[Run, ...], reply: Reply
    ) -> ServedCall:
        headers = http.headers
        agent = (
            headers.get("x-concur-agent")
            or headers.get("x-session-id")
            or body.get("session_id")
            or body.get("user")
        )
        driver = self._driver_for(http, body)
        http.state.rank = driver.rank
        if self._sessions is not None:
            self._sessions.note(body, driver, (*prompt, reply.message.run))
        return driver.send(prompt, reply.message.run, reply, agent)

    def _driver_for(self, http: HttpRequest, body: dict[str, Any]) -> Driver:
        """Of the engine that the client asks for, else of the next one."""
        asked = self._router.rank_asked(http.url.path, http.headers, body)
        if asked is None:
            return self.drivers[self._router.pick(http.headers)]
        ranks = 1 if self._rank_header == "refuse" else len(self.drivers)
        try:
            rank = int(asked)
        except (TypeError, ValueError):
            raise BadRequestError(f"data_parallel_rank must be a number, got {asked!r}") from None
        if rank not in range(ranks):
            raise BadRequestError(f"data_parallel_rank {rank} is out of range [0, {ranks}).")
        return self.drivers[rank]

    def close(self) -> None:
        """Give up all calls in flight."""
        for driver in self.drivers:
            driver.close()

    def _head(self, prefix: str, call: ServedCall, kind: str) -> dict[str, Any]:
        return {
            "id": f"{prefix}-{call.request.id}",
            "object": kind,
            "created": int(time.time()),
            "model": self.name,
        }


def _prompt(messages: Sequence[Message], tools: Sequence[Any]) -> tuple[Run, ...]:
    return (*tools_run(tools), *(message.run for message in messages))


def _whole_number(body: dict[str, Any], name: str, *, least: int) -> int:
    value = body[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise BadRequestError(
            f"{name} must be a whole number of at least {least}, got {value!r}", name
        )
    return value


def _error(
    status: int, message: str, kind: str, param: str | None = None, code: str | None = None
) -> Response:
    """The response that says it."""
    return JSONResponse({"error": problem(message, kind, param, code)}, status)
