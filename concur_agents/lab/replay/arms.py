"""What may stand between the agents and the endpoint in one arm of a replay.

    none                        no agent waits; several endpoints take the calls in turn
    sticky                      no agent waits; each has one of several pools, for life
    fixed:32                    at most 32 active agents (the law `fixed`), in each pool
    requests:32                 at most 32 calls in flight: what a client-side semaphore does
    cache_aimd  cache_aimd:2/4  the published law; 2 s interval, start at 4 agents
    working_set  working_set:name=0.5+other=3     any law by name, with its settings
    proxy:URL  proxy:URL+release  calls go through a proxy that schedules agents (ThunderAgent);
                                each body has a program_id, and with release it hears of their end
    package.module:Class  package.module:Class:name=0.5  a law of your own

Laws run in the product's own Governor, exactly as a user would run them.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from concur_agents.adapters import prompts
from concur_agents.adapters.prompts import Prompt
from concur_agents.core import law_names
from concur_agents.errors import ConfigError
from concur_agents.governor import Governor
from concur_agents.lab.replay.endpoint import EndpointError, Via, post_json
from concur_agents.lab.replay.replicas import Engines
from concur_agents.probes import Probe
from concur_agents.probes.usage import read_usage
from concur_agents.runtime.agent import Agent
from concur_agents.runtime.endpoints import Address
from concur_agents.runtime.law_choice import law_by_name

__all__ = ["Arm", "Gate", "GateAgent", "GateStep", "Governed", "Open", "parse_arm", "parse_arms"]


class GateStep(Protocol):
    """One call that may now be made."""

    def record(self, usage: Any) -> None:
        """Tell what the call cost."""
        ...


class GateAgent(Protocol):
    """One agent inside a gate: the part of the Governor's agent that a replay uses."""

    def step(
        self, *, prompt_tokens: int | None = None, prompt_bytes: int | None = None
    ) -> AbstractAsyncContextManager[GateStep]:
        """Wait for the turn, then hold it for one call. Of the prompt, the gate knows its length,
        or its size alone, or nothing.
        """
        ...

    def tool(self, name: str) -> AbstractAsyncContextManager[Any]:
        """Bracket a tool call."""
        ...


class Gate(Protocol):
    """What decides which agents run."""

    def agent(
        self, agent_id: str, *, prompt_tokens: int | None = None
    ) -> AbstractAsyncContextManager[GateAgent]:
        """One agent's whole life."""
        ...

    def view(self) -> dict[str, float | str | None]:
        """What the gate decides right now, for the time series; empty where it decides nothing."""
        ...

    def address_of(self, agent_id: str) -> Address | Via | None:
        """Where the next call of an agent goes; None: there is one place, or any will do."""
        ...

    def close(self) -> None:
        """Stop deciding."""
        ...


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm: its name as typed, and how to build its gate.

    It is built for a probe, for several `Engines`, or for None: there are no metrics.
    """

    name: str
    build: Callable[[Probe | Engines | None], Gate]

    @property
    def is_fixed(self) -> bool:
        """A fixed cap on agents: the best of these is what a law is compared with."""
        return self.name.startswith("fixed:")

    @property
    def is_proxy(self) -> bool:
        """Calls go through a proxy, and those know the chat route only."""
        return self.name.startswith("proxy:")


def parse_arms(text: str) -> list[Arm]:
    """Read a comma-separated list of arms.

    Raises:
        ConfigError: an arm is unknown, or its settings are.
    """
    arms = [parse_arm(part.strip()) for part in text.split(",") if part.strip()]
    if not arms:
        raise ConfigError("name at least one arm, for example none,fixed:8,working_set")
    return arms


def parse_arm(text: str) -> Arm:
    """Read one arm; its settings are checked now, not when its turn comes."""
    kind, _, setting = text.partition(":")
    if kind == "none":
        return Arm(text, lambda probe: Open())
    if text == "sticky":
        return Arm(text, Sticky)
    if kind == "proxy":
        url, _, release = setting.partition("+")
        if not url.startswith(("http://", "https://")) or release not in ("", "release"):
            raise ConfigError(f"arm {text!r} is not proxy:URL or proxy:URL+release")
        base = url.rstrip("/").removesuffix("/v1")
        return Arm(text, lambda probe: Proxied(base, releases=bool(release)))
    if kind == "requests":
        limit = _count(text, setting)
        return Arm(text, lambda probe: Open(limit))
    if kind not in law_names():
        if not setting:
            names = ", ".join(law_names())
            raise ConfigError(
                f"arm {text!r} is unknown; use none, sticky, requests:N, proxy:URL, a law "
                f"({names}), or module:Class"
            )
        class_name, _, setting = setting.partition(":")
        kind = f"{kind}:{class_name}"
    settings = _settings(text, kind, setting)
    try:
        law = law_by_name(kind, **settings)
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"arm {text!r}: {error}") from error

    def build(engines: Probe | Engines | None) -> Gate:
        if isinstance(engines, Engines):
            urls = list(engines.urls)
            return Governed(Governor(urls, law=law, ranks=engines.ranks, api_key=engines.api_key))
        return Governed(Governor(law=law, probe=engines))

    return Arm(text, build)


def _settings(text: str, kind: str, setting: str) -> dict[str, float]:
    if not setting:
        return {}
    if kind == "fixed":
        return {"agents": _count(text, setting)}
    if kind == "cache_aimd" and "=" not in setting:
        interval, _, start = setting.partition("/")
        setting = f"interval_s={interval}" + (f"+start={start}" if start else "")
    settings = {}
    for pair in setting.split("+"):
        name, _, value = pair.partition("=")
        try:
            settings[name] = float(value)
        except ValueError as error:
            raise ConfigError(f"arm {text!r}: {pair!r} is not name=number") from error
    return settings


def _count(text: str, setting: str) -> int:
    if not setting.isdecimal() or int(setting) < 1:
        raise ConfigError(f"arm {text!r} needs a whole number of at least 1 after the colon")
    return int(setting)


class Open:
    """Lets every agent in; with a limit, at most so many calls at once."""

    def __init__(self, limit: int | None = None) -> None:
        self._turns = asyncio.Semaphore(limit) if limit is not None else None

    @asynccontextmanager
    async def agent(
        self, agent_id: str, *, prompt_tokens: int | None = None
    ) -> AsyncIterator[Open]:
        """One agent's whole life."""
        yield self

    @asynccontextmanager
    async def step(
        self, *, prompt_tokens: int | None = None, prompt_bytes: int | None = None
    ) -> AsyncIterator[Open]:
        """One call."""
        if self._turns is None:
            yield self
        else:
            async with self._turns:
                yield self

    @asynccontextmanager
    async def tool(self, name: str) -> AsyncIterator[None]:
        """A tool call, which nothing learns from."""
        yield

    def record(self, usage: Any) -> None:
        """Nothing learns from it."""

    def view(self) -> dict[str, float | str | None]:
        """Nothing is decided."""
        return {}

    def address_of(self, agent_id: str) -> Address | Via | None:
        """Any place will do."""
        return None

    def close(self) -> None:
        """Nothing to stop."""


class Sticky(Open):
    """Lets every agent in; each stays where its first call went, with the fewest agents."""

    def __init__(self, engines: Probe | Engines | None) -> None:
        super().__init__()
        addresses = engines.addresses if isinstance(engines, Engines) else []
        self._agents = Counter(dict.fromkeys(addresses, 0))
        self._home: dict[str, Address] = {}

    @asynccontextmanager
    async def agent(
        self, agent_id: str, *, prompt_tokens: int | None = None
    ) -> AsyncIterator[Open]:
        """One agent's whole life."""
        if not self._agents:
            yield self
            return
        home = self._home[agent_id] = min(self._agents, key=self._agents.__getitem__)
        self._agents[home] += 1
        try:
            yield self
        finally:
            self._agents[home] -= 1

    def address_of(self, agent_id: str) -> Address | None:
        """The place of its first call."""
        return self._home.get(agent_id)


class Proxied(Open):
    """Lets every agent in; a proxy before the endpoint holds their calls."""

    def __init__(self, url: str, *, releases: bool) -> None:
        super().__init__()
        self._url = url
        self._releases = releases
        self._run = uuid.uuid4().hex[:8]  # the proxy may remember the agents of other arms

    @asynccontextmanager
    async def agent(
        self, agent_id: str, *, prompt_tokens: int | None = None
    ) -> AsyncIterator[Open]:
        """One agent's whole life.

        Raises:
            EndpointError: the proxy did not take the agent's release.
        """
        yield self
        if self._releases:
            body = {"program_id": self.address_of(agent_id).program}
            status, _ = await asyncio.to_thread(post_json, f"{self._url}/programs/release", body)
            if status != 200:
                raise EndpointError(f"{self._url}/programs/release answered {status or 'nothing'}")

    def address_of(self, agent_id: str) -> Via:
        """Through the proxy, under the agent's name in this run."""
        return Via(self._url, f"{self._run}-{agent_id}")


class Governed:
    """A law in the product's Governor."""

    def __init__(self, governor: Governor) -> None:
        self._governor = governor

    @asynccontextmanager
    async def agent(
        self, agent_id: str, *, prompt_tokens: int | None = None
    ) -> AsyncIterator[_GovernedAgent]:
        """One agent's whole life."""
        async with self._governor.agent(agent_id, prompt_tokens=prompt_tokens) as agent:
            yield _GovernedAgent(agent)

    def view(self) -> dict[str, float | str | None]:
        """What the law decides right now."""
        seen = self._governor.snapshot()
        return {
            "limit_agents": seen.limit.agents,
            "limit_tokens": seen.limit.tokens,
            "hold_s_per_token": seen.limit.hold_s_per_token,
            "pressure_tokens": seen.pressure_tokens,
            "gate_hit_deficit": seen.hit_deficit,
            "reason": seen.reason,
            "poll_failures": seen.poll_failures_total,
        }

    def address_of(self, agent_id: str) -> Address | None:
        """The pool that the governor gave it."""
        return self._governor.address_of(agent_id)

    def close(self) -> None:
        """Close the governor."""
        self._governor.close()


class _GovernedAgent:
    """The Governor's agent, and what a drop-in client knows of its prompts."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    @asynccontextmanager
    async def step(
        self, *, prompt_tokens: int | None = None, prompt_bytes: int | None = None
    ) -> AsyncIterator[GateStep]:
        if prompt_bytes is None:
            async with self._agent.step(prompt_tokens) as step:
                yield step
            return
        prompt = Prompt("body", prompt_bytes)
        prompts.estimate(self._agent, prompt)
        async with self._agent.step(prompt.tokens) as step:
            yield _Learning(step, self._agent, prompt)

    def tool(self, name: str) -> AbstractAsyncContextManager[Any]:
        return self._agent.tool(name)


class _Learning:
    """Scales the next estimate by what this prompt really took."""

    def __init__(self, step: GateStep, agent: Agent, prompt: Prompt) -> None:
        self._step, self._agent, self._prompt = step, agent, prompt

    def record(self, usage: Any) -> None:
        self._step.record(usage)
        known = read_usage(usage)
        if known is not None:
            prompts.learn(self._agent, self._prompt, known)
