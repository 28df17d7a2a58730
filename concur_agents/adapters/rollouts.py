"""Rollouts of any stack: its asynchronous functions become agents and steps.

    rollouts = Rollouts(gov)
    generate = rollouts.agent(generate, id=lambda call: call["sample"].session_id)
    Server.generate = rollouts.step(Server.generate, prompt=lambda call: len(call["prompt_ids"]))

A trainer has a function that runs one rollout and one that makes one call of the engine, with names
and arguments of its own.  Those two are wrapped; what an agent is called and what a call used is
read from the arguments and the answer, by functions of a line each.  There is no policy here.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

from concur_agents._outside import is_from_handler
from concur_agents.adapters.agents import open_agent
from concur_agents.core import Usage
from concur_agents.runtime.agent import Agent, Governing
from concur_agents.runtime.checks import read_name

logger = logging.getLogger("concur_agents")

Call: TypeAlias = Mapping[str, Any]
"""The arguments of a call by their names, defaults included."""

Async: TypeAlias = Callable[..., Coroutine[Any, Any, Any]]

_REASONS = ("finish_reason", "stop_reason", "stop_reasons", "meta_info")
"""Where answers of engines and trainers say why they ended."""


class Rollouts:
    """Makes the functions of one stack governed.

    Args:
        governor: decides about its agents.
    """

    def __init__(self, governor: Governing) -> None:
        self._governor = governor
        self._open: dict[str, Agent] = {}
        self._has_failed = False

    def agent(
        self,
        fn: Async,
        *,
        id: Callable[[Call], str | None],  # noqa: A002  (the word that users know it by)
        group: Callable[[Call], str | None] = lambda call: None,
        priority: Callable[[Call], int] = lambda call: 0,
    ) -> Async:
        """`fn`, each run of which is an agent from its start to its end, however it ends.

        Args:
            fn: runs one rollout.
            id: names the agent; the same for each try of a sample. None: one is made up.
            group: rollouts of one prompt have the same; None: it is in none.
            priority: higher goes first.
        """

        async def run(call: Call, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
            agent, name = await self._enter(id(call), group(call), priority(call))
            try:
                with agent.active():
                    return await fn(*args, **options)
            finally:
                self._leave(name, agent)

        return _bound(fn, run)

    def opens(
        self,
        fn: Async,
        *,
        id: Callable[[Call], str],  # noqa: A002
        group: Callable[[Call], str | None] = lambda call: None,
        priority: Callable[[Call], int] = lambda call: 0,
    ) -> Async:
        """`fn`, which begins a rollout: an agent that lasts until a `closes` of the same id.

        It leaves if `fn` raises. For stacks whose rollout is no single function; its steps need
        `agent=`, unless they are made in the task that opened it.
        """

        async def run(call: Call, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
            agent, name = await self._enter(id(call), group(call), priority(call))
            try:
                with agent.active():
                    return await fn(*args, **options)
            except BaseException:
                self._leave(name, agent)
                raise

        return _bound(fn, run)

    def closes(self, fn: Async, *, id: Callable[[Call], str]) -> Async:  # noqa: A002
        """`fn`, which ends a rollout: its agent leaves, whatever `fn` does."""

        async def run(call: Call, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
            name = id(call)
            try:
                return await fn(*args, **options)
            finally:
                agent = self._open.get(name)
                if agent is not None:
                    self._leave(name, agent)

        return _bound(fn, run)

    def step(
        self,
        fn: Async,
        *,
        agent: Callable[[Call], str | None] | None = None,
        when: Callable[[Call], bool] = lambda call: True,
        prompt: Callable[[Call], int | None] = lambda call: None,
        used: Callable[[Call, Any], Any] = lambda call, answer: answer,
    ) -> Async:
        """`fn`, each run of which is a step of its agent: it waits there for its turn.

        Args:
            fn: makes one call of the engine.
            agent: the id of the agent that makes it; None: the current one. For calls that arrive
                through a server, where no context leads to their agent.
            when: whether it is a call of the engine at all.
            prompt: size of the prompt [tokens]; None: unknown.
            used: what it took, in any form that `Step.record` takes, or a tuple of prompt,
                completion and perhaps cached tokens; it may be awaitable. By default the answer is
                looked through.
        """

        async def run(call: Call, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
            if not when(call):
                return await fn(*args, **options)
            context: AbstractContextManager[object] = nullcontext()
            owner = self._governor.current_agent()
            if agent is not None:
                owner = self._open.get(agent(call) or "")
                context = context if owner is None else owner.active()
            if owner is None:
                self._governor.meet_ungoverned(f"a call of {fn.__qualname__}")
                return await fn(*args, **options)
            with context:
                async with owner.step(prompt(call)) as step:
                    answer = await fn(*args, **options)
                    step.record(await self._read(used, call, answer))
                    if was_aborted(answer):
                        step.aborted()
                    return answer

        return _bound(fn, run)

    async def _enter(self, name: object, group: object, priority: int) -> tuple[Agent, str]:
        name = read_name(name)
        agent = await open_agent(self._governor, name, group=group, priority=priority)
        name = agent.id if name is None else name
        self._open[name] = agent  # of two tries of a sample at once, the later one
        return agent, name

    def _leave(self, name: str, agent: Agent) -> None:
        if self._open.get(name) is agent:
            del self._open[name]
        agent.close()

    async def _read(self, used: Callable[[Call, Any], Any], call: Call, answer: Any) -> Any:
        """What a call took; None: it cannot be read, which fails no rollout."""
        try:
            found = used(call, answer)
            found = await found if inspect.isawaitable(found) else found
            return Usage(*found) if type(found) is tuple else found
        except Exception as error:
            if is_from_handler(error):
                raise
            if not self._has_failed:
                self._has_failed = True
                logger.warning(
                    "what a call used cannot be read, so its agent's size is a guess: %r. Correct "
                    "the function `used` of this step (logged once)",
                    error,
                )
            return None


def was_aborted(answer: Any) -> bool:
    """Whether an answer says that the engine cut it short, as before a weight update."""
    if isinstance(answer, list | tuple):
        return any(map(was_aborted, answer))
    if isinstance(answer, str):
        return answer in ("abort", "aborted")
    if isinstance(answer, Mapping):
        return any(was_aborted(answer.get(name)) for name in ("type", "choices", *_REASONS))
    return any(was_aborted(getattr(answer, name, None)) for name in _REASONS) if answer else False


def _bound(fn: Async, run: Callable[..., Coroutine[Any, Any, Any]]) -> Async:
    """`run` in place of `fn`, with the arguments of `fn` by their names."""
    signature = inspect.signature(fn)

    @functools.wraps(fn)
    async def governed(*args: Any, **options: Any) -> Any:
        bound = signature.bind(*args, **options)
        bound.apply_defaults()
        call = dict(bound.arguments)
        for parameter in signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                call |= call.pop(parameter.name)
        return await run(call, args, options)

    return governed
