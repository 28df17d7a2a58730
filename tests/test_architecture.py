"""The arrows between the parts, and the purity of the core, read from every import there is.

The imports are found by parsing, so those inside functions and under TYPE_CHECKING count too.
"""

import ast
import functools
import sys
from pathlib import Path

import pytest

import concur_agents

PACKAGE = Path(concur_agents.__file__).parent
NAME = "concur_agents"

PURE = {
    "__future__",
    "bisect",
    "collections",
    "dataclasses",
    "difflib",
    "enum",
    "heapq",
    "itertools",
    "math",
    "typing",
}
"""All that the core may import from outside: no clock, no I/O, no threads, no randomness."""

ALWAYS = {"openai", "httpx", "tenacity", "prometheus_client"}
"""What is installed with the package; anything else is an extra."""

COMMON = {"errors", "_version", "_extras", "frame", "guard"}
"""Small files that import nothing of ours, for every part but the core."""

GOVERNOR = {"governor", "hosts", "poller", "context", "executor", "live"}
"""The host of a Regulator.  It reaches adapters by name only, through one door (hosts/doors.py)."""

ARROWS = {
    "errors": set(),
    "_version": set(),
    "_extras": {"errors"},
    "guard": {"errors"},
    "frame": set(),
    "core": {"core"},
    "probes": {"probes", "core"},
    "sim": {"sim", "core"},
    "bench": {"bench", "sim", "core"},
    "record": {"record", "core"},
    "config": {"core"},
    **dict.fromkeys(GOVERNOR, GOVERNOR | {"probes", "core", "record", "config"}),
}
"""Which parts a part may import.  A part that is not named here is an adapter or a program."""

NOT_FOR_ADAPTERS = {"sim", "bench", "cli"}
PROGRAMS = {"cli", "demo", "replay", "testing", "__init__", "__main__"}
"""They stand on top of everything and may import all of it, lazily where it is an extra."""


def files():
    return sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)


def part_of(path):
    """The name of the first level: `core` for core/laws/fixed.py, `governor` for governor.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@functools.cache
def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imports(path):
    """(module, lineno, nested in a function) of everything a file imports."""
    found = []

    def walk(node, nested):
        for child in ast.iter_child_nodes(node):
            inner = nested or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if isinstance(child, ast.Import):
                found.extend((alias.name, child.lineno, nested) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}:{child.lineno}: relative import"
                module = child.module or ""
                if module == NAME:  # `from concur_agents import core` names a part, too
                    names = [f"{NAME}.{alias.name}" for alias in child.names]
                    found.extend((name, child.lineno, nested) for name in names)
                else:
                    found.append((module, child.lineno, nested))
            elif (
                isinstance(child, ast.Call)
                and called(child) in ("import_module", "__import__")
                and isinstance(child.args[0], ast.Constant)
            ):
                found.append((str(child.args[0].value), child.lineno, True))
            walk(child, inner)

    walk(parsed(path), False)
    return found


def called(call):
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def own_part(module):
    """The part of ours that a module name stands for; None: it is not ours, or only the root."""
    names = module.split(".")
    return names[1] if names[0] == NAME and len(names) > 1 else None


def is_part(name):
    return (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()


@pytest.mark.parametrize(
    "path", [path for path in files() if part_of(path) == "core"], ids=lambda path: path.name
)
def test_the_core_is_pure(path):
    """Virtual time, replay and a law in another process all rest on this."""
    for module, line, _ in imports(path):
        top = module.split(".")[0]
        allowed = own_part(module) == "core" if top == NAME else top in PURE
        assert allowed, f"{path.name}:{line}: the core must not import {module}"


def test_the_core_calls_nothing_that_reaches_outside():
    """No import is needed for these, so the arrows alone would not notice."""
    for path in files():
        if part_of(path) != "core":
            continue
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Call):
                name = called(node)
                message = f"{path.name}:{node.lineno}: the core must not call {name}"
                assert name not in {"open", "print", "input", "eval", "exec", "__import__"}, message


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_arrows(path):
    part = part_of(path)
    if part in PROGRAMS:
        return
    for module, line, _ in imports(path):
        other = own_part(module)
        if other is None or not is_part(other):  # from outside, or a name the root re-exports
            continue
        if part in ARROWS:
            common = set() if part in {"core", "errors", "_version"} else COMMON
            allowed = other in ARROWS[part] | common
        else:
            allowed = other not in NOT_FOR_ADAPTERS
        assert allowed, f"{path.relative_to(PACKAGE)}:{line}: {part} must not import {module}"


def reachable(start):
    """All parts that loading one part pulls in, over any number of steps, functions included."""
    edges = {}
    for path in files():
        targets = {own_part(module) for module, _, _ in imports(path)}
        edges.setdefault(part_of(path), set()).update(filter(None, targets))
    seen, todo = set(), [start]
    while todo:
        for other in edges.get(todo.pop(), set()) - seen:
            seen.add(other)
            todo.append(other)
    return seen


def test_simulator_and_governor_never_import_each_other_not_even_through_others():
    """The same Regulator in both is what makes the simulator's word count for the real thing."""
    for host in GOVERNOR:
        assert not reachable(host) & {"sim", "bench", "cli"}, host
    assert not reachable("sim") & (GOVERNOR | {"probes", "pool", "adapters", "cli"})


HOMES_OF_EXTRAS = ("adapters/", "cli/", "replay/", "sim/server.py", "sim/door.py")
LOADED_BY_ALL = {"adapters/__init__.py", "adapters/wrap.py", "adapters/http.py"}


def test_all_but_the_homes_of_extras_load_with_what_is_always_installed():
    """Whoever installs the package alone must be able to import and use it.

    Followed from file to file over the imports at their top; a file that is about one extra (an
    adapter, the CLI, the server) may import it there, but nobody may need that file at his top.
    """
    for start in files():
        where = start.relative_to(PACKAGE).as_posix()
        if where.startswith(HOMES_OF_EXTRAS) and where not in LOADED_BY_ALL:
            continue
        needed = [
            f"{module} ({path.relative_to(PACKAGE).as_posix()}:{line})"
            for path, line, module in foreign(start, set())
        ]
        assert not needed, f"{where} needs to load: {', '.join(needed)}"


@functools.cache
def needed_at_top(path):
    return [
        (module, line)
        for module, line, nested in imports(path)
        if not nested and not guarded(path, line)
    ]


def foreign(path, seen):
    """(file, line, module) of what is neither ours nor always there, but needed to load a file."""
    seen.add(path)
    for module, line in needed_at_top(path):
        top = module.split(".")[0]
        if top == NAME:
            for target in (file_of(module), file_of(module.rpartition(".")[0])):
                if target is not None and target not in seen:
                    yield from foreign(target, seen)
        elif top not in {*sys.stdlib_module_names, *ALWAYS}:
            yield path, line, module


def file_of(module):
    stem = PACKAGE.parent.joinpath(*module.split("."))
    found = [path for path in (stem / "__init__.py", stem.with_suffix(".py")) if path.is_file()]
    return found[0] if found else None


def guarded(path, line):
    """Whether a line stands under `if TYPE_CHECKING:` or in a `try:` that can do without it."""
    for node in ast.walk(parsed(path)):
        if not (isinstance(node, ast.If | ast.Try) and node.lineno <= line <= node.end_lineno):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return True
        if isinstance(node, ast.Try):
            for handler in node.handlers:
                raises = any(isinstance(inner, ast.Raise) for inner in ast.walk(handler))
                named = ast.dump(handler.type) if handler.type is not None else ""
                if not raises and ("ImportError" in named or "ModuleNotFoundError" in named):
                    return True
    return False


def test_the_parser_sees_imports_inside_functions(tmp_path):
    """The test of the test: what it could not see would not be held."""
    path = tmp_path / "sly.py"
    path.write_text(
        "def f():\n"
        "    import time\n"
        "    from concur_agents import sim\n"
        "    from concur_agents.governor import Governor\n"
        "    importlib.import_module('threading')\n"
    )
    assert [module for module, _, _ in imports(path)] == [
        "time",
        "concur_agents.sim",
        "concur_agents.governor",
        "threading",
    ]
