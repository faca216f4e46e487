import json
from typing import Any

import pytest

from rmtrain.data.comparison import BadRow
from rmtrain.data.rows.messages import (
    decode_cell,
    split_transcript,
    template_values,
    to_messages,
    tool_calls,
    tool_definitions,
)
from rmtrain.recipe.schema import Messages, PairSource

PLAIN = Messages()
HH = Messages(transcript="hh")
USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CALL = {"type": "function", "id": "c1", "function": {"name": "add", "arguments": '{"x": [1, null]}'}}
DECODED = CALL | {"function": {"name": "add", "arguments": {"x": [1, None]}}}


def read(cell: Any, settings: Messages = PLAIN) -> list[dict[str, str]]:
    return list(to_messages(cell, "chosen", settings, "assistant"))


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("a", [ASSISTANT]),
        ({"role": "user", "content": "q"}, [USER]),
        ({"from": "gpt", "value": "a"}, [ASSISTANT]),
        ([{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], [USER, ASSISTANT]),
        ([{"role": "Human", "content": "q"}, {"role": "model", "content": "a"}], [USER, ASSISTANT]),
        ([{"role": "user", "value": "q", "name": "x"}, {"from": "assistant", "content": "a"}], [USER | {"name": "x"}, ASSISTANT]),
        ([{"role": "user", "content": [{"type": "text", "text": "q"}]}], [USER]),
        (
            [{"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "text", "text": "r"}, "s"]}],
            [USER | {"content": "qrs"}],
        ),
        ([{"role": "system", "content": "  "}, USER], [USER]),
        ([{"role": "system", "content": "be kind"}, USER], [{"role": "system", "content": "be kind"}, USER]),
        ([USER | {"tool_calls": [], "images": None}], [USER]),
        (["q", "r"], [{"role": "assistant", "content": "q"}, {"role": "assistant", "content": "r"}]),
        (
            [{"role": "tool", "content": "4", "name": "add", "tool_call_id": "c1", "rank": 2}],
            [{"role": "tool", "content": "4", "name": "add", "tool_call_id": "c1"}],
        ),
        (
            [{"from": "observation", "value": "4"}, {"role": "developer", "content": "s"}],
            [{"role": "tool", "content": "4"}, {"role": "system", "content": "s"}],
        ),
        ([ASSISTANT | {"reasoning_content": "hm", "thinking": "", "name": 7}], [ASSISTANT | {"reasoning_content": "hm"}]),
        ([{"role": "assistant", "tool_calls": [CALL]}], [{"role": "assistant", "content": "", "tool_calls": [DECODED]}]),
        (
            [{"role": "assistant", "content": None, "tool_calls": [CALL]}],
            [{"role": "assistant", "content": "", "tool_calls": [DECODED]}],
        ),
        (
            [{"from": "gpt", "value": "so", "tool_calls": [CALL]}],
            [{"role": "assistant", "content": "so", "tool_calls": [DECODED]}],
        ),
    ],
)
def test_usual_spellings_of_messages_are_read(cell: Any, expected: list[dict[str, str]]) -> None:
    assert read(cell) == expected


def test_recipe_names_keys_and_roles() -> None:
    settings = Messages(role_key="speaker", content_key="text", roles={"Narrator": "system", "bot": "user"})
    cell = [{"speaker": "Narrator", "text": "s"}, {"speaker": "bot", "text": "q"}, {"speaker": "assistant", "text": "a"}]
    assert [message["role"] for message in read(cell, settings)] == ["system", "user", "assistant"]
    with pytest.raises(BadRow, match=r'^not_messages: chosen: .*"speaker".* role, content$'):
        read([USER], settings)


@pytest.mark.parametrize(
    ("cell", "reason", "part"),
    [
        (None, "empty_cell", "null"),
        ([], "empty_cell", "empty list"),
        (7, "not_messages", "a number"),
        (True, "not_messages", "a boolean"),
        (["a", None], "empty_message", "turn 2"),
        (["a", USER], "not_messages", "text"),
        ([[USER]], "not_messages", "a list"),
        ([{"content": "q"}], "not_messages", '"role"'),
        ([{"role": "user"}], "not_messages", '"content"'),
        ([{"role": "critic", "content": "x"}], "unknown_role", "'critic'; map it in messages.roles"),
        ([{"role": None, "content": "x"}], "unknown_role", "'None'"),
        ([{"role": "user", "content": None}], "empty_message", "null"),
        ([{"role": "user", "content": 3}], "not_messages", "a number"),
        ([{"role": "user", "content": [{"type": "image"}]}], "not_text", "'image'"),
        ([{"role": "user", "content": [{"type": "text"}]}], "not_messages", "an object"),
        ([{"role": "user", "content": [3]}], "not_messages", "a number"),
        ([ASSISTANT | {"tool_calls": [{}]}], "not_messages", "tool_calls"),
        ([ASSISTANT | {"tool_calls": "add(1)"}], "not_messages", "tool_calls"),
        ([ASSISTANT | {"thinking": ["hm"]}], "not_messages", '"thinking"'),
        ([USER | {"images": ["x.png"]}], "unsupported_message", '"images"'),
        ([{"role": "assistant", "function_call": {"name": "f"}, "content": ""}], "unsupported_message", '"function_call"'),
        ("\n\nHuman: q\n\nAssistant: a", "transcript", "messages.transcript: hh"),
    ],
)
def test_cell_without_messages_has_reason(cell: Any, reason: str, part: str) -> None:
    """A cell that does not hold messages is refused with a reason; the detail names the column and what it holds."""
    with pytest.raises(BadRow) as problem:
        read(cell)
    assert problem.value.reason == reason
    assert part in problem.value.detail
    assert "chosen" in problem.value.detail


def test_transcript_is_split_into_turns() -> None:
    text = "\n\nHuman: one\n\ntwo\n\nAssistant: three Human: x\n\nHuman:\n\nAssistant: "
    turns = [("user", "one\n\ntwo"), ("assistant", "three Human: x"), ("user", ""), ("assistant", "")]
    expected = [{"role": role, "content": content} for role, content in turns]
    assert list(split_transcript(text)) == expected
    assert read(text, HH) == expected
    assert read("no transcript", HH) == [{"role": "assistant", "content": "no transcript"}]


TALK = [USER, ASSISTANT]
CUSTOM = Messages(role_key="speaker", content_key="text", roles={"Narrator": "system"})
HIDDEN = {
    "json list": json.dumps(TALK),
    "json message": json.dumps(ASSISTANT),
    "indented": json.dumps(TALK, indent=2),
    "with space": f"\n {json.dumps(TALK)}\n",
    "encoded twice": json.dumps(json.dumps(TALK)),
    "sharegpt": json.dumps([{"value": "q", "from": "human"}]),
    "tool call": json.dumps([{"role": "assistant", "tool_calls": [CALL]}]),
    "python list": str(TALK),
    "python message": str(ASSISTANT),
    "python quotes": str([USER | {"content": "it's"}, ASSISTANT]),
    "python tuple": str(tuple(TALK)),
    "numpy": f"[{USER}\n {ASSISTANT}]",
    "numpy repr": f"array([{USER}, {ASSISTANT}], dtype=object)",
    "content first": str([{"content": "a", "role": "assistant"}]),
}


@pytest.mark.parametrize("text", HIDDEN.values(), ids=HIDDEN)
def test_messages_in_text_are_found(text: str) -> None:
    """As a cell, and as an item of a list; with the remedy for JSON, and for a Python literal its name."""
    for cell in (text, ["plain", text]):
        with pytest.raises(BadRow) as problem:
            read(cell)
        assert problem.value.reason == "messages_as_text"
        assert ("decode_json: true" if "'" not in text else "Python literal") in problem.value.detail


def test_own_keys_and_roles_are_found() -> None:
    cell = [{"speaker": "Narrator", "text": "s"}]
    for text in (json.dumps(cell), str(cell)):
        assert read(text) == [{"role": "assistant", "content": text}], "guard: not messages without the recipe's keys"
        with pytest.raises(BadRow, match=r"^messages_as_text: chosen "):
            read(text, CUSTOM)


@pytest.mark.parametrize(
    "text",
    [
        '{"from": "USD", "value": 3}',
        '[{"role": "admin", "content": "x"}]',
        '{"content": "x"}',
        "[1, 2]",
        '["a", "b"]',
        "{'a': 1}",
        "{'role': 'tester', 'content': 'x'}",
        '[{"role": "user", "content": "x"}] is how a chat begins',
        "Send this: " + json.dumps(TALK),
        "[" * 100_000,
        '{"' * 100_000,
        " " * 100_000,
        "[ " * 100_000,
        "{" + " " * 100_000,
        "['" + "' " * 100_000,
    ],
)
def test_ordinary_text_is_left_alone(text: str) -> None:
    """JSON and Python that are not messages, or only part of the text."""
    assert read(text) == [{"role": "assistant", "content": text}]


@pytest.mark.parametrize("name", [name for name, text in HIDDEN.items() if "'" not in text])
def test_decode_json_decodes_hidden_messages(name: str) -> None:
    """In a cell, and in the items of a list, once or twice encoded."""
    settings = Messages(decode_json=True)
    for cell in (HIDDEN[name], [HIDDEN[name]]):
        value = decode_cell(cell, "chosen", settings)
        assert isinstance(value, dict | list)
        turns = value[0] if isinstance(cell, list) else value
        assert read(turns, settings)[0]["role"] in ("user", "assistant")


def test_invalid_json_names_python_literals() -> None:
    for text in (str(TALK), "['q', 'r']"):
        with pytest.raises(BadRow, match=r"^not_json: .*Python literal"):
            decode_cell(text, "prompt", Messages(decode_json=True))


TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ([TOOL], [TOOL]),
        (json.dumps([TOOL]), [TOOL]),
        ([json.dumps(TOOL)], [TOOL]),
        (None, None),
        ([], None),
        ("", None),
        ("[]", None),
        ("null", None),
        (float("nan"), None),
    ],
)
def test_tool_definitions_are_read(cell: Any, expected: Any) -> None:
    assert tool_definitions(cell, "tools") == expected


@pytest.mark.parametrize(
    ("cell", "reason", "part"),
    [
        (str([TOOL]), "not_json", "Python literal"),
        ("hammer", "not_json", ""),
        (TOOL, "bad_tools", "an object"),
        (json.dumps(TOOL), "bad_tools", "an object"),
        ([TOOL, 3], "bad_tools", "a number"),
        (7, "bad_tools", "a number"),
        (["add"], "not_json", ""),
    ],
)
def test_wrong_tools_are_refused(cell: Any, reason: str, part: str) -> None:
    with pytest.raises(BadRow) as problem:
        tool_definitions(cell, "functions")
    assert problem.value.reason == reason
    assert problem.value.detail.startswith("functions ")
    assert part in problem.value.detail


def test_template_values_of_a_row() -> None:
    """Columns by variable, nested ones too; JSON text is decoded where the recipe says that text is JSON."""
    columns = {"documents": "x.docs", "mood": "m", "gone": "g", "blank": "b"}
    row = {"t": json.dumps([TOOL]), "x": {"docs": '[{"title": "T"}]'}, "m": False, "b": " "}
    for decode, documents in ((False, '[{"title": "T"}]'), (True, [{"title": "T"}])):
        source = PairSource(path="x", tools="t", template_columns=columns, messages=Messages(decode_json=decode))
        assert template_values(row, source) == {"tools": [TOOL], "documents": documents, "mood": False}


@pytest.mark.parametrize(
    ("text", "value"),
    [('["a", null]', ["a", None]), ('[{"role": "user"}]', [{"role": "user"}]), ('"a"', "a"), ("", None), (" ", None)],
)
def test_decode_json_decodes_text_cells(text: str, value: Any) -> None:
    assert decode_cell(text, "prompt", Messages(decode_json=True)) == value
    assert decode_cell(text, "prompt", PLAIN) == text
    assert decode_cell([text], "prompt", Messages(decode_json=True)) == [text], "only cells that are text"


@pytest.mark.parametrize("text", ["[", "hello", "NaN", "[1] 2", '["\\ud83d"]', "[" * 100_000, "{'a': 1}"])
def test_invalid_json_cell_is_refused(text: str) -> None:
    with pytest.raises(BadRow) as problem:
        decode_cell(text, "prompt", Messages(decode_json=True))
    assert problem.value.reason == "not_json"
    assert problem.value.detail.startswith("prompt")
    assert len(problem.value.detail) < 150


DECODED_CALL = {"type": "function", "id": "c1", "function": {"name": "add", "arguments": {"x": 1, "y": None}}}


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
def test_tool_call_arguments_become_objects(arguments: Any, expected: Any) -> None:
    """Arguments as JSON text are decoded where the text is an object; other text is kept."""
    (call,) = tool_calls([{"function": {"name": "add", "arguments": arguments}}])
    assert call == {"function": {"name": "add", "arguments": expected}}
    assert tool_calls([{"name": "add", "arguments": arguments}]) == [{"name": "add", "arguments": expected}], "without `function`"


def test_other_keys_of_calls_stay() -> None:
    assert tool_calls([DECODED_CALL, DECODED_CALL]) == [DECODED_CALL, DECODED_CALL]


@pytest.mark.parametrize(
    "calls", ["add", {"name": "add"}, [None], ["add"], [{}], [{"name": 3}], [{"function": "add"}], [{"function": {}}]]
)
def test_invalid_tool_calls_are_refused(calls: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        tool_calls(calls)
