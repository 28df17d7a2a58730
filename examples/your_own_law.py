"""A law of your own: one frozen class that turns a snapshot into a limit."""

import asyncio
from dataclasses import dataclass
from typing import ClassVar

from _endpoint import endpoint

import concur_agents as ca
from concur_agents.core import LawState, Limit, Snapshot
from concur_agents.openai import AsyncOpenAI


@dataclass(frozen=True)
class MeanFootprint:
    """As many agents as fit into a share of the pool at their mean footprint."""

    name: ClassVar[str] = "mean_footprint"
    formula: ClassVar[str] = "agents = share x capacity / mean footprint"
    needs_readings: ClassVar[bool] = True

    share: float = 0.8
    """Of the KV pool; the rest is for what the steps in flight will add."""

    def initial(self) -> LawState:
        """Before anything is known."""
        return LawState(Limit(agents=2), reason="start")

    def decide(self, state: LawState, snapshot: Snapshot) -> LawState:
        """After each reading of the engine."""
        if snapshot.capacity_tokens is None or not snapshot.active:
            return state
        mean = max(1.0, snapshot.pressure_tokens / snapshot.active)
        agents = max(1.0, self.share * snapshot.capacity_tokens / mean)
        return LawState(Limit(agents=agents), reason=f"{mean:.0f} tokens each")


async def main() -> None:
    with endpoint() as (url, model):
        async with (
            ca.Governor(url, law=MeanFootprint(share=0.5), poll_interval_s=0.05) as gov,
            AsyncOpenAI(governor=gov, base_url=f"{url}/v1", api_key="-") as client,
        ):
            gov.on_event(lambda e: print(e.reason) if e.kind == "limit_changed" else None)

            async def solve(name: str) -> None:
                async with gov.agent(name):
                    for _ in range(3):
                        await client.completions.create(
                            model=model, prompt="word " * 2000, max_tokens=50
                        )

            await asyncio.gather(*(solve(f"issue-{n}") for n in range(8)))
            print(gov)


asyncio.run(main())
