"""A call of the engine: what the client asks for, what happens to it, what the engine remembers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from concur_agents.sim.cache import Holding, Run
from concur_agents.sim.profile import Profile


@dataclass(slots=True, eq=False)
class Request:
    """One call of the engine. The engine fills in the fields below the line."""

    id: str
    prompt: tuple[Run, ...]
    output: Run
    """What will be generated; its `tokens` are the length of the answer."""
    at_s: float
    """When the client sends it."""

    cached_tokens: int | None = field(default=None, init=False)
    """Prompt tokens found in the cache when first let in, in its host tier too."""
    restored_tokens: int = field(default=0, init=False)
    """Those of them that came from the host tier."""
    scheduled_s: float | None = field(default=None, init=False)
    first_token_s: float | None = field(default=None, init=False)
    finish_s: float | None = field(default=None, init=False)

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt."""
        return sum(run.tokens for run in self.prompt)

    def check(self, profile: Profile) -> None:
        """Refuse what an engine of that profile cannot compute.

        Raises:
            ValueError: it is empty, or can never fit.
        """
        total = self.prompt_tokens + self.output.tokens
        if self.prompt_tokens < 1 or self.output.tokens < 1:
            raise ValueError(
                f"need at least 1 prompt and 1 output token, "
                f"got {self.prompt_tokens} and {self.output.tokens}"
            )
        if total > profile.max_model_len:
            raise ValueError(
                f"request of {total} tokens is longer than max_model_len {profile.max_model_len}"
            )
        if total > profile.capacity_tokens:
            raise ValueError(
                f"request of {total} tokens can never fit into a pool of "
                f"{profile.capacity_tokens} tokens"
            )


class Event(NamedTuple):
    """Something that happened to a request at the end of a step (a preemption: at its start)."""

    kind: Literal["first_token", "finished", "preempted"]
    at_s: float
    request: Request


class Sequence:
    """What the engine remembers of an unfinished request."""

    __slots__ = (
        "cancelled",
        "end_tick",
        "generated",
        "holding",
        "joined_tick",
        "known",
        "order",
        "prompt_tokens",
        "request",
        "runs",
    )

    def __init__(self, request: Request) -> None:
        self.request = request
        self.runs = (*request.prompt, request.output)
        self.prompt_tokens = request.prompt_tokens
        self.known = self.prompt_tokens
        """Tokens to prefill: the prompt, and what was generated before a preemption."""
        self.generated = 0
        """Output tokens, as of the last time it joined or left the decodes."""
        self.holding: Holding | None = None
        """Its place in the cache while it runs."""
        self.joined_tick: int | None = None
        """While it decodes: the tick of its first decode step."""
        self.end_tick = -1
        """While it decodes: the tick that generates its last token."""
        self.order = 0
        """Counts admissions."""
        self.cancelled = False
