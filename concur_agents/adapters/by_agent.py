"""HTTP clients without a governor of their own: each call goes by the governor of its agent.

A view, as those of `http`, which at each `send` looks for the agent that makes the call, and hands
the request to the view of that agent's governor.
"""

from __future__ import annotations

import logging
from typing import Any, TypeVar

from concur_agents.adapters.emptying import empties_cache
from concur_agents.adapters.http import govern, view_of
from concur_agents.adapters.routes import is_llm_call
from concur_agents.runtime.agent import Governing, current_agent

logger = logging.getLogger("concur_agents")

C = TypeVar("C")


def govern_by_agent(client: C) -> C:
    """A view of an HTTP client, each of whose calls goes by the governor of its agent.

    Calls outside of any agent pass, which is logged once per client. A client that is governed
    already is returned unchanged.
    """
    if hasattr(client, "_concur_inner"):
        return client
    mixin = _AsyncSend if hasattr(client, "aclose") else _SyncSend
    return view_of(client, mixin, {"_concur_latest": [], "_concur_complained": []})


class _ByAgent:
    _concur_inner: Any
    _concur_latest: list[Any]
    """The view that was used last, which is kept because making one takes longer than a look-up."""

    _concur_complained: list[str]

    @property
    def _concur_governor(self) -> Governing | None:
        agent = current_agent()
        return None if agent is None else agent.governor

    def _concur_view(self, request: Any) -> Any:
        governor = self._concur_governor
        if governor is not None:
            self._concur_latest[:] = [govern(governor, self._concur_inner)]
            return self._concur_latest[0]
        path = request.url.path
        if self._concur_latest and empties_cache(request.method, path):
            return self._concur_latest[0]  # no agent does this, but it concerns them
        if not self._concur_complained and is_llm_call(request.method, path, ()):
            self._concur_complained.append(path)
            logger.warning(
                "%s was called outside of any agent, so its calls pass ungoverned: put "
                "`async with gov.agent(...)` around the agent (logged once)",
                path,
            )
        return self._concur_inner


class _SyncSend(_ByAgent):
    def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
        return self._concur_view(request).send(request, stream=stream, **options)


class _AsyncSend(_ByAgent):
    async def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
        return await self._concur_view(request).send(request, stream=stream, **options)
