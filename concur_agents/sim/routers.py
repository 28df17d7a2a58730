"""Which of several simulated engines takes a call, as different routers decide, and what they say.

A router keeps an agent on the engine that it picked first, by what the client sends with each call:

    smg      `X-SMG-Routing-Key`; answers name the engine in `x-smg-routed-worker-id`
    llm-d    `x-session-token`, which is what the answer before it had
    silent   `x-session-id`; answers say nothing of the engine
    turn     nothing: calls take turns; answers name the engine as with `smg`

Their engines show their pages at `/engine/0/metrics` and so on.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Literal

from concur_agents.sim.pages import Kind, RankHeader

__all__ = ["RouterKind", "SimulatedRouter"]

RouterKind = Literal["smg", "llm-d", "silent", "turn"]

_KEYS = {"smg": "x-smg-routing-key", "llm-d": "x-session-token", "silent": "x-session-id"}


class SimulatedRouter:
    """Picks engines.

    Args:
        engines: how many there are.
        kind: None: there is no router, and calls take turns.
        metrics: the kind of engine.
        rank_header: what the engine does about ranks.
        names_worker: without a router: answers name the engine by the server's address and rank.
    """

    def __init__(
        self,
        engines: int,
        kind: RouterKind | None,
        metrics: Kind,
        rank_header: RankHeader,
        *,
        names_worker: bool,
    ) -> None:
        self._engines, self._kind, self._names_worker = engines, kind, names_worker
        self._metrics, self._rank_header = metrics, rank_header
        self._turn = 0
        self._picked: dict[str, int] = {}

    def rank_asked(self, path: str, headers: Mapping[str, str], body: Mapping[str, Any]) -> Any:
        """The rank that a call names, if that counts; None: any engine takes it."""
        is_sglang = self._metrics == "sglang"
        if self._kind is not None or self._rank_header == "ignore":
            return None
        if is_sglang and path.endswith("/responses"):
            return None
        asked = None if self._rank_header == "body" else headers.get("x-data-parallel-rank")
        return body.get("routed_dp_rank") if asked is None and is_sglang else asked

    def pick(self, headers: Mapping[str, str]) -> int:
        """The rank of the engine that takes a call."""
        key = headers.get(_KEYS.get(self._kind or "", ""))
        if key is not None and key in self._picked:
            return self._picked[key]
        rank, self._turn = self._turn, (self._turn + 1) % self._engines
        if key is not None:
            self._picked[key] = rank
        return rank

    def said(self, base_url: str, rank: int) -> dict[str, str]:
        """The headers of an answer that the engine of this rank has given."""
        base = base_url.rstrip("/")
        if self._kind in ("smg", "turn"):
            return {"x-smg-routed-worker-id": f"{base}/engine/{rank}"}
        if self._kind == "llm-d":
            token = base64.b64encode(f"default/engine-{rank}".encode()).decode()
            self._picked[token] = rank
            return {"x-session-token": token}
        if self._kind is None and self._names_worker:
            return {"x-smg-routed-worker-id": f"{base}@{rank}"}
        return {}
