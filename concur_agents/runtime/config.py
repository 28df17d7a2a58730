"""The options of a governor by one set of names: in code, as `CONCUR_*`, on the command line.

`max_wait_s` is `Governor(max_wait_s=60)`, `CONCUR_MAX_WAIT_S=60` and `--max-wait-s 60`. What is
given on the command line (or to `Governor.from_env`) goes before the environment, and that before
the defaults. A name that is none of ours is an error that tells the nearest one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from concur_agents import _moved
from concur_agents.core import Law
from concur_agents.errors import ConfigError
from concur_agents.probes.connection import read_headers
from concur_agents.runtime.law_choice import law_by_name

PREFIX = "CONCUR_"

NOT_OURS = (
    "CONCUR_TEST_",
    "CONCUR_ENGINE_",
    "CONCUR_DYNAMO_",
    "CONCUR_SGLANG_",
    "CONCUR_RUN_",
    "CONCUR_GATEWAY_",
    "CONCUR_WATCH_",
)
"""Beginnings of names that are no options of a governor: of tests, and of commands of ours."""


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise ValueError("it must be above 0")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError("it must be at least 1")
    return value


def _cap(text: str) -> float:
    value = float(text)
    if not value >= 1:
        raise ValueError("it must be at least 1")
    return int(value) if value.is_integer() else value


def _ungoverned(text: str) -> str:
    if text not in ("pass", "agent", "error"):
        raise ValueError("it is 'pass', 'agent' or 'error'")
    return text


def _routes(text: str) -> tuple[str, ...]:
    paths = tuple(path.strip() for path in text.split(",") if path.strip())
    if not all(path.strip("/") for path in paths):
        raise ValueError("it is paths such as /rollout/step, separated by commas")
    return paths


def _url(text: str) -> str | tuple[str, ...]:
    urls = tuple(url.strip() for url in text.split(",") if url.strip())
    return urls if len(urls) > 1 else text


def _pools(text: str) -> tuple[str, ...] | dict[str, str]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    named = dict(part.split("=", 1) for part in parts if not part.startswith("http"))
    if named and len(named) < len(parts):
        raise ValueError("it is addresses, or name=address of each, separated by commas")
    return named or tuple(parts)


def _headers(text: str) -> str:
    try:
        read_headers(text)
    except ConfigError as error:
        raise ValueError(f"it cannot be used: {error}") from None
    return text


def _verify(text: str) -> bool | str:
    lower = text.lower()
    return lower == "true" if lower in ("true", "false") else text


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a governor."""

    name: str
    """As a keyword of `Governor`."""
    parse: Callable[[str], Any]
    """From text. Raises ValueError with what was wished for."""
    default: Any
    text: str
    """One line for `--help` and the docs."""
    fallback: str | None = None
    """A variable of another name, read where ours is not set."""
    secret: bool = False
    kind: str = "text"
    """What is expected, for `--help`."""

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return _variable(self.name)

    @property
    def flag(self) -> str:
        """Its option on the command line."""
        return "--" + self.name.replace("_", "-")


OPTIONS: tuple[Option, ...] = (
    Option(
        "url",
        _url,
        None,
        "Base URL of the serving engine, with or without /v1; of several, with commas.",
        fallback="OPENAI_BASE_URL",
    ),
    Option(
        "pools",
        _pools,
        None,
        "The engines behind the URL, which is a router that picks: their own addresses, with "
        "commas; or name=address.",
    ),
    Option(
        "ranks",
        _count,
        None,
        "Data-parallel engines behind each URL; 1: one pool, whatever there is. None: found out.",
        kind="engines",
    ),
    Option("api_key", str, None, "Bearer token for its metrics page.", secret=True),
    Option(
        "metrics_headers",
        _headers,
        None,
        "Further headers for its metrics page, as name=value,name=value.",
        secret=True,
    ),
    Option(
        "metrics_verify",
        _verify,
        True,
        "File of the CA that signed its certificate; 'false': any certificate.",
    ),
    Option("law", str, None, "Name of the law; `concur laws` lists them."),
    Option("law_options", str, None, "Options of that law, as name=value,name=value."),
    Option("limit", _cap, None, "A fixed cap, in place of a law.", kind="agents"),
    Option("poll_interval_s", _positive, 1.0, "Time between readings.", kind="seconds"),
    Option(
        "max_wait_s", _positive, None, "An agent that waited longer goes first.", kind="seconds"
    ),
    Option("max_open", _count, None, "Most agents begun and not finished.", kind="agents"),
    Option(
        "blind_after_s",
        _positive,
        30.0,
        "After so long without a reading the safe limit applies.",
        kind="seconds",
    ),
    Option("blind_agents", _count, 8, "The safe limit.", kind="agents"),
    Option(
        "ungoverned",
        _ungoverned,
        "pass",
        "A call outside of any agent: 'pass', 'agent' or 'error'.",
    ),
    Option(
        "routes",
        _routes,
        (),
        "Further paths of LLM calls beside the usual ones, separated by commas.",
    ),
    Option("record", str, None, "File for the flight recorder; {pid} stands for the process."),
    Option("shadow", str, None, "Law that decides beside the one in force, without effect."),
    Option(
        "socket",
        str,
        None,
        "Unix socket for `concur watch` to look on: a path, or 'auto'. None: nothing listens.",
    ),
    Option(
        "shared",
        str,
        None,
        "The daemon that decides for many processes: 'auto', unix:PATH or tcp://HOST:PORT.",
    ),
    Option("token", str, None, "What that daemon asks for over TCP.", secret=True),
)

_BY_NAME = {option.name: option for option in OPTIONS}

OPTION_NAMES = frozenset(_BY_NAME)
"""All names."""


@dataclass(frozen=True, slots=True)
class Setting:
    """The effective value of one option, and where it is from."""

    option: Option
    value: Any
    source: str
    """'default', the variable's name, or whatever the caller named it."""

    @property
    def shown(self) -> str:
        """The value for people; a secret is not shown."""
        if self.value is None:
            return "-"
        if self.option.secret:
            return "(set)"
        return str(self.value)


def settings(
    given: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    *,
    source: Callable[[Option], str] = lambda option: option.name,
) -> dict[str, Setting]:
    """The effective options.

    Args:
        given: what goes before the environment, by name; None as a value: not given. Text is
            parsed as from the environment.
        environ: None: this process's.
        source: what to call the origin of something `given`.

    Raises:
        ConfigError: an unknown name, a value out of its range, or options that contradict.
    """
    environ = os.environ if environ is None else environ
    given = {name: value for name, value in (given or {}).items() if value is not None}
    given, environ = _renamed(given, lambda name: name), _renamed(environ, _variable)
    for name in given:
        if name not in _BY_NAME:
            raise ConfigError(unknown_option(name))
    variables = [option.variable for option in OPTIONS]
    for name in environ:
        if name.startswith(PREFIX) and name not in variables and not name.startswith(NOT_OURS):
            raise ConfigError(f"no option {name}{_nearest(name, variables)}")
    found = {}
    for option in OPTIONS:
        found[option.name] = _setting(option, given, environ, source)
    _check(found)
    return found


RENAMED = {"max_started": "max_open"}
"""Options that had another name before 0.2."""


def _variable(name: str) -> str:
    return PREFIX + name.upper()


def _renamed(found: Mapping[str, Any], spell: Callable[[str], str]) -> dict[str, Any]:
    """`found` under today's names; warns of old ones."""
    current = dict(found)
    for old, new in RENAMED.items():
        if spell(old) in current:
            _moved.warn(spell(old), spell(new))
            current.setdefault(spell(new), current.pop(spell(old)))
    return current


def _setting(
    option: Option,
    given: Mapping[str, Any],
    environ: Mapping[str, str],
    source: Callable[[Option], str],
) -> Setting:
    if option.name in given:
        value, origin = given[option.name], source(option)
        if not isinstance(value, str):
            return Setting(option, value, origin)
    elif environ.get(option.variable):
        value, origin = environ[option.variable], option.variable
    elif option.fallback and environ.get(option.fallback):
        value, origin = environ[option.fallback], option.fallback
    else:
        return Setting(option, option.default, "default")
    try:
        return Setting(option, option.parse(value), origin)
    except ValueError as error:
        shown = "(a secret)" if option.secret else repr(value)
        raise ConfigError(f"{origin} is {shown}: {_wish(option, error)}") from None


def _wish(option: Option, error: ValueError) -> str:
    said = str(error)
    return said if said.startswith("it ") else f"it must be a number of {option.kind}"


def _check(found: dict[str, Setting]) -> None:
    law, limit, options = found["law"], found["limit"], found["law_options"]
    if limit.value is not None and law.value not in (None, "fixed"):
        raise ConfigError(
            f"{limit.source}={limit.value} asks for a fixed cap and {law.source}={law.value} for "
            "something else: leave one of them out"
        )
    if limit.value is not None and options.value is not None:
        raise ConfigError(
            f"{limit.source} is a whole law, and {options.source} has options for another: leave "
            "one of them out"
        )
    if options.value is not None and not isinstance(law.value, str):
        raise ConfigError(f"{options.source} needs the name of a law: set {law.option.variable}")
    for setting in (law, found["shadow"]):
        if isinstance(setting.value, str):
            own = options.value if setting is law else None
            _law(setting.value, own, setting.source, options.source)


def governor_options(found: Mapping[str, Setting]) -> dict[str, Any]:
    """Settings as keywords of `Governor`."""
    keywords = {name: setting.value for name, setting in found.items() if name != "law_options"}
    law, options = found["law"], found["law_options"]
    if options.value is not None:
        keywords["law"] = _law(law.value, options.value, law.source, options.source)
    if keywords["url"] is None:
        keywords |= {"api_key": None, "ranks": None, "pools": None}
        keywords |= {"metrics_headers": None, "metrics_verify": True}
    return keywords


def environment(found: Mapping[str, Setting]) -> dict[str, str]:
    """Settings as variables for another process; what is a default or not set is left out."""
    return {
        setting.option.variable: _as_text(setting.value)
        for setting in found.values()
        if setting.source != "default" and setting.value is not None
    }


def _as_text(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{name}={item}" for name, item in value.items())
    return ",".join(value) if isinstance(value, tuple) else str(value)


def parse_options(pairs: list[str]) -> dict[str, Any]:
    """`["agents=8"]` as keywords for `make_law`.

    Raises:
        ConfigError: one of them is not name=value.
    """
    config: dict[str, Any] = {}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        if not sign or not name.strip():
            raise ConfigError(f"an option of a law is given as name=value, got {pair!r}")
        config[name.strip()] = _value(text.strip())
    return config


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)


def _law(name: str, options: str | None, source: str, options_source: str) -> Law:
    pairs = [pair for pair in (options or "").split(",") if pair.strip()]
    try:
        return law_by_name(name, **parse_options(pairs))
    except ValueError as error:
        where = options_source if "option" in str(error) else source
        raise ConfigError(f"{where}: {error}") from None
    except TypeError as error:
        raise ConfigError(f"{options_source}={options!r} cannot be used: {error}") from None


def unknown_option(name: str, *, also: Iterable[str] = ()) -> str:
    """The message for an option that does not exist."""
    if name == "law_options":
        return "law_options is for text: in code, give law=make_law(name, option=value)"
    return f"no option {name!r}{_nearest(name, [*_BY_NAME, *also])}"


def _nearest(word: str, known: list[str]) -> str:
    close = get_close_matches(word, known, n=1, cutoff=0.5)
    return f": did you mean {close[0]}?" if close else f"; there are {', '.join(known)}"
