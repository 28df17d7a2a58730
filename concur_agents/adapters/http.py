"""Governed HTTP clients: the seam that all OpenAI-compatible libraries share.

A governed client is a *view* of a client: an object of a subclass that shares everything with it
(connections, proxies, certificates, cookies) and overrides only `send`. There the request is built
but not sent, so no client timeout runs while the agent waits. Plain and streamed answers both pass
there, with the usage that makes footprints exact.

It works for `httpx` and for `httpx2`, which openai uses from 3.0 on.
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Iterator
from functools import cache, partial, wraps
from types import FunctionType, MethodType, ModuleType
from typing import Any, Literal, TypeVar, cast
from weakref import WeakKeyDictionary, WeakValueDictionary

import openai

from concur_agents._outside import is_from_handler
from concur_agents.adapters import call as calls
from concur_agents.adapters.addresses import base_of_request
from concur_agents.adapters.answers import (
    OVERLOADED,
    Answer,
    retry_after_s,
    usage_in,
    usage_of_ids,
    was_aborted,
)
from concur_agents.adapters.call import Call
from concur_agents.adapters.emptying import empties_cache, hold_if_emptying
from concur_agents.adapters.extras import Edit, Extras
from concur_agents.adapters.prompts import of_body
from concur_agents.adapters.raising import IS_OPENAI_2, for_clients
from concur_agents.adapters.routes import is_llm_call, meet_unknown
from concur_agents.adapters.routing import Route, Router, router_of
from concur_agents.core import Usage
from concur_agents.errors import ConcurError, ConfigError
from concur_agents.runtime.agent import Governing

C = TypeVar("C")


def http_client(
    governor: Governing,
    kind: Literal["sync", "async"],
    *,
    module: Literal["httpx", "httpx2"] | None = None,
    **options: Any,
) -> Any:
    """A governed client with the defaults that openai recommends.

    An async client belongs to the event loop that uses it first: make one per loop.

    Args:
        governor: decides about its calls.
        kind: "sync" for `httpx.Client`, "async" for `httpx.AsyncClient`.
        module: the library of the client; None: the one that the installed openai uses.
        options: for the client, such as `timeout`, `proxy`, `verify`.

    Raises:
        ConfigError: `kind` is neither of the two.
    """
    if kind not in ("sync", "async"):
        raise ConfigError(f"kind must be 'sync' or 'async', got {kind!r}")
    native = "httpx" if IS_OPENAI_2 else "httpx2"
    if module in (None, native):
        make = openai.DefaultHttpxClient if kind == "sync" else openai.DefaultAsyncHttpxClient
        return govern(governor, make(**options))
    library: Any = importlib.import_module(cast("str", module))
    options.setdefault("timeout", library.Timeout(600.0, connect=5.0))
    options.setdefault(
        "limits", library.Limits(max_connections=1000, max_keepalive_connections=100)
    )
    options.setdefault("follow_redirects", True)
    make = library.Client if kind == "sync" else library.AsyncClient
    return govern(governor, make(**options))


def govern(governor: Governing, client: C) -> C:
    """A governed view of an HTTP client: same type, same connections, same settings.

    Closing either closes both. A view of this governor is returned unchanged, and a client that
    several others share has one view, so that they share that too.
    """
    mine = getattr(client, "_concur_inner", None)
    if mine is not None:
        if client._concur_governor is governor:  # type: ignore[attr-defined]
            return client
        client = mine  # another governor's view, because two gates must not follow each other
    library = http_library(client)
    if library is None:
        raise ConfigError(f"{client!r} is not a client of httpx or httpx2")
    is_patched = "send" in vars(client)
    key = (id(client), id(governor))
    shared = None if is_patched else _views.get(key)
    if shared is not None:
        return cast("C", shared)
    members: dict[str, Any] = {
        "_concur_governor": governor,
        "_concur_tee": _tee(library),
        "_concur_noticing": staticmethod(partial(_notice, tee=_tee(library))),
        "_concur_extras": _extras_of(governor),
        "_concur_router": router_of(governor),
    }
    view = view_of(client, _AsyncSend if hasattr(client, "aclose") else _SyncSend, members)
    if not is_patched:
        _views[key] = view
    return view


def view_of(client: C, mixin: Any, members: dict[str, Any]) -> C:
    """An object that shares everything with an HTTP client but its `send`, which is the mixin's."""
    base: Any = type(client)
    send = _as_signed(mixin.send, base.send)
    members = {
        **members,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "send": send,
        # openai's own clients close themselves when they are collected. The view must not, because
        # the inner client does, and the view keeps that alive.
        "__del__": lambda self: None,
        "_concur_inner": client,
    }
    if "send" in vars(client):  # patched by others; a property goes before the patch
        members["send"] = property(lambda self: MethodType(send, self))
    view = object.__new__(cast("type[C]", type(base.__name__, (mixin, base), members)))
    view.__dict__ = client.__dict__
    return view


_views: WeakValueDictionary[tuple[int, int], Any] = WeakValueDictionary()
"""(id of an HTTP client, id of a governor) -> its view, which keeps both alive."""


def _as_signed(send: Any, base_send: Any) -> Any:
    """A copy of `send` that shows the signature of the base class's."""
    copied = FunctionType(
        send.__code__, send.__globals__, send.__name__, send.__defaults__, send.__closure__
    )
    copied.__kwdefaults__ = send.__kwdefaults__
    return wraps(base_send)(copied)


def http_library(client: object) -> ModuleType | None:
    """The library (httpx or httpx2) whose client this is; None: it is not one."""
    for kind in type(client).__mro__:
        root = kind.__module__.partition(".")[0]
        if kind.__name__ in ("Client", "AsyncClient") and root in ("httpx", "httpx2"):
            return importlib.import_module(root)
    return None


class _SyncSend:
    _concur_governor: Governing
    _concur_tee: Any
    _concur_noticing: Any
    _concur_extras: Extras
    _concur_router: Router

    def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
        send: Any = vars(self).get("send") or super().send  # type: ignore[misc]
        path = request.url.path
        governor = self._concur_governor
        if not is_llm_call(request.method, path, governor.routes):
            agent = None if empties_cache(request.method, path) else governor.current_agent()
            self._concur_router.direct(self, agent, request, options, is_call=False)
            with hold_if_emptying(governor, request.method, path) as answered:
                response = send(request, stream=stream, **options)
                answered(response.status_code, base_of_request(request.url))
            return self._concur_noticing(governor, request, response)
        body = _body(request)
        try:
            call = calls.begin_sync(governor, path, read=lambda: of_body(body))
        except ConcurError as error:
            raise for_clients(error) from None
        if call is None:
            return send(request, stream=stream, **options)
        try:
            route = self._concur_router.direct(self, call.agent, request, options)
            edit = self._concur_extras.edit(request, path, body, call.agent, stream=stream)
            response = send(request, stream=stream, **options)
            if refusals := _possible_refusals(edit, route, response.status_code):
                response.read()
                if _were_refused(refusals, response.content):
                    response.close()
                    response = send(request, stream=stream, **options)
            if route is not None:
                route.meet(response.status_code, response.headers)
        except BaseException:
            call.end()
            raise
        _watch(call, response, self._concur_tee, hide=edit.hides_usage)
        return response


class _AsyncSend:
    _concur_governor: Governing
    _concur_tee: Any
    _concur_noticing: Any
    _concur_extras: Extras
    _concur_router: Router

    async def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
        send: Any = vars(self).get("send") or super().send  # type: ignore[misc]
        path = request.url.path
        governor = self._concur_governor
        if not is_llm_call(request.method, path, governor.routes):
            agent = None if empties_cache(request.method, path) else governor.current_agent()
            self._concur_router.direct(self, agent, request, options, is_call=False)
            with hold_if_emptying(governor, request.method, path) as answered:
                response = await send(request, stream=stream, **options)
                answered(response.status_code, base_of_request(request.url))
            return self._concur_noticing(governor, request, response)
        body = _body(request)
        try:
            call = await calls.begin(governor, path, read=lambda: of_body(body))
        except ConcurError as error:
            raise for_clients(error) from None
        if call is None:
            return await send(request, stream=stream, **options)
        try:
            route = self._concur_router.direct(self, call.agent, request, options)
            edit = self._concur_extras.edit(request, path, body, call.agent, stream=stream)
            response = await send(request, stream=stream, **options)
            if refusals := _possible_refusals(edit, route, response.status_code):
                await response.aread()
                if _were_refused(refusals, response.content):
                    await response.aclose()
                    response = await send(request, stream=stream, **options)
            if route is not None:
                route.meet(response.status_code, response.headers)
        except BaseException:
            call.end()
            raise
        _watch(call, response, self._concur_tee, hide=edit.hides_usage)
        return response


def _possible_refusals(edit: Edit, route: Route | None, status: int) -> list[Edit | Route]:
    """Which of our changes to a request the endpoint may have refused."""
    possible: list[Edit | Route] = []
    if edit.is_on_trial(status):
        possible.append(edit)
    if route is not None and route.may_be_refused(status):
        route.edit = edit
        possible.append(route)
    return possible


def _were_refused(possible: list[Edit | Route], answer: bytes) -> bool:
    """Whether any was; each has to look, because each has something of its own to take back."""
    return sum(each.was_refused(answer) for each in possible) > 0


def _notice(governor: Governing, request: Any, response: Any, *, tee: Any) -> Any:
    """Passes on the answer of a route that is not governed; notices one that generates tokens."""
    if request.method != "POST" or response.status_code >= 400:
        return response
    path = request.url.path
    if hasattr(response, "_content"):
        try:
            meet_unknown(governor, path, usage_in(response.content))
        except ConcurError as error:
            raise for_clients(error) from None
    elif response.headers.get("content-type", "").startswith(_STREAMED):
        encoding = response.headers.get("content-encoding", "").lower()
        unknown = _Unknown(governor, path)
        response.stream = tee(response.stream, unknown, Answer(encoding))
    return response


_STREAMED = ("text/event-stream", "application/x-ndjson")


class _Unknown:
    """A call of a route that is not governed, while its answer is streamed."""

    def __init__(self, governor: Governing, path: str) -> None:
        self.over = False
        self._governor = governor
        self._path = path

    def end(self, usage: Usage | None, **_: object) -> None:
        self.over = True
        meet_unknown(self._governor, self._path, usage)


def _body(request: Any) -> bytes:
    try:
        return cast("bytes", request.content)
    except Exception as error:  # the body is produced while it is sent
        if is_from_handler(error):
            raise
        return b""


def _watch(call: Call, response: Any, tee: Any, *, hide: bool) -> None:
    """Ends the call with its answer, and reports what it used."""
    status = response.status_code
    if status in OVERLOADED:
        call.end(overloaded=True, retry_after_s=retry_after_s(response.headers))
    elif status >= 400:
        call.end()
    elif hasattr(response, "_content"):  # it has been read: it is no stream, or was made in a test
        content = response.content
        usage = usage_in(content) or usage_of_ids(call.body, content)
        call.end(usage, aborted=was_aborted(content))
        if hide:
            answer = Answer(hide_usage=True)
            response._content = answer.feed(response.content) + answer.finish()
    else:
        encoding, kind = "", ""
        for name, value in response.headers.raw:  # a look-up by name costs ten times as much
            if name.lower() == b"content-encoding":
                encoding = value.decode("latin-1").lower()
            elif name.lower() == b"content-type":
                kind = value.decode("latin-1").lower()
        answer = Answer(encoding, hide_usage=hide and kind.startswith("text/event-stream"))
        response.stream = tee(response.stream, call, answer)


@cache
def _tee(library: Any) -> Any:
    """A stream class of a library: passes an answer on and reads the usage in it."""

    class Tee(library.SyncByteStream, library.AsyncByteStream):  # type: ignore[misc]
        def __init__(self, inner: Any, call: Call | _Unknown, answer: Answer) -> None:
            self._inner = inner
            self._call = call
            self._answer = answer

        def __iter__(self) -> Iterator[bytes]:
            for chunk in self._inner:
                passed = self._answer.feed(chunk)
                if passed:
                    yield passed
            rest = self._answer.finish()
            self._end()
            if rest:
                yield rest

        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for chunk in self._inner:
                passed = self._answer.feed(chunk)
                if passed:
                    yield passed
            rest = self._answer.finish()
            self._end()
            if rest:
                yield rest

        def close(self) -> None:
            try:
                self._end()
            finally:
                self._inner.close()

        async def aclose(self) -> None:
            try:
                self._end()
            finally:
                await self._inner.aclose()

        def _end(self) -> None:
            if not self._call.over:
                self._call.end(self._answer.usage(), aborted=self._answer.was_aborted())

    return Tee


_extras: WeakKeyDictionary[Governing, Extras] = WeakKeyDictionary()


def _extras_of(governor: Governing) -> Extras:
    """The governor's `Extras`: which fields an endpoint takes is learned once per governor."""
    extras = _extras.get(governor)
    if extras is None:
        extras = _extras[governor] = Extras()
    return extras
