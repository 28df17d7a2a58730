"""One call: it waits for its turn, is sent, and has the head of its answer.

A call is a task of its own and not part of the request that brought it, because a retry of that
request may take it over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from concur_agents.adapters import prompts
from concur_agents.adapters.call import Call
from concur_agents.adapters.prompts import Prompt
from concur_agents.errors import ConcurError
from concur_agents.gateway.agents import Agents, Living
from concur_agents.runtime.agent import Agent

if TYPE_CHECKING:
    from aiohttp import ClientResponse

    from concur_agents.adapters.addresses import Base
    from concur_agents.core import Usage

logger = logging.getLogger("concur_agents")


@dataclass(slots=True)
class Head:
    """The beginning of an answer.

    Attributes:
        response: of the engine.
        body: its body, if it has been read already; None: it is still to come.
        asks_usage: whether its stream has an event that the client did not ask for.
        base: the address of the engine; None: unknown.
    """

    response: ClientResponse
    body: bytes | None = None
    asks_usage: bool = False
    base: Base | None = None


class Flight:
    """One call on its way. Its owner is the request that it answers.

    Args:
        agents: those of the gateway.
        living: the agent that makes it, which has met it already; None: no agent does.
        prompt: what it sends; None: its size is unknown.
        most_s: when it passes without its turn [s]; None: never.
        send: sends it, and returns the head of the answer.
    """

    def __init__(
        self,
        agents: Agents,
        living: Living | None,
        prompt: Prompt | None,
        most_s: float | None,
        send: Callable[[Flight], Awaitable[Head]],
    ) -> None:
        self.living = living
        self.owner: object = None
        self.is_sent = False
        """Whether it waits no longer."""
        self.is_begun = False
        """Whether a sign of life has begun its answer."""
        self.has_passed = False
        """Whether it was sent without its turn, because its client would not have waited."""
        self.is_over = False
        """Whether its agent has gone on."""
        self.held_s = 0.0
        """How long it waited."""
        self._agents = agents
        self._prompt = prompt
        self._send = send
        self._call: Call | None = None
        self._loop = asyncio.get_running_loop()
        self._most_s = most_s
        self._bound: asyncio.Timeout | None = None
        self.task = asyncio.create_task(self._run())
        self.task.add_done_callback(self._landed)

    @property
    def is_lost(self) -> bool:
        """Whether there will be no answer."""
        return self.task.done() and (self.task.cancelled() or self.task.exception() is not None)

    def extend(self) -> None:
        """A retry takes it over, whose client waits anew."""
        bound, most_s = self._bound, self._most_s
        if not self.is_sent and bound is not None and most_s is not None and not bound.expired():
            bound.reschedule(self._loop.time() + most_s)

    def end(
        self,
        usage: Usage | None = None,
        *,
        aborted: bool = False,
        overloaded: bool = False,
        retry_after_s: float = 0.0,
    ) -> None:
        """The call is over; only the first end counts. Arguments as of `adapters.call.Call.end`."""
        if self.is_over:
            return
        self.is_over = True
        if self._call is not None:
            self._call.end(
                usage, aborted=aborted, overloaded=overloaded, retry_after_s=retry_after_s
            )
        if self.living is not None:
            self._agents.leave(self.living)

    def abandon(self) -> None:
        """No request waits for its answer any more."""
        if not self.task.done():
            self.task.cancel()
            return
        if not self.is_lost:
            self.task.result().response.close()
        self.end()

    def _landed(self, _: asyncio.Task[Head]) -> None:
        if self.is_lost:
            self.end()

    async def _run(self) -> Head:
        began_s = self._loop.time()
        if self.living is not None:
            await self._wait(self.living)
        self.is_sent = True
        self.held_s = self._loop.time() - began_s
        return await self._send(self)

    async def _wait(self, living: Living) -> None:
        """Waits until the agent may run. What goes wrong here does not stop it."""
        call = None
        try:
            async with asyncio.timeout(self._most_s) as self._bound:
                await living.let_in.wait()
                call = Call(living.agent, _estimated(living.agent, self._prompt))
                await call.begin()
        except TimeoutError:
            self.has_passed = True
        except ConcurError as error:
            logger.warning("a call of %s passes ungoverned: %s", living.identity.agent, error)
        except Exception:
            logger.exception("a call of %s passes ungoverned", living.identity.agent)
        else:
            self._call = call


def _estimated(agent: Agent, prompt: Prompt | None) -> Prompt | None:
    """The prompt with its size; None: it is unknown, or could not be estimated."""
    try:
        if prompt is not None:
            prompts.estimate(agent, prompt)
    except Exception:  # a call of unknown size is still a call
        logger.debug("a prompt of %s cannot be estimated", agent.id, exc_info=True)
        return None
    return prompt
