"""What users install: its metadata, its files, its command, and what it does not drag in."""

import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import concur_agents
from concur_agents._extras import EXTRAS
from concur_agents.cli.app import COMMANDS, load_command

ROOT = Path(__file__).parent.parent
LOCKS = sorted((ROOT / "locks").glob("*.txt"))

IN_ALL = sorted(EXTRAS.keys() - {"ray"})
"""Ray has an environment of its own (`scripts/stacks ray`)."""

FRAMEWORKS = {
    "main": [
        *IN_ALL,
        "agents",
        "deepagents",
        "inspect_ai",
        "langchain",
        "pydantic_ai",
        "smolagents",
    ],
    "floor": IN_ALL,
    "litellm": ["litellm", "mcp", "minisweagent", "starlette", "uvicorn", "typer"],
}


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a fresh interpreter that sees what a user's would: no PYTHON* variables, no cwd."""
    return subprocess.run(
        [sys.executable, "-I", *arguments], capture_output=True, text=True, check=False, timeout=60
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def pins(lock: Path) -> dict[str, set[str]]:
    """Package -> the versions pinned (several where they differ by platform or Python)."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"(?m)^([a-z0-9][\w.-]*)==([^\s;]+)", lock.read_text("utf-8")):
        found.setdefault(name, set()).add(version)
    return found


def test_the_version_is_the_same_in_code_metadata_and_changelog() -> None:
    version = concur_agents.__version__
    assert importlib.metadata.version("concur-agents") == version
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text("utf-8")


def test_importing_needs_only_the_core_dependencies_and_prints_nothing() -> None:
    """A user without extras would get an ImportError, or pay for what is not used."""
    ran = run_python(
        "-c", "import concur_agents, sys, json; json.dump(sorted(sys.modules), sys.stderr)"
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == ""
    loaded = {name.partition(".")[0] for name in json.loads(ran.stderr)}
    assert not loaded & {*EXTRAS, *FRAMEWORKS["main"], *FRAMEWORKS["litellm"], "numpy"}


def test_the_wheel_holds_every_file_of_the_package_and_no_other(wheel: zipfile.ZipFile) -> None:
    """Profiles, traces or py.typed left out would only be missed by users, never in a checkout."""
    package = ROOT / "concur_agents"
    on_disk = {
        path.relative_to(ROOT).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert shipped == on_disk
    assert "concur_agents/py.typed" in shipped
    for kind in ("concur_agents/sim/profiles/*.toml", "concur_agents/sim/data/*.jsonl.gz"):
        assert any(Path(name).match(kind) for name in shipped), kind


def test_the_wheel_is_small_and_holds_no_tests_and_no_benchmarks(wheel: zipfile.ZipFile) -> None:
    """It is installed into every container of agents."""
    assert wheel.filename is not None
    assert Path(wheel.filename).stat().st_size <= 1_500_000
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"concur_agents"}
    assert not [name for name in wheel.namelist() if "/test_" in name or "/conftest" in name]


def test_the_wheel_names_its_licences_extras_and_command(wheel: zipfile.ZipFile) -> None:
    names = {name.rpartition(".dist-info/")[2]: name for name in wheel.namelist()}
    assert {"licenses/LICENSE", "licenses/NOTICE"} <= names.keys()
    metadata = wheel.read(names["METADATA"]).decode()
    assert {*EXTRAS.values(), "all"} <= set(re.findall(r"(?m)^Provides-Extra: (\S+)$", metadata))
    required = re.findall(r"(?m)^Requires-Dist: ([\w-]+)(?![^\n]*extra ==)", metadata)
    assert sorted(required) == ["openai", "prometheus-client", "tenacity"]
    assert "concur = concur_agents.cli.app:main" in wheel.read(names["entry_points.txt"]).decode()


def test_the_installed_command_says_its_version() -> None:
    concur = Path(sysconfig.get_path("scripts")) / "concur"
    said = subprocess.check_output([concur, "--version"], text=True, timeout=60)
    assert said == f"concur-agents {concur_agents.__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_each_listed_command_can_be_loaded(name: str) -> None:
    assert callable(load_command(name))


@pytest.mark.parametrize(("module", "extra"), [("typer", "cli"), ("rich", "cli")])
def test_a_missing_extra_is_named_in_one_line(module: str, extra: str) -> None:
    blocked = f"import sys; sys.modules[{module!r}] = None; "
    ran = run_python("-c", blocked + "from concur_agents.cli.app import main; main(['laws'])")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.count("\n") == 1
    assert f'pip install "concur-agents[{extra}]"' in ran.stderr


def test_without_ray_its_extra_is_named() -> None:
    ran = run_python("-c", "import sys; sys.modules['ray'] = None; import concur_agents.ray")
    assert 'pip install "concur-agents[ray]"' in ran.stderr.splitlines()[-1]


def test_this_environment_has_the_frameworks_it_is_there_to_test() -> None:
    """Tests of a missing framework are skipped; without this, all of them could be, unseen."""
    required = FRAMEWORKS.get(os.environ.get("CONCUR_TEST_ENV", ""), [])
    assert [name for name in required if importlib.util.find_spec(name) is None] == []


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_every_pin_of_a_lock_has_hashes_and_no_address(lock: Path) -> None:
    text = lock.read_text("utf-8")
    pinned = re.findall(r"(?m)^[a-z0-9][^\n]*==[^\n]*$", text)
    assert pinned
    assert all(line.endswith("\\") for line in pinned)
    assert not re.search(r"(?m)://|^\s*-(?!-hash=)", text)


def test_the_script_that_writes_locks_can_be_asked_what_it_does() -> None:
    """It took `--help` for an option of the resolver, and made an environment."""
    asked = [sys.executable, str(ROOT / "scripts" / "lock"), "--help"]
    said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    assert "Usage: scripts/lock" in said
    assert "locks/main.txt" not in said


def test_the_lock_of_the_demo_is_a_part_of_the_main_one() -> None:
    """Both are installed into one folder: another version would undo the other command's set-up."""
    main = pins(ROOT / "locks/main.txt")
    demo = pins(ROOT / "locks/demo.txt")
    assert demo == {name: main.get(name) for name in demo}


def test_the_pythons_on_the_path_are_found_behind_names_that_do_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version manager's shim may stand first on the PATH, with nothing behind it."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    environment = importlib.import_module("_environment")
    major, minor = sys.version_info[:2]
    for folder, text in (("shims", "exit 127"), ("real", f'exec "{sys.executable}" "$@"')):
        (tmp_path / folder).mkdir()
        file = tmp_path / folder / f"python{major}.{minor}"
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'shims'}{os.pathsep}{tmp_path / 'real'}")
    found = environment.pythons_on_path()
    assert found == {(major, minor): str(tmp_path / "real" / f"python{major}.{minor}")}


def test_other_projects_tests_run_on_the_versions_of_the_main_lock() -> None:
    main = pins(ROOT / "locks/main.txt")
    peers = pins(ROOT / "locks/peers.txt")
    shared = main.keys() & peers.keys()
    assert {"openai", "langgraph", "langchain-openai", "openai-agents"} <= shared
    assert {name: peers[name] for name in shared} == {name: main[name] for name in shared}


def test_the_locks_stand_at_both_ends_of_the_openai_range() -> None:
    versions = {lock.stem: min(pins(lock)["openai"]) for lock in LOCKS}
    assert versions["floor"] == "2.45.0"
    assert versions["litellm"].startswith("2.")
    assert versions["main"].startswith("3.")
