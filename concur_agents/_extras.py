"""Optional dependencies: what to install when one of them is missing."""

from __future__ import annotations

EXTRAS = {
    "aiohttp": "gateway",
    "typer": "cli",
    "rich": "cli",
    "starlette": "server",
    "uvicorn": "server",
    "matplotlib": "plot",
    "langgraph": "langgraph",
    "langchain_core": "langgraph",
    "langchain_openai": "langgraph",
    "opentelemetry": "otel",
    "ray": "ray",
}
"""Top-level module -> the extra of ours that brings it."""


def missing_extra(error: ModuleNotFoundError) -> ImportError:
    """The error to raise in place of `error`: it says which extra brings what is missing.

    Use as `raise missing_extra(error) from error`. A module that no extra brings comes back as it
    was.
    """
    module = (error.name or "").partition(".")[0]
    if module not in EXTRAS:
        return error
    return ImportError(
        f'{module} is not installed: pip install "concur-agents[{EXTRAS[module]}]"',
        name=error.name,
    )
