"""The environments of this repository, made on first use inside its own folder.

Rule: standard library only, and syntax that an old `python3` still parses, because these lines run
before anything is installed and decide which Python does the work.

An environment is a virtual environment plus one lock of locks/, installed with every hash checked,
plus this project in editable form. A stamp inside the environment remembers what was installed, so
a second run starts at once.
"""

import contextlib
import fcntl
import hashlib
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OLDEST = (3, 11)
NEWEST_KNOWN = 14

# What the metadata of an installed project come from.
METADATA = ["pyproject.toml", os.path.join("concur_agents", "_version.py")]

# name -> (folder, locks that satisfy it: the first is what is installed, any other contains it)
ENVIRONMENTS = {
    "demo": (".venv", ("demo", "main")),
    "main": (".venv", ("main",)),
    "litellm": (".venv-litellm", ("litellm",)),
    "floor": (".venv-floor", ("floor",)),
    "peers": (".venv-peers", ("peers",)),
    "ray": (".venv-ray", ("ray",)),
    "verifiers": (".venv-verifiers", ("verifiers",)),
    "verl": (".venv-verl", ("verl",)),
    "skyrl": (".venv-skyrl", ("skyrl",)),
    "areal": (".venv-areal", ("areal",)),
    "nemo-gym": (".venv-nemo-gym", ("nemo-gym",)),
    "harbor": (".venv-harbor", ("harbor",)),
    "stacks": (".venv-stacks", ("stacks",)),
}
# Environments for which the oldest Python will not do.
OLDEST_FOR = {"skyrl": (3, 12), "nemo-gym": (3, 12), "harbor": (3, 12)}


def prepare(name, base=None):
    """Make the environment `name` current and return the path of its Python.

    With the path of a Python as `base` it is of that version, in a folder of its own if the usual
    one holds another version. Leaves by SystemExit with a message when this machine lacks what is
    needed.
    """
    folder_name, locks = ENVIRONMENTS[name]
    folder = os.path.join(ROOT, folder_name)
    if base is not None and os.path.exists(folder):
        version = _version_of(base)
        if version and _version_of(os.path.join(folder, "bin", "python")) not in (version, None):
            folder_name += "-{}.{}".format(*version)
            folder = os.path.join(ROOT, folder_name)
    with _one_at_a_time(folder_name):
        python = virtual_environment(folder, base, OLDEST_FOR.get(name, OLDEST))
        pip = None
        if not any(_is_stamped(folder, "lock-" + lock, _lock_digest(lock)) for lock in locks):
            pip = pip_for(python)
            _install_lock(pip, folder, locks[0])
        # Entry points and metadata come from pyproject.toml; the code itself is found in ROOT,
        # wherever that has been moved to.
        files = [os.path.join(ROOT, name) for name in METADATA]
        project = " ".join([ROOT, *map(_digest, files)])
        if not _is_stamped(folder, "project", project):
            _say("installing concur-agents itself")
            arguments = ["--no-build-isolation", "--no-deps", "--editable", ROOT]
            run_pip(pip or pip_for(python), arguments)
            _stamp(folder, "project", project)
    return python


@contextlib.contextmanager
def _one_at_a_time(folder_name):
    """Two commands started together must not write into one environment at the same time."""
    path = os.path.join(ROOT, folder_name + ".lock")
    with open(path, "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def virtual_environment(folder, base=None, oldest=OLDEST):
    """Return the Python of the virtual environment `folder`, made anew if missing or broken.

    A new one is made with `base`; None: with the Python that runs this, or the newest there is.
    """
    python = os.path.join(folder, "bin", "python")
    if os.path.exists(folder):
        version = _version_of(python)
        if version and version >= oldest:
            return python
        if version:
            sys.exit(
                "{} holds Python {}.{}, this project needs {}.{} or newer: "
                "remove that folder and run this again".format(folder, *(version + oldest))
            )
    base = base or _find_python(oldest)
    _say("making {} with Python {}.{}".format(os.path.basename(folder), *_version_of(base)))
    if not _runs([base, "-m", "venv", "--clear", folder]):
        # Debian and its kin keep ensurepip in a package of its own; pip_for() then lends a pip.
        subprocess.check_call([base, "-m", "venv", "--clear", "--without-pip", folder])
    return python


def _find_python(oldest):
    """Return a Python that is new enough: the one running this, else the newest on the PATH."""
    if sys.version_info[:2] >= oldest:
        return sys.executable
    found = pythons_on_path(oldest)
    if found:
        return found[max(found)]
    return sys.exit(
        "this project needs Python {}.{} or newer; found only {} ({}). Install a newer one, or "
        "start this with it: /path/to/python3 {}".format(
            *oldest, sys.executable, sys.version.split()[0], " ".join(sys.argv)
        )
    )


def pythons_on_path(oldest=OLDEST):
    """Return (major, minor) -> path, for each version on the PATH that is new enough."""
    found = {}
    names = [f"python3.{minor}" for minor in range(OLDEST[1], NEWEST_KNOWN + 1)]
    for name in [*names, "python3", "python"]:
        for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
            path = os.path.join(folder, name)
            # A name may be a version manager's shim with nothing behind it: ask it.
            version = _version_of(path) if os.access(path, os.X_OK) else None
            if version and version >= oldest:
                found.setdefault(version, path)
    return found


def _version_of(python):
    """Return (major, minor), or None if it does not run."""
    code = "import sys; print(sys.version_info[0], sys.version_info[1])"
    try:
        said = subprocess.check_output([python, "-c", code], stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        return None
    major, minor = said.split()
    return int(major), int(minor)


def pip_for(python):
    """Return the start of a command line that installs into the environment of `python`."""
    own = [python, "-m", "pip"]
    if _runs([*own, "--version"]):
        return own
    for lender in (sys.executable, "python3", "python"):
        lent = [lender, "-m", "pip", "--python", python]
        if _runs([*lent, "--version"]):
            return lent
    return sys.exit(
        f"no working pip found for {python}: install pip 22.3 or newer for your python3 "
        "(on Debian and Ubuntu: python3-venv or python3-pip)"
    )


def _runs(command):
    try:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.call(command, **quiet) == 0
    except OSError:
        return False


def _install_lock(pip, folder, lock):
    path = _lock_path(lock)
    with open(path) as handle:
        count = sum("==" in line for line in handle)
    _say(f"installing up to {count} packages pinned in locks/{lock}.txt (once)")
    # The lock is complete, so there is nothing to resolve; every file must match its hash.
    options = ["--require-hashes", "--no-deps"]
    if lock == "demo":
        # A third of the wait would go into bytecode of modules that nothing imports. Not so for
        # the tests: there, what a library's compilation warns of would be an error.
        options.append("--no-compile")
    run_pip(pip, [*options, "--requirement", path])
    _stamp(folder, "lock-" + lock, _lock_digest(lock))


def run_pip(pip, arguments):
    """Run `pip install`: a line of progress on a terminal, pip's own words if it fails."""
    options = ["--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
    process = subprocess.Popen(
        [*pip, "install", *options, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
    )
    words, collected = [], 0
    for line in process.stdout:
        words.append(line)
        collected += line.startswith("Collecting ")
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\033[K  {collected:3d}  {line.strip()[:70]}")
            sys.stderr.flush()
    if sys.stderr.isatty():
        sys.stderr.write("\r\033[K")
    if process.wait() != 0:
        sys.stderr.write("".join(words[-30:]))
        sys.exit("pip failed; the lines above say why. Running this again resumes the set-up.")


def _is_stamped(folder, name, digest):
    try:
        with open(os.path.join(folder, "stamps", name)) as handle:
            return handle.read() == digest
    except OSError:
        return False


def _stamp(folder, name, digest):
    stamps = os.path.join(folder, "stamps")
    os.makedirs(stamps, exist_ok=True)
    with open(os.path.join(stamps, name), "w") as handle:
        handle.write(digest)


def _lock_path(lock):
    return os.path.join(ROOT, "locks", lock + ".txt")


def _lock_digest(lock):
    return _digest(_lock_path(lock))


def _digest(path):
    with open(path, "rb") as handle:
        return hashlib.sha256(handle.read()).hexdigest()


def _say(text):
    sys.stderr.write(f"[set-up] {text}\n")
    sys.stderr.flush()
