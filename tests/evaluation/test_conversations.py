"""Lines of a file: what they may be, what is written for them, and why others are refused."""

import json
from typing import Any

import pytest

from rmtrain.data.rows.readers import Line
from rmtrain.errors import DataError
from rmtrain.evaluation.requests import format_response, read_question

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
def test_lines_that_are_scored(row: dict[str, Any], prompt: list[Any], responses: list[Any]) -> None:
    question = read_question(line(row), 7)
    assert list(question.asked.prompt) == prompt
    assert [list(response) for response in question.asked.responses] == responses
    assert question.asked.id == "in.jsonl:7"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (b'{"prompt": "a", "response": ', "in.jsonl:7:29: Expecting value"),
        ({"prompt": "a"}, "in.jsonl:7: expected messages, or prompt and one of response, .* it has: prompt"),
        ({"prompt": "a", "response": "b", "responses": ["c"]}, "it has: prompt, response, responses"),
        ({"prompt": "a", "responses": []}, "responses: expected a list of one or more responses"),
        ({"prompt": "a", "responses": "b"}, "responses: expected a list of one or more responses"),
        ({"prompt": "a", "responses": ["b", None]}, r"in.jsonl:7: responses\[1\]: .* is null"),
        ({"prompt": 3, "response": "b"}, "in.jsonl:7: prompt: .*a number"),
        ({"messages": [USER]}, "in.jsonl:7: messages ends with the turn of the user; expected the assistant's reply"),
        ({"messages": [USER, REPLY], "rewards": 1}, "it has rewards already, which is written here; rename it"),
        ([1], "in.jsonl:7: expected an object, got list"),
    ],
)
def test_lines_that_are_not(row: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_question(line(row), 7)


def test_what_is_written() -> None:
    several = read_question(line({"id": "x", "prompt": "hi", "responses": ["a", "b", "c"]}), 7)
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
    one = read_question(line({"messages": [USER, REPLY]}), 8)
    assert format_response(one, (0.5,), False, best_of=True) == {"messages": [USER, REPLY], "reward": 0.5, "input_line": 8}
