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

LEAVES = {"errors", "_version", "_extras", "_access", "_moved", "_outside", "_sockets", "_text"}
"""Small files that import nothing of ours but each other."""

LAYERS = (
    LEAVES,
    {"core"},
    {"probes", "recording", "sim", "wire"},
    {"runtime"},
    {"adapters", "observe", "batch", "gateway"},
    {"governor", "openai", "testing"},
    {"autorun", "daemon"},
    {"ray"},
    {"lab"},
    {"cli"},
)
"""From the bottom up: a part imports its own layer and those below it, but for the rules below."""

NEVER = {
    ("sim", "probes"), ("sim", "recording"), ("probes", "sim"), ("recording", "sim"),
    ("probes", "recording"), ("recording", "probes"), ("runtime", "sim"),
    ("adapters", "sim"), ("observe", "sim"), ("batch", "sim"), ("governor", "sim"),
    ("openai", "sim"), ("autorun", "sim"), ("adapters", "batch"), ("adapters", "observe"),
    ("observe", "adapters"), ("observe", "batch"), ("gateway", "sim"), ("gateway", "batch"),
    ("adapters", "gateway"), ("observe", "gateway"), ("batch", "gateway"),
    *((part, "wire") for part in ("probes", "recording", "sim")),
    *(("wire", part) for part in ("probes", "recording", "sim")),
    ("daemon", "adapters"), ("daemon", "batch"), ("daemon", "sim"), ("daemon", "autorun"),
}  # fmt: skip
"""The simulator and what stands in front of real engines know nothing of each other."""

UPWARDS = {
    # `run_agents(...)` makes the governor of its batch; the file is no part of any ring.
    ("batch/run.py", "governor"),
}


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
                for alias in child.names:  # `from concur_agents import core` names a part, too
                    name = f"{module}.{alias.name}"
                    is_module = module == NAME or (module.startswith(NAME) and file_of(name))
                    found.append((name if is_module else module, child.lineno, nested))
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


def layer_of(part):
    return next(n for n, parts in enumerate(LAYERS) if part in parts)


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_arrows(path):
    part, where = part_of(path), path.relative_to(PACKAGE).as_posix()
    if part == "__init__":  # the public face names everything, lazily
        return
    for module, line, _ in imports(path):
        other = own_part(module)
        if other is None or not is_part(other):  # from outside, or a name the root re-exports
            continue
        message = f"{where}:{line}: {part} must not import {module}"
        if part != other:
            assert (part, other) not in NEVER, message
        if (where, other) not in UPWARDS:
            assert layer_of(other) <= layer_of(part), message
        assert part != "core" or other == "core", message


def graph():
    """file -> files that it imports, by name or by a string given to `import_module`."""
    edges = {}
    for path in files():
        found = set()
        for module, _, _ in imports(path):
            stem = module
            while stem.startswith(NAME + "."):
                target = file_of(stem)
                if target is not None:
                    found.add(target)
                    break
                stem = stem.rpartition(".")[0]
        edges[path] = found - {path, PACKAGE / "__init__.py"}
    return edges


def rings(edges):
    """Groups of files each of which imports every other, over any number of steps (Tarjan)."""
    index, low, stack, found = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in edges.get(node, ()):
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            group = set()
            while node not in group:
                group.add(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for node in edges:
        if node not in index:
            visit(node)
    return found


def test_no_two_files_import_each_other_in_a_ring():
    """A ring has no top: none of its files can be read without the others."""
    named = [[file.relative_to(PACKAGE).as_posix() for file in ring] for ring in rings(graph())]
    assert not named


def test_rings_are_found():
    """The test of the test."""
    assert rings({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_modules_of_ours_are_not_imported_by_strings_put_together():
    """Such an import would be an arrow that the tests above cannot see."""
    for path in files():
        if path.relative_to(PACKAGE).as_posix() in ("__init__.py", "_moved.py", "cli/app.py"):
            continue  # tables of public names, of former ones, and of commands
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Call) and called(node) in ("import_module", "__import__"):
                assert NAME not in ast.unparse(node.args[0]) or isinstance(
                    node.args[0], ast.Constant
                ), f"{path.name}:{node.lineno}: import it by name"


HOMES_OF_EXTRAS = (
    *("adapters/", "cli/", "lab/", "ray.py"),
    *("gateway/app.py", "gateway/proxy.py", "gateway/relay.py", "gateway/sending.py"),
    *("sim/server.py", "sim/app.py", "sim/answers.py", "sim/sessions.py"),
)
LOADED_BY_ALL = {
    "adapters/__init__.py",
    "adapters/wrap.py",
    "adapters/http.py",
    "adapters/openai_client.py",
    "lab/bench/suite.py",
}


def test_all_but_the_homes_of_extras_load_with_what_is_always_installed():
    """A user who installs the package without extras must be able to import and use it.

    Followed from file to file over the imports at their top. A file that is about one extra (an
    adapter, the CLI, the server) may import it there, but no other file may need that one at its
    top.
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


@functools.cache
def file_of(module):
    stem = PACKAGE.parent.joinpath(*module.split("."))
    found = [path for path in (stem / "__init__.py", stem.with_suffix(".py")) if path.is_file()]
    return found[0] if found else None


def guarded(path, line):
    """Whether a line stands under `if TYPE_CHECKING:` or in a `try:` that can do without it."""
    return any(first <= line <= last for first, last in guards(path))


@functools.cache
def guards(path):
    """(first, last line) of each such block."""
    found = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.If):
            is_guard = "TYPE_CHECKING" in ast.dump(node.test)
        elif isinstance(node, ast.Try):
            is_guard = any(
                is_missing_module(handler)
                and not any(isinstance(inner, ast.Raise) for inner in ast.walk(handler))
                for handler in node.handlers
            )
        else:
            continue
        if is_guard:
            found.append((node.lineno, node.end_lineno))
    return found


def is_missing_module(handler):
    named = ast.dump(handler.type) if handler.type is not None else ""
    return "ImportError" in named or "ModuleNotFoundError" in named


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
