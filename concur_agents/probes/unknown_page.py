"""What to say about a page that no table knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from concur_agents.probes.exposition import quote

_ROUTER = "This is SGLang's router, which knows nothing of KV caches; give the address of a worker"
_PROCESS = (
    "It has process metrics only: was vLLM started with --disable-log-stats, or is this another "
    "program?"
)
_OTHERS: Final[Mapping[str, str]] = {
    "trtllm_": "The page of TensorRT-LLM is not supported; `cached_tokens` alone can govern "
    "agents: give no metrics address, or a fixed limit",
    "lmdeploy:": "The page of LMDeploy has no KV capacity and is not supported; a fixed limit "
    "works",
    "llamacpp:": "llama.cpp exports no KV signal; use a fixed limit of as many agents as it has "
    "slots (-np)",
    "tgi_": "TGI exports no KV signal; use a fixed limit",
    "smg_": _ROUTER,
    "sgl_router_": _ROUTER,
    "python_": _PROCESS,
    "process_": _PROCESS,
}
"""Prefix of metric names -> advice."""

_ADVICE = (
    "Give the address of the engine itself; for another engine a probe of your own, or a fixed "
    "limit"
)


def unknown_page(start: str, names: Sequence[str], prefixes: Sequence[str]) -> str:
    """Says what was looked for, what was found, and what to do.

    Args:
        start: the text of the page.
        names: its metric names.
        prefixes: the prefixes of the engines that are known.
    """
    looked_for = ", ".join(f"{prefix}*" for prefix in prefixes)
    if not names:
        begins = f"it begins {quote(start)}"
        return f"this is not a metrics page; {begins}. Looked for {looked_for}. {_ADVICE}"
    hint = next((h for p, h in _OTHERS.items() if any(n.startswith(p) for n in names)), _ADVICE)
    return f"no engine recognised: looked for {looked_for}; found {listed(names)}. {hint}"


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
