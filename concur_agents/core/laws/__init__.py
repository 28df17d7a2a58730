"""The laws, by name.  Each lives in one file that can be read as its paper."""

from __future__ import annotations

from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from concur_agents.core.laws.cache_aimd import CacheAimd
from concur_agents.core.laws.fixed import Fixed
from concur_agents.core.laws.gradient import Gradient
from concur_agents.core.laws.law import Law
from concur_agents.core.laws.minimum import Minimum
from concur_agents.core.laws.working_set import WorkingSet

_LAWS: dict[str, type[Any]] = {
    law.name: law for law in (WorkingSet, Fixed, CacheAimd, Gradient, Minimum)
}


def law_names() -> list[str]:
    """Names that `make_law` takes."""
    return list(_LAWS)


def law_formulas() -> dict[str, str]:
    """Each law's name and its one-line formula."""
    return {name: law.formula for name, law in _LAWS.items()}


def make_law(name: str, **config: Any) -> Law:
    """A law by name, its config as keywords: `make_law("fixed", agents=8)`.

    The two laws of `minimum` may be names, too: `make_law("minimum", second="cache_aimd")`.

    Raises:
        ValueError: unknown name or option (the nearest one is named), or a value out of range.
    """
    law = _LAWS.get(name)
    if law is None:
        raise ValueError(f"no law {name!r}{_nearest(name, list(_LAWS))}")
    known = [field.name for field in fields(law)]
    for key in config:
        if key not in known:
            raise ValueError(f"law {name!r} has no option {key!r}{_nearest(key, known)}")
    if law is Minimum:
        config = {k: make_law(v) if isinstance(v, str) else v for k, v in config.items()}
    made: Law = law(**config)
    return made


def _nearest(word: str, known: list[str]) -> str:
    close = get_close_matches(word, known, n=1)
    hint = f": did you mean {close[0]!r}?" if close else ":"
    return f"{hint} known: {', '.join(known) or 'none'}"
