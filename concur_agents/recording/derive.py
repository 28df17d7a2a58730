"""Files whose lines do not say who moved: format 1, and what 0.2 wrote before it had `moves`.

Where the agents stand is derived there from the calls and from who was let in. For a family that
is rough: an agent counts as acting while only its children make calls.
"""

from __future__ import annotations

from collections.abc import Mapping

from concur_agents.recording.model import AgentState, RecordedCall, Standing


def derived_moves(line: RecordedCall, agents: Mapping[str, Standing]) -> dict[str, AgentState]:
    """Where the agents stand now that `line` moved; counts their calls in `agents`."""
    moves: dict[str, AgentState] = {}
    who = agents.get(line.agent or "")
    if who is not None:
        family = agents.get(who.parent or "", who)
        waits: AgentState = "paused" if family.steps else "queued"
        if line.name == "begin_step":
            who.is_suspended = False
            who.waiting_calls += 1  # until it is found in the list, below
            moves[who.id] = waits
        elif line.name in ("end_step", "withdraw_step") and who.waiting_calls:
            who.waiting_calls -= 1  # its caller gave up; a root still waits for its place
            if not who.waiting_calls and who.parent is not None:
                moves[who.id] = "acting"
        elif line.name in ("end_step", "withdraw_step"):
            who.calls = max(0, who.calls - 1)
            if not who.calls:
                moves[who.id] = "acting"
        elif line.name in ("suspend", "resume"):
            who.is_suspended = line.name == "suspend"
            if who.state == "suspended":
                moves[who.id] = waits
        if who.is_suspended and not who.calls and not who.waiting_calls:
            moves[who.id] = "suspended"
    for agent in line.let_in:
        let_in = agents.get(agent)
        if let_in is not None and moves.get(agent, let_in.state) in ("queued", "paused"):
            let_in.calls, let_in.waiting_calls = let_in.calls + let_in.waiting_calls, 0
            moves[agent] = "reasoning" if let_in.calls else "acting"
    return moves
