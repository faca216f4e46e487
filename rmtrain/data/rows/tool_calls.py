"""The calls of tools that a message makes, as chat templates take them."""

import json
from typing import Any

from rmtrain.data.raw.json_reader import SURROGATE

CALL = "tool_calls"


def tool_calls(calls: Any) -> list[dict[str, Any]]:
    """Calls with their arguments as an object: where they are JSON text, as the OpenAI API has it, they are decoded.

    Raises:
        ValueError: it is no list of calls, each with the name of a function, alone or in `function`.
    """
    if not isinstance(calls, list):
        raise ValueError("expected a list of calls")
    return [_call(call) for call in calls]


def _call(call: Any) -> dict[str, Any]:
    if not isinstance(call, dict):
        raise ValueError("expected an object for each call")
    if "function" in call:
        return {**call, "function": _function(call["function"])}
    return _function(call)


def _function(function: Any) -> dict[str, Any]:
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError("a call has no name of a function")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = _decoded(arguments)
    return {**function, "arguments": {} if arguments is None else arguments}


def _decoded(text: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) and not SURROGATE.search(text) else text
