"""Which law a governor has, from its arguments."""

from __future__ import annotations

import importlib
from typing import Any

from concur_agents.core import Law, make_law
from concur_agents.errors import ConfigError

DEFAULT_LAW = "working_set"
"""The law of a governor that has an endpoint and was told nothing else."""


def law_by_name(name: str, **config: Any) -> Law:
    """A law by name, or by `package.module:Class` if it is not one of ours; its config as keywords.

    Raises:
        ValueError: unknown name or option, or a value out of range.
        TypeError: the class does not take this config.
        ConfigError: there is no such module or class, or what it makes is not a law.
    """
    module_name, colon, class_name = name.partition(":")
    if not colon:
        return make_law(name, **config)
    try:
        made = getattr(importlib.import_module(module_name), class_name)(**config)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"cannot load law {name!r}: {error}; write package.module:Class of something importable"
        ) from error
    if missing := [part for part in _LAW_PARTS if not hasattr(made, part)]:
        raise ConfigError(f"law {name!r} lacks {', '.join(missing)}; see concur_agents.core.Law")
    law: Law = made
    return law


_LAW_PARTS = ("name", "formula", "needs_readings", "initial", "decide")


def choose_law(law: str | Law | None, limit: float | None, *, has_endpoint: bool) -> Law:
    """The law in force.

    Raises:
        ConfigError: there is no such law, two were asked for, or it needs what is not there.
    """
    if limit is not None:
        if law is not None and law != "fixed":
            raise ConfigError(
                f"limit={limit!r} asks for a fixed cap and law={law!r} for something else: "
                "leave one of them out"
            )
        agents: object = limit  # whatever its annotation says
        if isinstance(agents, bool) or not isinstance(agents, int | float) or not agents >= 1:
            raise ConfigError(f"limit must be at least 1 agent, got {limit!r}")
        return make_law("fixed", agents=agents)
    if law is None:
        if not has_endpoint:
            raise ConfigError(
                "a Governor needs something to go by: the url of a serving engine "
                '(Governor("http://localhost:8000"), --engine http://localhost:8000), or a fixed '
                "cap (Governor(limit=8), --limit 8)"
            )
        law = DEFAULT_LAW
    if isinstance(law, str):
        try:
            law = law_by_name(law)
        except (ValueError, TypeError) as error:
            raise ConfigError(str(error)) from error
    if law.needs_readings and not has_endpoint:
        raise ConfigError(
            f"law {law.name!r} lives on an engine's readings, and there is no endpoint: "
            "give the Governor a url"
        )
    return law
