"""Follow each page of docs/tutorials as a new user does, and time it to its first governed call.

Usage: python scripts/tutorials.py [NAME ...]

For each page: an empty folder, the commands of its first block in a new virtual environment, with
this clone as `path/to/concur-agents`, and then `after.py` or `after.sh`. The first governed call is
the first that the engine has served. Ports are replaced by free ones; nothing else is. What it
cannot time is you: reading the page, and changing the lines.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "tutorials"
NAMES = sorted(path.stem for path in PAGES.glob("*.md") if path.stem != "index")
BLOCK = re.compile(r'(?ms)^```(\w+)(?: title="([^"]*)")?(?: hl_lines="([\d ]*)")?\n(.*?)^```')


@dataclass
class Tutorial:
    """What a page says."""

    name: str
    setup: str = ""
    """The commands before the programs."""

    programs: dict[str, str] = field(default_factory=dict)
    """File name -> text."""

    marked: dict[str, list[int]] = field(default_factory=dict)
    """File name -> its marked lines, from 1."""

    shown: dict[str, str] = field(default_factory=dict)
    """Commands -> the output that the page shows."""

    @property
    def after(self) -> str:
        """The command that runs the governed program."""
        return "bash after.sh" if "after.sh" in self.programs else "python after.py"

    @property
    def servers(self) -> list[list[str]]:
        """Arguments of `concur` for each server that the page starts, in order."""
        found = re.findall(r"(?m)^concur ((?:serve-sim|gateway)\b.*?) &", self.setup)
        return [line.split() for line in found]


def read(name: str) -> Tutorial:
    """The page `name`."""
    tutorial = Tutorial(name)
    for kind, title, marked, text in BLOCK.findall((PAGES / f"{name}.md").read_text("utf-8")):
        if kind == "text":
            tutorial.shown[title] = text
        elif title:
            tutorial.programs[title] = text
            tutorial.marked[title] = [int(line) for line in marked.split()]
        elif kind == "sh" and not tutorial.setup:
            tutorial.setup = text
    return tutorial


@contextmanager
def serving(tutorial, concur):
    """Starts the servers of a page on free ports; yields (address on the page -> address here)."""
    addresses, processes = {}, []
    try:
        for arguments in tutorial.servers:
            arguments = [put(word, addresses) for word in arguments]
            command = [*concur, *arguments, "--port", "0", "--json"]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            processes.append(process)
            facts = json.loads(process.stdout.readline())
            first = 8484 if arguments[0] == "gateway" else 8000
            for number, url in enumerate(facts.get("urls", [facts["url"]])):
                addresses[f"localhost:{first + number}"] = url.partition("//")[2]
        yield addresses
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait()
            process.stdout.close()


def put(text, addresses):
    """`text` with the addresses of the page replaced by those of `serving`."""
    for on_page, here in addresses.items():
        text = text.replace(on_page, here)
    return text


def write(tutorial, folder, addresses):
    """Writes the programs of a page into a folder."""
    for name, text in tutorial.programs.items():
        (folder / name).write_text(put(text, addresses), "utf-8")


def follow(name):
    """Follows a page; returns the seconds to the end of pip, and to the first governed call."""
    tutorial = read(name)
    folder = Path(tempfile.mkdtemp(prefix=f"tutorial-{name}-"))
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(folder)}
    start_s = time.monotonic()
    try:
        install = tutorial.setup.partition("\nconcur ")[0].replace(
            "path/to/concur-agents", str(ROOT)
        )
        subprocess.run(["bash", "-ec", install], cwd=folder, stdout=subprocess.DEVNULL, check=True)
        installed_s = time.monotonic() - start_s
        binaries = folder / ".venv" / "bin"
        environ["PATH"] = f"{binaries}{os.pathsep}{environ['PATH']}"
        with serving(tutorial, [str(binaries / "concur")]) as addresses:
            write(tutorial, folder, addresses)
            program = subprocess.Popen(
                tutorial.after.split(), cwd=folder, env=environ, stdout=subprocess.PIPE
            )
            engines = [here for page, here in addresses.items() if "8484" not in page]
            while program.poll() is None and not any(has_served(engine) for engine in engines):
                time.sleep(0.05)
            first_call_s = time.monotonic() - start_s
            output, _ = program.communicate()
            if program.returncode != 0 or not output:
                raise SystemExit(f"{name}: the program failed")
        return installed_s, first_call_s
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def has_served(engine):
    """Whether an engine has answered a call."""
    with urllib.request.urlopen(f"http://{engine}/metrics") as page:
        text = page.read().decode()
    return any(float(n) > 0 for n in re.findall(r"(?m)^vllm:prompt_tokens_total\S* (\S+)$", text))


def main():
    """Print a line for each page."""
    print("tutorial    changed lines    pip [s]    first governed call [s]")
    for name in sys.argv[1:] or NAMES:
        tutorial = read(name)
        changed = sum(len(lines) for lines in tutorial.marked.values())
        installed_s, first_call_s = follow(name)
        print(f"{name:11} {changed:13} {installed_s:10.0f} {first_call_s:26.0f}", flush=True)


if __name__ == "__main__":
    main()
