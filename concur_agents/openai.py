"""Drop-in clients: `openai`'s own classes, whose calls wait for their agent's turn.

    from concur_agents.openai import AsyncOpenAI      # instead of: from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url="http://localhost:8000/v1", api_key="-")
    async with gov.agent("issue-17"):
        await client.chat.completions.create(...)     # waits here until the agent may run

A call goes by the governor of the agent that makes it. With `AsyncOpenAI(governor=gov, ...)` it
goes by that one, which then also says what becomes of calls outside of any agent (`ungoverned`).
Everything else is as in the base class: retries, streams, `with_options`, raw responses.
`gov.wrap(client)` governs a client that exists already.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import openai

from concur_agents.adapters.by_agent import govern_by_agent
from concur_agents.adapters.http import govern
from concur_agents.adapters.openai_client import one_step_of
from concur_agents.errors import ConfigError
from concur_agents.governor import Governor

__all__ = ["AsyncAzureOpenAI", "AsyncOpenAI", "AzureOpenAI", "OpenAI"]


class _Governed:
    """The common part of the four clients."""

    _concur_one_step = True
    governor: Governor | None
    """Decides about its calls; None: the governor of the agent that makes a call does."""

    def __init__(self, *args: Any, governor: Governor | None = None, **options: Any) -> None:
        if governor is not None and not isinstance(governor, Governor):
            raise ConfigError(f"governor must be a Governor, got {governor!r}")
        super().__init__(*args, **options)
        self.governor = governor
        # After `super()`, so that the HTTP client keeps openai's proxies, limits and timeouts.
        http: Any = self._client
        self._client: Any = govern_by_agent(http) if governor is None else govern(governor, http)

    def copy(
        self,
        *,
        governor: Governor | None = None,
        _extra_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Self:
        """A client with other options, and with the same governor unless another one is given."""
        extra = {**(_extra_kwargs or {}), "governor": governor or self.governor}
        copied: Self = super().copy(_extra_kwargs=extra, **options)  # type: ignore[misc]
        return copied

    with_options = copy


class OpenAI(_Governed, openai.OpenAI):
    """`openai.OpenAI`, governed; with `governor=` beside the options of that class."""

    request: Any = one_step_of(openai.OpenAI)


class AsyncOpenAI(_Governed, openai.AsyncOpenAI):
    """`openai.AsyncOpenAI`, governed; with `governor=` beside the options of that class."""

    request: Any = one_step_of(openai.AsyncOpenAI)


class AzureOpenAI(_Governed, openai.AzureOpenAI):
    """`openai.AzureOpenAI`, governed; with `governor=` beside the options of that class."""

    request: Any = one_step_of(openai.AzureOpenAI)


class AsyncAzureOpenAI(_Governed, openai.AsyncAzureOpenAI):
    """`openai.AsyncAzureOpenAI`, governed; with `governor=` beside the options of that class."""

    request: Any = one_step_of(openai.AsyncAzureOpenAI)
