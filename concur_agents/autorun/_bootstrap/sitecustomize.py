"""Python runs this when it starts, because `concur run` put this folder on PYTHONPATH.

It must be fast, because every Python process below `concur run` runs it, and must never stop a
program.
"""

import os
import sys


def _run_the_next_one() -> None:
    """Runs the sitecustomize that this one hides, if there is one."""
    import importlib.machinery
    import importlib.util

    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120  (pathlib is slow to import)
    path = [entry for entry in sys.path if os.path.abspath(entry or ".") != here]  # noqa: PTH100
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", path)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def _govern() -> None:
    try:
        from concur_agents.autorun.hooks import hook
    except ImportError as error:
        sys.stderr.write(
            f"concur run: {sys.executable} has no concur-agents ({error}); this process runs "
            "ungoverned\n"
        )
    else:
        hook()


if "CONCUR_RUN_PARENT" in os.environ:
    _govern()
_run_the_next_one()
