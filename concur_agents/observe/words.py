"""A frame in words: what the terminal, the page and a notebook say about the same number."""

from __future__ import annotations

from concur_agents.observe.frame import Frame, PoolFrame


def short_pool(name: str) -> str:
    """The name of a pool without its scheme."""
    return name.removeprefix("http://").removeprefix("https://")


def larger_pool(frame: Frame) -> str:
    """Both numbers where calls and hits prove a larger pool than the engine reports; else ""."""
    reported, used = frame.reported_tokens, frame.capacity_tokens
    if reported is None or used is None or used <= reported:
        return ""
    return f"the engine reports {reported:,.0f} tokens; calls and hits prove more: {used:,.0f} used"


def limit_text(frame: Frame) -> str:
    """The limit as text."""
    bounds = []
    if frame.limit_tokens is not None:
        bounds.append(f"{frame.limit_tokens:,.0f} tokens of pressure")
    if frame.limit_agents is not None:
        bounds.append(f"{frame.limit_agents:.1f} agents")
    return " and ".join(bounds) or "none"


def pool_limit_text(pool: PoolFrame) -> str:
    """The limit of one of several pools as text."""
    if pool.limit_tokens is not None:
        return f"{pool.limit_tokens:,.0f} tokens"
    return "-" if pool.limit_agents is None else f"{pool.limit_agents:.0f} agents"


def clock_text(frame: Frame) -> str:
    """The time of a frame, and whether its governor has ended."""
    minutes, seconds = divmod(int(frame.at_s), 60)
    hours, minutes = divmod(minutes, 60)
    clock = f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
    return clock + (" (closed)" if frame.closed else "")


def share_text(value: float | None) -> str:
    """A share in per cent; "-": unknown."""
    return "-" if value is None else f"{value:.1%}"
