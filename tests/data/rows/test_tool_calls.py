from typing import Any

import pytest

from rmtrain.data.rows.messages import tool_calls

CALL = {"type": "function", "id": "c1", "function": {"name": "add", "arguments": {"x": 1, "y": None}}}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"x": 1}, {"x": 1}),
        ('{"x": 1}', {"x": 1}),
        ("x=1", "x=1"),
        ("[1]", "[1]"),
        ('{"x": "\\ud83d"}', '{"x": "\\ud83d"}'),
        (None, {}),
        ("{" * 100_000, "{" * 100_000),
    ],
)
def test_arguments_are_an_object_where_they_can_be(arguments: Any, expected: Any) -> None:
    (call,) = tool_calls([{"function": {"name": "add", "arguments": arguments}}])
    assert call == {"function": {"name": "add", "arguments": expected}}
    assert tool_calls([{"name": "add", "arguments": arguments}]) == [{"name": "add", "arguments": expected}], "without `function`"


def test_what_else_a_call_has_stays() -> None:
    assert tool_calls([CALL, CALL]) == [CALL, CALL]


@pytest.mark.parametrize(
    "calls", ["add", {"name": "add"}, [None], ["add"], [{}], [{"name": 3}], [{"function": "add"}], [{"function": {}}]]
)
def test_what_is_no_call_is_refused(calls: Any) -> None:
    with pytest.raises(ValueError, match=r"expected|no name"):
        tool_calls(calls)
