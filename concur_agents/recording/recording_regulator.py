"""A Regulator whose deciding calls are recorded."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from concur_agents.core import (
    AnyRegulator,
    Decision,
    Fleet,
    Law,
    Present,
    Reading,
    Regulator,
    Usage,
    regrouped,
)
from concur_agents.recording.model import AgentState, Header, RecordedCall, Shadow, Tick
from concur_agents.recording.standing import moves_of, view_at_tick
from concur_agents.recording.values import describe_law
from concur_agents.recording.writer import MAX_BYTES, Recorder

_ASK_TO_GO_ON = ("arrive", "begin_step", "resume")
"""Calls by which an agent asks to be let in."""


class RecordingRegulator:
    """Passes each deciding call on to a Regulator, and notes it with its answer.

    Reads (`view`, `explain`, `next_wake`, ...) go straight to the Regulator and are not recorded,
    because they change nothing. The shadow law, if there is one, gets each snapshot after the law
    in force; its decisions have no effect.
    """

    def __init__(
        self,
        regulator: Regulator | Fleet,
        note: Callable[[RecordedCall], object] | None = None,
        *,
        shadow: Law | None = None,
    ) -> None:
        self.inner: Any = regulator
        self.note = note
        self.shadow_law = shadow
        self.shadow: Shadow | None = None
        if shadow is not None:
            self.shadow = Shadow(law=shadow.name, state=shadow.initial())
        self._reason: str | None = None
        self._pools: dict[str, str] = {}  # of agents: the pool last noted

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def arrive(self, agent: str, now: float, **options: Any) -> Decision:
        """See `Regulator.arrive`."""
        if options.get("group", "") is None:
            del options["group"]  # recordings of one pool stay as they were
        return self._pass_on("arrive", agent, now, options)

    def begin_step(self, agent: str, now: float, **options: Any) -> Decision:
        """See `Regulator.begin_step`."""
        return self._pass_on("begin_step", agent, now, options)

    def found(self, agent: str, now: float, *, pool: str) -> Decision:
        """See `Fleet.found`."""
        return self._pass_on("found", agent, now, {"pool": pool})

    def end_step(
        self, agent: str, now: float, usage: Usage | None, *, aborted: bool = False, **options: Any
    ) -> Decision:
        """See `Regulator.end_step`."""
        if aborted:  # left out if not: recordings without such calls stay as they were
            options["aborted"] = True
        return self._pass_on("end_step", agent, now, {**options, "usage": usage})

    def retry_step(self, agent: str, now: float, **options: Any) -> Decision:
        """See `Regulator.retry_step`."""
        return self._pass_on("retry_step", agent, now, options)

    def withdraw_step(self, agent: str, now: float) -> Decision:
        """See `Regulator.withdraw_step`."""
        return self._pass_on("withdraw_step", agent, now, {})

    def suspend(self, agent: str, now: float) -> Decision:
        """See `Regulator.suspend`."""
        return self._pass_on("suspend", agent, now, {})

    def resume(self, agent: str, now: float) -> Decision:
        """See `Regulator.resume`."""
        return self._pass_on("resume", agent, now, {})

    def admit(self, agent: str, now: float, pool: str | None = None) -> Decision:
        """See `Regulator.admit`."""
        return self._pass_on("admit", agent, now, _of(pool))

    def leave(self, agent: str, now: float) -> Decision:
        """See `Regulator.leave`."""
        return self._pass_on("leave", agent, now, {})

    def advance(self, now: float) -> Decision:
        """See `Regulator.advance`."""
        return self._noted("advance", now, self.inner.advance(now))

    def flushed(self, now: float, pool: str | None = None) -> Decision:
        """See `Regulator.flushed`."""
        return self._noted("flushed", now, self.inner.flushed(now, pool), options=_of(pool))

    def hold(self, name: str, now: float, timeout_s: float) -> Decision:
        """See `Regulator.hold`."""
        let_in = self.inner.hold(name, now, timeout_s)
        return self._noted("hold", now, let_in, options={"name": name, "timeout_s": timeout_s})

    def end_hold(self, name: str, now: float) -> Decision:
        """See `Regulator.end_hold`."""
        return self._noted("end_hold", now, self.inner.end_hold(name, now), options={"name": name})

    def add_pool(self, name: str, now: float) -> Decision:
        """See `Fleet.add_pool`."""
        return self._noted("add_pool", now, self.inner.add_pool(name, now), options={"name": name})

    def remove_pool(self, name: str, now: float) -> Decision:
        """See `Fleet.remove_pool`."""
        let_in = self.inner.remove_pool(name, now)
        return self._noted("remove_pool", now, let_in, options={"name": name})

    def regroup(
        self,
        now: float,
        make: Callable[[Law, float, Sequence[str]], AnyRegulator],
        names: Sequence[str],
        agents: Sequence[Present],
        readings: Mapping[str | None, Reading],
    ) -> Decision:
        """Another regulator takes the place of this one: see `core.regrouped`.

        Args:
            now: the time [s].
            make: makes it, with these pools.
            names: of its pools; empty: there is one.
            agents: all that are here.
            readings: of new pools.
        """
        self.inner, let_in = regrouped(
            self.inner, lambda law, now: make(law, now, names), agents, now, readings=readings
        )
        options = {"names": list(names), "agents": list(agents), "readings": dict(readings)}
        self._pools.clear()
        everyone = tuple(who.agent for who in agents)
        return self._noted("regroup", now, Decision(let_in), options=options, everyone=everyone)

    def tick(self, reading: Reading | None, now: float, pool: str | None = None) -> Decision:
        """See `Regulator.tick`."""
        before = self.inner.last_snapshot
        let_in: Decision = self.inner.tick(reading, now, pool)
        snapshot = self.inner.last_snapshot
        is_new = snapshot is not None and snapshot is not before and snapshot.at_s == now
        fresh = snapshot if is_new else None
        if self.shadow_law is not None and self.shadow is not None and fresh is not None:
            state = self.shadow_law.decide(self.shadow.state, fresh)
            self.shadow = Shadow(law=self.shadow_law.name, state=state)
        if self.note is None:
            return let_in
        tick = Tick(
            state=self.inner.state.to_dict(),
            view=view_at_tick(self.inner, now, pool),
            snapshot=fresh,
            shadow=None if self.shadow is None else self.shadow.state.to_dict(),
        )
        options = {"reading": reading, **_of(pool)}
        return self._noted("tick", now, let_in, options=options, tick=tick)

    def _pass_on(self, name: str, agent: str, now: float, options: dict[str, Any]) -> Decision:
        call: Callable[..., Decision] = getattr(self.inner, name)
        if self.note is None:
            return call(agent, now, **options)
        try:
            let_in = call(agent, now, **options)
        except Exception as error:
            kind = type(error).__name__
            self.note(RecordedCall(name=name, now=now, agent=agent, options=options, error=kind))
            raise
        why: dict[str, Any] = {}
        if name in _ASK_TO_GO_ON and agent not in let_in:
            reason = self.inner.why(agent, now)
            why = {} if reason is None else {"why": reason.numbers, "cause": reason.cause}
        everyone = self._elsewhere() if name == "found" else ()
        return self._noted(
            name, now, let_in, agent=agent, options=options, everyone=everyone, **why
        )

    def _elsewhere(self) -> tuple[str, ...]:
        """The agents whose pool is another than was noted last, and who were in no transition."""
        noted = self._pools.items()
        return tuple(agent for agent, pool in noted if self.inner.pool_of(agent) != pool)

    def _noted(
        self,
        name: str,
        now: float,
        let_in: Decision,
        *,
        everyone: tuple[str, ...] = (),
        **rest: Any,
    ) -> Decision:
        """`let_in`, once the call is noted.

        Args:
            name: of the call.
            now: its time [s].
            let_in: its answer.
            everyone: agents that may have moved without a transition.
            rest: the other fields of a `RecordedCall`.
        """
        if self.note is not None:
            moves = moves_of(self.inner, let_in, rest.get("agent"), *everyone)
            reason, pools = self._new_reason(), self._new_pools(moves)
            if name == "leave":
                self._pools.pop(cast("str", rest.get("agent")), None)
            self.note(
                RecordedCall(
                    name=name,
                    now=now,
                    let_in=tuple(let_in),
                    moves=moves,
                    pools=pools,
                    reason=reason,
                    **rest,
                )
            )
        return let_in

    def _new_pools(self, moves: dict[str, AgentState]) -> dict[str, str]:
        """The pools of the agents that are active, where they differ from what was noted last."""
        new: dict[str, str] = {}
        for agent, state in moves.items():
            pool = self.inner.pool_of(agent) if state in ("reasoning", "acting") else None
            if pool is not None and pool != self._pools.get(agent):
                new[agent] = pool
        self._pools |= new
        return new

    def _new_reason(self) -> str | None:
        """Code of the decision in force; None: the same as at the call before."""
        reason: str = self.inner.reason
        if reason == self._reason:
            return None
        self._reason = reason
        return reason


def _of(pool: str | None) -> dict[str, Any]:
    return {} if pool is None else {"pool": pool}


def record(
    regulator: Regulator | Fleet,
    path: str | os.PathLike[str],
    *,
    start_s: float = 0.0,
    shadow: Law | None = None,
    max_bytes: int = MAX_BYTES,
    **options: Any,
) -> tuple[RecordingRegulator, Recorder]:
    """Records a Regulator or a Fleet that a host of yours drives; a `Governor` has `record=`.

    Args:
        regulator: a fresh one; from here on call the returned `RecordingRegulator` instead.
        path: see `Recorder`.
        start_s: the `start_s` that the Regulator was made with [s].
        shadow: a law that decides beside the Regulator's own, without effect.
        max_bytes: see `Recorder`.
        options: the other options that the Regulator was made with: `max_wait_s`, `max_open`, ...

    Returns:
        The regulator to call, and the recorder to close at the end.

    Raises:
        ConfigError: see `Recorder`.
    """
    if isinstance(regulator, Fleet):
        options["pools"] = [pool.name for pool in regulator.pools]
    header = Header(
        start_s=start_s,
        now=start_s,
        unix_s=time.time(),
        law=describe_law(regulator.law),
        regulator=options,
        shadow=None if shadow is None else describe_law(shadow),
    )
    recorder = Recorder(path, header, max_bytes=max_bytes)
    return RecordingRegulator(regulator, recorder.note, shadow=shadow), recorder
