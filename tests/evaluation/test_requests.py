"""Lines of a file to score: the forms they may have, the lines that are written for them, and where others are wrong."""

import json
from typing import Any

import pytest

from rmtrain.data.rows.readers import Line
from rmtrain.errors import DataError
from rmtrain.evaluation.scorer import format_response, parse_input

USER, REPLY = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}


def line(row: Any) -> Line:
    return Line("in.jsonl:7", json.dumps(row).encode() if not isinstance(row, bytes) else row)


@pytest.mark.parametrize(
    ("row", "prompt", "responses"),
    [
        ({"messages": [USER, REPLY]}, [USER], [[REPLY]]),
        ({"prompt": "hi", "response": "yes"}, [USER], [[REPLY]]),
        ({"prompt": [USER], "completion": [REPLY]}, [USER], [[REPLY]]),
        ({"prompt": "hi", "responses": ["yes", REPLY, [REPLY]]}, [USER], [[REPLY]] * 3),
        ({"prompt": [USER], "completions": [[REPLY, USER, REPLY]]}, [USER], [[REPLY, USER, REPLY]]),
        ({"messages": [REPLY]}, [], [[REPLY]]),
        ({"prompt": "\n\nHuman: hi\n\nAssistant:", "response": "yes"}, [USER], [[REPLY]]),
    ],
)
def test_lines_are_parsed_to_requests(row: dict[str, Any], prompt: list[Any], responses: list[Any]) -> None:
    parsed = parse_input(line(row), 7)
    assert list(parsed.request.prompt) == prompt
    assert [list(response) for response in parsed.request.responses] == responses
    assert parsed.request.id == "in.jsonl:7"


@pytest.mark.parametrize(
    ("row", "place", "shown"),
    [
        (b'{"prompt": "a", "response": ', "in.jsonl:7:29: ", ""),
        ({"prompt": "a"}, "in.jsonl:7: ", "prompt"),
        ({"prompt": "a", "response": "b", "responses": ["c"]}, "in.jsonl:7: ", "prompt, response, responses"),
        ({"prompt": "a", "responses": []}, "in.jsonl:7: responses: ", ""),
        ({"prompt": "a", "responses": "b"}, "in.jsonl:7: responses: ", ""),
        ({"prompt": "a", "responses": ["b", None]}, "in.jsonl:7: responses[1]: ", "null"),
        ({"prompt": 3, "response": "b"}, "in.jsonl:7: prompt: ", "number"),
        ({"messages": [USER]}, "in.jsonl:7: messages: ", "user"),
        ({"messages": [USER, REPLY], "rewards": 1}, "in.jsonl:7: rewards: ", ""),
        ([1], "in.jsonl:7: ", "list"),
    ],
)
def test_malformed_lines_are_located(row: Any, place: str, shown: str) -> None:
    with pytest.raises(DataError) as refused:
        parse_input(line(row), 7)
    (problem,) = refused.value.problems
    assert problem.startswith(place)
    assert shown in problem


def test_output_lines_keep_input_keys() -> None:
    several = parse_input(line({"id": "x", "prompt": "hi", "responses": ["a", "b", "c"]}), 7)
    assert format_response(several, (0.5, 0.75, 0.75), False, best_of=False) == {
        **several.row,
        "rewards": [0.5, 0.75, 0.75],
        "input_line": 7,
    }
    assert format_response(several, (0.5, 0.75, 0.75), True, best_of=True) == {
        "id": "x",
        "prompt": "hi",
        "response": "b",
        "reward": 0.75,
        "best": 1,
        "rewards": [0.5, 0.75, 0.75],
        "truncated": True,
        "input_line": 7,
    }
    one = parse_input(line({"messages": [USER, REPLY]}), 8)
    assert format_response(one, (0.5,), False, best_of=True) == {"messages": [USER, REPLY], "reward": 0.5, "input_line": 8}
