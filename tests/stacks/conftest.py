"""The hook of a page with the real code of its stack, against the embedded server.

Packages that need a GPU, or gigabytes, to be imported are stood in for where they are missing: an
import of them succeeds, and whatever is taken from them does nothing.  What a hook touches, the
stack's loop and its clients, is never stood in for.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import math
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import concur_agents as ca
from concur_agents.sim.server import EmbeddedServer

PAGES = Path(__file__).parents[2] / "docs" / "frameworks"

STACKS = ("verl", "skyrl", "areal", "slime", "rllm", "nemo_gym", "harbor")
HEAVY = (
    *("torch", "torchdata", "tensordict", "transformers", "peft", "accelerate", "datasets"),
    *("ray", "pandas", "mlflow", "wandb", "tensorboard", "flask", "werkzeug"),
    *("yappi", "gprof2dot", "pydot", "zmq", "math_verify", "numba", "streamlit"),
)


def _is_dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


class _Kind(type):
    """The type of stand-ins that are classes: they may be subclassed, and have any attribute."""

    def __getattr__(cls, name: str) -> Any:
        if _is_dunder(name):
            raise AttributeError(name)
        made = stand_in(name)
        setattr(cls, name, made)
        return made

    def __call__(cls, *args: Any, **options: Any) -> Any:
        if "is_stand_in" not in vars(cls):  # a subclass of the stack's own
            return super().__call__(*args, **options)
        if len(args) == 1 and not options and callable(args[0]):
            return args[0]  # a decorator
        return stand_in(cls.__name__) if cls.__name__ != "remote" else lambda made: made

    def __getitem__(cls, key: Any) -> Any:
        return cls

    def __bool__(cls) -> bool:
        return "is_stand_in" not in vars(cls)

    def __iter__(cls) -> Any:
        return iter(())

    def __lt__(cls, other: Any) -> bool:
        return False

    __gt__ = __le__ = __ge__ = __lt__


def stand_in(name: str) -> Any:
    """A class that can be used as a class, a function, a decorator or a value, and does nothing."""
    return _Kind(name, (), {"is_stand_in": True, "__init__": lambda self, *a, **o: None})


class _Module(ModuleType):
    __version__ = "99.0"

    def __getattr__(self, name: str) -> Any:
        if _is_dunder(name):
            raise AttributeError(name)
        made = stand_in(name)
        setattr(self, name, made)
        return made


class _Distribution(importlib.metadata.Distribution):
    """What a stand-in says of itself to those who ask for its version."""

    def __init__(self, name: str) -> None:
        self._name = name

    def read_text(self, filename: str) -> str | None:
        return f"Name: {self._name}\nVersion: 99.0\n" if filename == "METADATA" else None

    def locate_file(self, path: Any) -> Any:
        return Path(path)


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules of packages that are not installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] not in MISSING:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def find_distributions(self, context: Any = None) -> Any:
        name = getattr(context, "name", None)
        return [_Distribution(name)] if name in MISSING else []

    def create_module(self, spec: Any) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None: ...


# Elsewhere than in a stack's environment nothing is stood in for.
IS_HERE = any(importlib.util.find_spec(stack) for stack in STACKS)
MISSING = {name for name in HEAVY if IS_HERE and importlib.util.find_spec(name) is None}
if MISSING:
    sys.meta_path.append(StandIns())


def pytest_configure(config):
    """What a stack warns of is its own affair."""
    if IS_HERE:
        config.addinivalue_line("filterwarnings", "ignore")


@pytest.fixture
def page(monkeypatch):
    """`page("verl", gov)`: runs the hook of a page, as it is shown; returns its names.

    `patched` names classes whose attributes the hook replaces: they are as before at the end.
    """

    def run(name, gov, *patched):
        for owner, attribute in patched:
            monkeypatch.setattr(owner, attribute, getattr(owner, attribute))
        monkeypatch.setattr(ca.Governor, "from_env", classmethod(lambda cls: gov))
        code = re.findall(r"(?ms)^```python\n(.*?)^```", (PAGES / f"{name}.md").read_text("utf-8"))
        module = ModuleType("governed")
        monkeypatch.setitem(sys.modules, "governed", module)
        exec(code[0], vars(module))
        return module

    return run


@pytest.fixture
def server():
    """The simulated engine, as fast as it can."""
    with EmbeddedServer("h100-qwen3-8b", time_scale=math.inf) as served:
        yield served


@pytest.fixture
def watch():
    """`watch(gov)`: what arrives, what steps use, who was let in or paused, by event."""

    def begin(gov):
        seen = SimpleNamespace(arrived=[], used=[], paused=[], groups={})

        def note(event):
            if event.kind == "arrived":
                seen.arrived.append(event.agent)
            if event.kind == "step_ended":
                seen.used.append(event.usage)
            if event.kind == "paused":
                seen.paused.append(event.agent)

        gov.on_event(note)
        return seen

    return begin
