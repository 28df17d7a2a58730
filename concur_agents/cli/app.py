"""Entry point of `concur`: finds the command and runs it.

An expected error (`ConcurError`, a missing extra) is one line on stderr and exit code 2, like a
wrong option; `--debug` anywhere before `--` shows the traceback instead.
"""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from concur_agents._extras import missing_extra
from concur_agents._version import __version__
from concur_agents.cli.terminal import say
from concur_agents.errors import ConcurError

if TYPE_CHECKING:
    import typer

COMMANDS = {
    "demo": "Run one batch of agents ungoverned, capped and governed.",
    "watch": "Show an endpoint, a living governor or a recording as a dashboard.",
    "run": "Run a program and govern its agents, without a change to its code.",
    "gateway": "Govern agents of any language, that call an address.",
    "serve": "Decide for many processes: run the daemon of shared governors.",
    "config": "Show the effective options and the source of each.",
    "explain": "Say why agents waited, from a recording.",
    "report": "Make an HTML page from a recording.",
    "replay-law": "Replay a recording through its law, or through another.",
    "doctor": "Examine an endpoint: engine, signals, and what is missing.",
    "laws": "List the laws with their formulas.",
    "bench": "Judge every law on a suite of simulated scenarios.",
    "replay": "Replay agent traces against a live endpoint.",
    "serve-sim": "Serve the simulated engine: OpenAI API and metrics.",
}
"""Command -> one line for `concur --help`. Its name gives its module and function."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Raises:
        SystemExit: 0: done; 1: the answer of the command is no; 2: an error.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # not every terminal and log can show a "×"
    words = list(sys.argv[1:] if arguments is None else arguments)
    words, debug = _take_debug(words)
    wanted = next((word for word in words if not word.startswith("-")), None)
    try:
        app = _make_app(wanted)
        app(words, prog_name="concur")
    except (ConcurError, ImportError) as error:
        if isinstance(error, ModuleNotFoundError):
            error = missing_extra(error)
        expected = isinstance(error, ConcurError) or "concur-agents[" in str(error)
        if debug or not expected:
            raise
        say(f"concur: {error}", sys.stderr)
        raise SystemExit(2) from None


def _take_debug(words: list[str]) -> tuple[list[str], bool]:
    """Takes `--debug` out of the words before `--`."""
    end = words.index("--") if "--" in words else len(words)
    ours, rest = words[:end], words[end:]
    return [word for word in ours if word != "--debug"] + rest, "--debug" in ours


def _make_app(wanted: str | None) -> typer.Typer:
    """An app in which only the wanted command is real; the others are only listed."""
    import typer

    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    def show_version(value: bool) -> None:
        if value:
            print(f"concur-agents {__version__}")
            raise typer.Exit

    @app.callback()
    def concur(
        version: bool = typer.Option(
            False, "--version", callback=show_version, is_eager=True, help="Show the version."
        ),
        debug: bool = typer.Option(False, "--debug", help="Show tracebacks of errors."),
    ) -> None:
        """Congestion control for LLM agents: keep their KV cache from thrashing."""

    for name, summary in COMMANDS.items():
        function = load_command(name) if name == wanted else _only_listed
        app.command(name, short_help=summary)(function)
    return app


def load_command(name: str) -> Callable[..., Any]:
    """Imports the function of a command."""
    stem = name.replace("-", "_")
    module = importlib.import_module(f"concur_agents.cli.{stem}")
    function: Callable[..., Any] = getattr(module, f"{stem}_command")
    return function


def _only_listed() -> None:
    """Stands in for the other commands, so that their modules are not imported."""


if __name__ == "__main__":
    main()
