"""The hooks that `concur run` puts into a program: they govern openai and LangGraph on import.

When the program imports `openai`, the clients that it makes are governed. When it imports
LangGraph, each graph that it compiles is wrapped, and each run of a graph is an agent. Where other
agents begin and end is inferred, by the rules in `implicit.py`.

Every Python process below `concur run` imports this file, so its own imports must be few.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType

    from concur_agents.autorun.implicit import ImplicitGovernor

PARENT = "CONCUR_RUN_PARENT"
"""The environment variable with the process id of `concur run`."""


def hook() -> None:
    """Installs the hooks: now for modules that are loaded, for others when they are."""
    for name, change in _CHANGES.items():
        if name in sys.modules:  # because Python's own start may load it
            change(sys.modules[name])
    sys.meta_path.insert(0, _Finder())


def governor() -> ImplicitGovernor | None:
    """The governor of this process, made from the environment at the first call.

    None: that failed. The reason is printed once, and the program runs ungoverned.
    """
    with _making:
        if not _made:
            try:
                _made.append(_make())
            except Exception as error:
                _made.append(None)
                _say(f"this process runs ungoverned: {error}")
        return _made[0]


_making = threading.Lock()
_made: list[ImplicitGovernor | None] = []


def _make() -> ImplicitGovernor:
    from concur_agents.autorun.implicit import ImplicitGovernor

    options: dict[str, Any] = {}
    for name in ("record", "socket"):
        path = os.environ.get(f"CONCUR_{name.upper()}")
        if not path or path == "auto" or "{pid}" in path:
            continue
        if str(os.getppid()) != os.environ.get(PARENT):
            # A process below the first one, which must not write to the same file.
            stem, dot, suffix = path.rpartition(".")
            options[name] = f"{stem}-{{pid}}.{suffix}" if dot else path + "-{pid}"
    if not os.environ.get("CONCUR_UNGOVERNED"):
        options["ungoverned"] = "agent"
    return ImplicitGovernor.from_env(**options)


def _say(text: str) -> None:
    """Prints a line on stderr, because the program may configure its logs in any way."""
    sys.stderr.write(f"concur run: {text}\n")


class _Finder:
    """Finds the modules in `_CHANGES` as before, and changes them once they are loaded."""

    def __init__(self) -> None:
        self._busy = threading.local()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """See `importlib.abc.MetaPathFinder`."""
        change = _CHANGES.get(name)
        if change is None or getattr(self._busy, "now", False):
            return None
        import importlib.util

        self._busy.now = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._busy.now = False
        if spec is not None and spec.loader is not None:
            _change_after_loading(spec.loader, change)
        return spec


def _change_after_loading(loader: Any, change: Callable[[ModuleType], None]) -> None:
    load = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        del loader.exec_module  # restores the loader
        load(module)
        try:
            change(module)
        except Exception as error:
            _say(f"{module.__name__} is not governed: {error}")

    loader.exec_module = exec_module  # on this loader only, which no other module has


def _change_openai(openai: Any) -> None:
    for client in (openai.OpenAI, openai.AsyncOpenAI):
        client.__init__ = _governed_init(client.__init__)
        client.request = _in_one_step(client.request)


def _governed_init(init: Any) -> Any:
    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **options: Any) -> None:  # noqa: N807
        init(self, *args, **options)
        found = governor()
        if found is not None:
            from concur_agents.adapters.http import govern

            self._client = govern(found, self._client)

    return __init__


def _in_one_step(request: Any) -> Any:
    @functools.wraps(request)
    def request_in_one_step(self: Any, *args: Any, **options: Any) -> Any:
        if governor() is None:
            return request(self, *args, **options)
        from concur_agents.adapters.openai_client import one_step

        return one_step(request)(self, *args, **options)

    return request_in_one_step


def _change_langgraph(state: Any) -> None:
    compile_ = state.StateGraph.compile

    @functools.wraps(compile_)
    def compile_governed(self: Any, *args: Any, **options: Any) -> Any:
        graph = compile_(self, *args, **options)
        found = governor()
        return graph if found is None else found.wrap(graph)

    state.StateGraph.compile = compile_governed


def _change_pool(pool: Any) -> None:
    run = pool._WorkItem.run

    @functools.wraps(run)
    def run_and_end(self: Any, *args: Any) -> None:
        try:
            run(self, *args)
        finally:
            if _made and _made[0] is not None:
                _made[0].end_work()

    pool._WorkItem.run = run_and_end


_CHANGES: dict[str, Callable[[Any], None]] = {
    "concurrent.futures.thread": _change_pool,
    "openai": _change_openai,
    "langgraph.graph.state": _change_langgraph,
}
"""Module -> the change that is made once it is loaded."""
