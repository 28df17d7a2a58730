"""Names that changed in 0.2 and still work: each warns once, and goes with the next release.

`CHANGELOG.md` has the same table for people.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, cast

ROOT = "concur_agents"

MODULES = {
    "context": "runtime.context",
    "executor": "batch.executor",
    "frame": "observe.frame",
    "hosts": "runtime",
    "hosts.agent": "runtime.agent",
    "hosts.events": "runtime.events",
    "hosts.place": "runtime.session",
    "hosts.snapshot": "runtime.status",
    "hosts.step": "runtime.step",
    "hosts.usage": "probes.usage",
    "journal": "batch.journal",
    "live": "observe.socket",
    "metrics": "observe.metrics",
    "otel": "observe.otel",
    "pool": "batch",
    "progress": "batch.progress",
    "record": "recording",
    "report": "recording",
    "sim.door": "sim.app",
}
"""Old module -> new module, both below `concur_agents`."""


def warn(old: str, new: str) -> None:
    """Warns that `old` is now called `new`, at the line of the user's code that says it.

    Python shows such a warning by default only for lines of the program that it was started with.
    """
    warnings.warn(
        f"{old} is now called {new}; the old name goes with the next release",
        DeprecationWarning,
        stacklevel=_level_outside(),
    )


def _level_outside() -> int:
    """For `warnings.warn` in the caller: the nearest frame that is not in this package.

    Frames of the import system are not counted, as there.
    """
    own, level = __file__.rpartition("_moved")[0], 1
    frame = sys._getframe(1)
    while (outer := frame.f_back) is not None:
        frame, name = outer, outer.f_code.co_filename
        if "importlib" in name and "_bootstrap" in name:
            continue
        level += 1
        if not name.startswith(own):
            break
    return level


def attribute(module: str, names: Mapping[str, str], name: str) -> Any:
    """For the `__getattr__` of a module: the attribute that was called `name`.

    `names` maps it to its new name in the same module, or to `package.module:name` below
    `concur_agents`.

    Raises:
        AttributeError: nothing was.
    """
    new = names.get(name)
    if new is None:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    where, _, new = new.rpartition(":")
    where = f"{ROOT}.{where}" if where else module
    warn(f"{module}.{name}", f"{where}.{new}")
    return getattr(importlib.import_module(where), new)


def new_module(fullname: str) -> str | None:
    """Today's name of a module with an old name, or of one in an old package; None: neither."""
    root, _, name = fullname.partition(".")
    if root != ROOT or not name:
        return None
    package, _, last = name.rpartition(".")
    if name in MODULES:
        return f"{ROOT}.{MODULES[name]}"
    return f"{ROOT}.{MODULES[package]}.{last}" if package in MODULES else None


class _Finder:
    """Imports an old module as the new one: the same object under both names.

    A finder and a loader by its methods alone: `importlib.abc` takes a tenth of the time that the
    import of `Governor` takes.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return None if new_module(fullname) is None else ModuleSpec(fullname, cast("Any", self))

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = new_module(spec.name)
        assert new is not None
        warn(spec.name, new)
        module = importlib.import_module(new)
        self._own = module.__spec__, getattr(module, "__loader__", None)
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The import system has just written the old name into a module that has a name already.
        module.__spec__, module.__loader__ = self._own


def install() -> None:
    """Makes the old names importable."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        # First, because the search through folders would find the files of `runtime` for `hosts`
        # too, and load each a second time.
        sys.meta_path.insert(0, _Finder())
