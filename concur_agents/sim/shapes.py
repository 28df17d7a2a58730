"""The shapes of OpenAI's API: the JSON of answers, usage and errors."""

from __future__ import annotations

import json
from typing import Any

from concur_agents.sim.realtime import ServedCall
from concur_agents.sim.text import ToolCall

__all__ = [
    "finished_response",
    "include_usage",
    "output_items",
    "problem",
    "sse",
    "tool_call",
    "usage",
]


def sse(data: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n"


def problem(
    message: str, kind: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """An error as OpenAI's API describes it."""
    return {"message": message, "type": kind, "param": param, "code": code}


def usage(call: ServedCall) -> dict[str, Any]:
    """What a call cost, for completions."""
    return {
        "prompt_tokens": call.prompt_tokens,
        "completion_tokens": call.output_tokens,
        "total_tokens": call.prompt_tokens + call.output_tokens,
        "prompt_tokens_details": {"cached_tokens": call.cached_tokens},
    }


def include_usage(body: dict[str, Any]) -> bool:
    """Whether the request asks for usage at the end of its stream."""
    options = body.get("stream_options")
    return isinstance(options, dict) and bool(options.get("include_usage"))


def tool_call(call: ToolCall) -> dict[str, Any]:
    """A tool call of a chat completion."""
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def output_items(call: ServedCall) -> list[dict[str, Any]]:
    """The output of a response: a message, or its tool calls."""
    if not call.reply.calls:
        part = {"type": "output_text", "text": call.reply.text, "annotations": []}
        return [
            {
                "id": f"msg_{call.request.id}",
                "type": "message",
                "role": "assistant",
                "status": "completed",
                "content": [part],
            }
        ]
    return [
        {
            "id": f"fc_{call.request.id}_{i}",
            "type": "function_call",
            "call_id": tool_call.id,
            "name": tool_call.name,
            "arguments": tool_call.arguments,
            "status": "completed",
        }
        for i, tool_call in enumerate(call.reply.calls)
    ]


def finished_response(call: ServedCall, head: dict[str, Any]) -> dict[str, Any]:
    """A response with its output and usage."""
    cut = call.reply.cut
    return {
        **head,
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "output": output_items(call),
        "usage": {
            "input_tokens": call.prompt_tokens,
            "input_tokens_details": {
                "cached_tokens": call.cached_tokens,
                "cache_write_tokens": 0,  # current clients ask for it
            },
            "output_tokens": call.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": call.prompt_tokens + call.output_tokens,
        },
    }
