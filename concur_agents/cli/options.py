"""The options of a governor as options of a command; the table is `runtime.config.OPTIONS`."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import typer

from concur_agents.cli.terminal import say
from concur_agents.runtime.config import OPTIONS, PREFIX, RENAMED, Option, Setting, settings


def with_governor_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds all of them to a command, which gets the effective settings as argument `found`.

    One whose name the command uses for something else is left to the environment.
    """
    own = inspect.signature(command, eval_str=True)
    options = [option for option in OPTIONS if option.name not in own.parameters]
    added = [
        inspect.Parameter(
            option.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=typer.Option(
                None,
                *_flags(option),
                help=option.text,
                metavar=option.kind.upper(),
                show_default=False,
            ),
            annotation=list[str] | None if option.name == "url" else str | None,
        )
        for option in options
    ]
    added += [
        inspect.Parameter(
            old,
            inspect.Parameter.KEYWORD_ONLY,
            default=typer.Option(None, f"--{old.replace('_', '-')}", hidden=True),
            annotation=str | None,
        )
        for old in RENAMED
    ]
    kept = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in own.parameters.values()
        if parameter.name != "found"
    ]

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        names = (*(option.name for option in options), *RENAMED)
        given = {name: arguments.pop(name) for name in names}
        given["url"] = ",".join(given["url"] or ()) or None
        for name in ("law", "shadow"):
            import_law_from_here(given.get(name) or os.environ.get(PREFIX + name.upper(), ""))
        with warnings.catch_warnings(record=True) as former_names:
            warnings.simplefilter("always")
            found: dict[str, Setting] = settings(given, source=lambda option: option.flag)
        for each in former_names:  # Python hides them from who types commands
            say(f"concur: {each.message}", sys.stderr)
        command(found=found, **arguments)

    parameters = [*kept, *added]
    run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {item.name: item.annotation for item in parameters} | {"return": None}
    del run.__wrapped__  # because typer would read its signature
    return run


def _flags(option: Option) -> list[str]:
    """Its names; an address may be given several times, as that of one of several engines."""
    return [option.flag, "--engine"] if option.name == "url" else [option.flag]


def import_law_from_here(law: str) -> None:
    """Make modules of the current folder importable if `law` is a class in one: module:Class."""
    if ":" in law:
        import_from_here()


def import_from_here() -> None:
    """Make modules of the current folder importable, as `python -m` does."""
    here = os.getcwd()  # noqa: PTH109  # an entry of sys.path is text
    if here not in sys.path:
        sys.path.insert(0, here)
