"""The client's side of the wire, pure: stands where a `Regulator` stands, and asks a daemon.

It has the same door, and answers "later" to every question that is the daemon's; the answer comes
as a message, and `advance` returns the agents that it lets in.  What needs no answer gets none: a
call beside others of its family, a nested agent, and, while the daemon says `open`, the boundary of
an agent that is in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from concur_agents._text import wire_id
from concur_agents.core import (
    AgentId,
    Chain,
    Decision,
    LawState,
    Limit,
    Reading,
    Snapshot,
    Usage,
)
from concur_agents.wire.book import Entry
from concur_agents.wire.messages import MOST_HEADER
from concur_agents.wire.put_back import begin_passed
from concur_agents.wire.remote_link import RemoteLink

_MOST_TOKENS = 10**12


@dataclass(frozen=True, slots=True)
class SharedLaw:
    """Stands for the law of the daemon."""

    name: ClassVar[str] = "shared"
    formula: ClassVar[str] = "as the daemon decides"
    needs_readings: ClassVar[bool] = False

    def initial(self) -> LawState:
        """No limit is known here."""
        return LawState(Limit(), reason="shared")

    def decide(self, state: LawState, snapshot: Snapshot) -> LawState:
        """The same."""
        return state


class RemoteRegulator(RemoteLink):
    """The door of `Regulator`, in front of a daemon.

    Args:
        session: the name of this client, unique and new for each process.
        start_s: the time [s].
        token: for the daemon.
        safe_agents: the cap if the daemon was never reached [agents].
        wake: called when there is something to send.  It must neither block nor raise.
    """

    law = SharedLaw()
    last_snapshot: Snapshot | None = None

    def arrive(
        self,
        agent: AgentId,
        now: float,
        *,
        prompt_tokens: int | None = None,
        parent: AgentId | None = None,
        priority: int = 0,
        group: str | None = None,
        pool: str | None = None,
        waiting_since_s: float | None = None,
    ) -> Decision:
        """As `Regulator.arrive`."""
        name = self._name(agent)
        args: dict[str, Any] = {"priority": max(-(2**31), min(2**31, priority))}
        if _is_count(prompt_tokens):
            args["prompt_tokens"] = prompt_tokens
        if group is not None:
            args["group"] = wire_id(group)
        if parent is not None:
            args |= {"parent": self._name(parent), "passed": True}
        entry = self.book.arrive(name, self._seq + 1, args.get("parent"))
        if name != agent:
            self._long[name] = agent
        entry.prompt_tokens, entry.group = args.get("prompt_tokens"), args.get("group")
        entry.priority, entry.pool, entry.since_s = args["priority"], pool, now
        if self._is_anew and parent is None:
            self.book.grant(entry)
            return Decision([agent])
        self._say("arrive", name, **args)
        if self.local is None:
            return Decision([] if parent is None else [agent])
        args.pop("passed", None)
        let_in = self.local.arrive(name, now, **args)
        if parent is not None:  # it is in, and its family perhaps is not
            return Decision([agent, *self._hear([other for other in let_in if other != name])])
        return self._hear(let_in)

    def begin_step(
        self,
        agent: AgentId,
        now: float,
        *,
        prompt_tokens: int | None = None,
        prefix: Chain | None = None,
    ) -> Decision:
        """As `Regulator.begin_step`."""
        entry = self._here(agent)
        args: dict[str, Any] = {}
        if _is_count(prompt_tokens):
            args["prompt_tokens"] = entry.prompt_tokens = prompt_tokens
        if prefix:
            args["prefix"] = [(_part(part), min(tokens, _MOST_TOKENS)) for part, tokens in prefix]
        if self._may_pass(entry):
            self.book.pass_on(entry)
            self._say("begin_step", entry.agent, **args, passed=True)
            if self.local is None:
                return Decision([agent])
            return self._hear([entry.agent, *begin_passed(self.local, entry.agent, now)])
        if not entry.root.waits:
            entry.root.since_s = now
        self.book.ask(entry, self._seq + 1)
        self._say("begin_step", entry.agent, **args)
        entry.root.is_told = entry.root.is_told or self._lost_s is not None
        if self.local is None:
            return Decision()
        args.pop("prefix", None)
        return self._hear(self.local.begin_step(entry.agent, now, **args))

    def end_step(
        self,
        agent: AgentId,
        now: float,
        usage: Usage | None,
        *,
        overloaded: bool = False,
        retry_after_s: float = 0.0,
        aborted: bool = False,
    ) -> Decision:
        """As `Regulator.end_step`."""
        entry = self._here(agent)
        args: dict[str, Any] = _refusal(overloaded, retry_after_s)
        told = None
        if usage is not None and usage.is_plausible and not overloaded:
            cached = None if usage.cached_tokens is None else int(usage.cached_tokens)
            told = Usage(int(usage.prompt_tokens), int(usage.completion_tokens), cached)
            args["usage"] = (told.prompt_tokens, told.completion_tokens, cached)
        if not entry.calls:  # it waits, and its caller has gone on
            return self.withdraw_step(agent, now)
        if aborted:
            args["aborted"] = True
        self.book.end(entry, told)
        self._say("end_step", entry.agent, **args)
        return self._locally("end_step", entry.agent, now, told, aborted=aborted)

    def retry_step(
        self, agent: AgentId, now: float, *, overloaded: bool = False, retry_after_s: float = 0.0
    ) -> Decision:
        """As `Regulator.retry_step`."""
        entry = self._here(agent)
        self._say("retry_step", entry.agent, **_refusal(overloaded, retry_after_s))
        return self._locally("retry_step", entry.agent, now)

    def withdraw_step(self, agent: AgentId, now: float) -> Decision:
        """As `Regulator.withdraw_step`."""
        entry = self._here(agent)
        self.book.withdraw(entry)
        self._say("withdraw_step", entry.agent)
        return self._locally("withdraw_step", entry.agent, now)

    def suspend(self, agent: AgentId, now: float) -> Decision:
        """As `Regulator.suspend`."""
        entry = self._here(agent)
        self.book.suspend(entry, self._seq + 1)
        self._say("suspend", entry.agent)
        return self._locally("suspend", entry.agent, now)

    def resume(self, agent: AgentId, now: float) -> Decision:
        """As `Regulator.resume`."""
        entry = self._here(agent)
        self.book.resume(entry, self._seq + 1)
        self._say("resume", entry.agent)
        return self._locally("resume", entry.agent, now)

    def leave(self, agent: AgentId, now: float) -> Decision:
        """As `Regulator.leave`."""
        name = self._name(agent)
        entry = self.book.find(name)
        if entry is None:
            return Decision()
        self.book.leave(entry)
        self.done_total += entry.parent is None
        self._forget(name)
        self._say("leave", name)
        return self._locally("leave", name, now)

    def served(self, agent: AgentId, now: float, *, worker: str | None, token: str | None) -> None:
        """An answer to a call of `agent` said in its headers which engine behind the router it was.

        Args:
            worker: `x-smg-routed-worker-id`; None: it had none.
            token: `x-session-token`, likewise.
        """
        entry = self.book.find(self._name(agent))
        if entry is None or self.router is None:
            return
        said = {"worker": worker, "token": token}
        self._say(
            "served",
            entry.agent,
            **{name: text for name, text in said.items() if text and len(text) <= MOST_HEADER},
        )

    def flushed(self, now: float, pool: str | None = None) -> Decision:
        """As `Regulator.flushed`."""
        if not self._is_linked:
            self._flushes[pool] = None
        self._say("flushed", "", **({} if pool is None else {"pool": pool}))
        return Decision()

    def hold(self, name: str, now: float, timeout_s: float) -> Decision:
        """As `Regulator.hold`, for the agents of all processes."""
        self.holds[name] = now + timeout_s
        self._say("hold", "", name=wire_id(name), timeout_s=min(timeout_s, 1e6))
        return self._locally("hold", name, now, timeout_s)

    def end_hold(self, name: str, now: float) -> Decision:
        """As `Regulator.end_hold`."""
        self.holds.pop(name, None)
        self._say("end_hold", "", name=wire_id(name))
        return self._locally("end_hold", name, now)

    def tick(self, reading: Reading | None, now: float, pool: str | None = None) -> Decision:
        """Nothing: the daemon reads the engine."""
        return self.advance(now)

    # -- after a call that an exception of a signal handler cut off halfway -----------------------

    def anew(self) -> RemoteRegulator:
        """One to put the same agents into, after a decision that was cut off halfway."""
        new = RemoteRegulator(
            self.session, 0.0, token=self.token, safe_agents=self._safe_agents, wake=self.wake
        )
        new._is_anew = True
        return new

    def memory_of(self, agent: AgentId) -> tuple[Usage | None, int | None]:
        """As `Regulator.memory_of`."""
        entry = self.book.find(self._name(agent))
        return (None, None) if entry is None else (entry.context, entry.prompt_tokens)

    def take_over(self, old: RemoteRegulator, now: float) -> None:
        """As `Regulator.take_over`: a new connection has to begin with the new roster."""
        self._is_anew = False
        self._seq, self._epoch = max(self._seq, old._seq) + 1, old._epoch
        self._was_reached, self.router = old._was_reached, old.router
        self._flushes, self.holds = old._flushes, old.holds
        self.addresses, self.are_pools_said = old.addresses, old.are_pools_said
        self.daemon_law, self.done_total = old.daemon_law, old.done_total
        self._lost_s = now
        self.wake()

    # -- inside -----------------------------------------------------------------------------------

    def _may_pass(self, entry: Entry) -> bool:
        """Whether a call may leave without asking: its family has a place and keeps it."""
        root = entry.root
        if self._is_anew:
            return True
        if not root.has_place or root.has_asks:
            return False
        if root.has_calls:
            return True
        if self.local is not None or self.holds or self._is_gone(root.pool):
            return False
        return self._is_open or self._lost_s is not None

    def _locally(self, method: str, agent: str, now: float, *args: Any, **options: Any) -> Decision:
        if self.local is None:
            return Decision()
        return self._hear(getattr(self.local, method)(agent, now, *args, **options))

    def _here(self, agent: AgentId) -> Entry:
        entry = self.book.find(self._name(agent))
        if entry is None:
            raise KeyError(f"agent {agent!r} is not here: it must arrive first")
        return entry

    def _name(self, agent: AgentId) -> str:
        """An agent's id on the wire."""
        return wire_id(agent)  # a long text may be a prompt, which stays here

    def _forget(self, name: str) -> None:
        self._long.pop(name, None)
        self.whys.pop(name, None)


def _is_count(tokens: int | None) -> bool:
    return tokens is not None and 0 <= tokens <= _MOST_TOKENS


def _part(name: object) -> str:
    """The name of a part of a prompt: the same in each process."""
    return wire_id(name if isinstance(name, str) else repr(name))


def _refusal(overloaded: bool, retry_after_s: float) -> dict[str, Any]:
    if not overloaded:
        return {}
    return {"overloaded": True, "retry_after_s": min(max(0.0, retry_after_s), 1e6)}
