import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from rmtrain.data.comparison import Comparison, Dropped, prompt_hash
from rmtrain.data.rows.formats import adapt
from rmtrain.data.rows.loading import load_comparisons, read_batches
from rmtrain.errors import DataError
from rmtrain.recipe.schema import Source
from tests.data.rows.test_loading import load
from tests.helpers import pairs, write_jsonl


@pytest.mark.parametrize(
    ("rows", "keys", "parts"),
    [
        (pairs(3), {"chosen": "better"}, ['"better"', "prompt, chosen, rejected"]),
        (pairs(3), {"prompt": "question", "system": "sys"}, ['"question", "sys"', "prompt, chosen, rejected"]),
        (pairs(3), {"margin": "score", "margin_default": 0.0}, ['"score"', "prompt, chosen, rejected"]),
        ([{"chosen_ids": [1], "rejected_ids": [2]}], {}, ['"chosen", "rejected"', "format: tokenized"]),
        ([{"prompt": "q", "completion": "a", "label": True}] * 3, {}, ['"chosen", "rejected"', "unpaired (KTO)"]),
        ([{"prompt": "q", "response_a": "x", "response_b": "y", "winner": "a"}] * 3, {}, ["format: ab", "a: response_a", "b: response_b"]),
        ([{"q": "q", "output1": "x", "output2": "y", "best": 1}] * 3, {}, ["format: ab", "a: output1", "b: output2"]),
        (pairs(3), {"prompt": ["prompt", "input"]}, ['"input"', "prompt, chosen, rejected"]),
        (
            [{"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}] * 3,
            {},
            ["3 rows", "(transcript): rows.jsonl:1: chosen", "messages.transcript: hh"],
        ),
        ([{"chosen": 1, "rejected": 2}], {}, ["(not_messages): rows.jsonl:1: chosen"]),
    ],
)  # fmt: skip
def test_sources_without_usable_rows_are_refused(tmp_path: Path, rows: list[Any], keys: dict[str, Any], parts: list[str]) -> None:
    """A missing column, or a first batch that is dropped as a whole for one reason, is an error at once."""
    with pytest.raises(DataError, match=r"^rows: ") as error:
        load(write_jsonl(tmp_path / "rows.jsonl", rows), **keys)
    assert all(part in str(error.value) for part in parts)


def test_trap_22_bad_margins_name_the_rows(tmp_path: Path) -> None:
    """Bad margins are one error that names the first five rows and counts the others."""
    rows: list[dict[str, Any]] = [row | {"margin": 0.1} for row in pairs(20)]
    for number in (2, 3, 5, 8, 13, 15, 19):
        rows[number]["margin"] = ["high", -1, None][number % 3]
    with pytest.raises(DataError) as error:
        load(write_jsonl(tmp_path / "rows.jsonl", rows), margin="margin")
    message = str(error.value)
    places = ["rows:2", "rows:3", "'high'", "rows:5", "rows:8", "rows:13", "-1 and 2 more"]
    assert [message.index(place) for place in places] == sorted(message.index(place) for place in places), (
        "in order, five of them"
    )
    assert "rows:15" not in message
    assert "\n" not in message


def test_trap_22_nan_margin_in_csv(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("prompt,chosen,rejected,margin\nq,a,b,0.5\nq,a,b,nan\nq,a,b,inf\n")
    with pytest.raises(DataError, match=r"rows:1: rows\.csv:3: margin: .* 'nan'; rows:2: rows\.csv:4: .* 'inf'"):
        load(file, margin="margin")


TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
OTHER = [TALK[0], {"role": "assistant", "content": "b"}]
FORMATS: dict[str, tuple[dict[str, Any], Callable[[Any, Any], dict[str, Any]]]] = {
    "pair": ({}, lambda one, other: {"prompt": "q", "chosen": one, "rejected": other}),
    "implicit": ({"prompt": "implicit"}, lambda one, other: {"chosen": one, "rejected": other}),
    "lists": ({"lists": True}, lambda one, other: {"prompt": "q", "chosen": [one], "rejected": [other]}),
    "ab": (
        {"format": "ab", "a": "x", "b": "y", "label": {"by": "index", "column": "w"}},
        lambda one, other: {"prompt": "q", "x": one, "y": other, "w": 0},
    ),
    "ranked": (
        {"format": "ranked", "responses": "r", "score": "s"},
        lambda one, other: {"prompt": "q", "r": [one, other], "s": [2, 1]},
    ),
    "ranked objects": (
        {"format": "ranked", "responses": "r", "response": "t", "score": "s"},
        lambda one, other: {"prompt": "q", "r": [{"t": one, "s": 2}, {"t": other, "s": 1}]},
    ),
    "candidate": (
        {"format": "ranked", "group_by": "g", "response": "t", "score": "s"},
        lambda one, _: {"prompt": "q", "g": 1, "t": one, "s": 2},
    ),
}
SOURCE: TypeAdapter[Source] = TypeAdapter(Source)


def source(keys: dict[str, Any], **more: Any) -> Source:
    return SOURCE.validate_python({"path": "rows.jsonl", **keys, **more})


@pytest.mark.parametrize(("keys", "row"), FORMATS.values(), ids=FORMATS)
def test_hidden_messages_are_found_in_all_formats(keys: dict[str, Any], row: Callable[[Any, Any], dict[str, Any]]) -> None:
    """JSON text and Python literals; JSON is the same as messages once the recipe says so."""
    plain = adapt(row(TALK, OTHER), "rows:0", source(keys))
    assert isinstance(plain, Comparison), plain
    for encode in (json.dumps, str):
        hidden = adapt(row(encode(TALK), encode(OTHER)), "rows:0", source(keys))
        assert isinstance(hidden, Dropped)
        assert hidden.reason == "messages_as_text"
    encoded = row(json.dumps(TALK), json.dumps(OTHER))
    if "prompt" in encoded:  # all text cells are JSON
        encoded["prompt"] = '"q"'
    assert adapt(encoded, "rows:0", source(keys, messages={"decode_json": True})) == plain


@pytest.mark.parametrize("text", [json.dumps, str])
def test_hidden_prompts_systems_and_turns_are_found(text: Callable[[Any], str]) -> None:
    """In a prompt, in one of several prompt columns, in a system column; and lists of turns on both sides."""
    sides = {"chosen": "a", "rejected": "b"}
    for keys, row in (
        ({}, {"prompt": text([TALK[0]]), **sides}),
        ({"prompt": ["p", "q"]}, {"p": "Read.", "q": text([TALK[0]]), **sides}),
        ({"system": "s"}, {"s": text({"role": "system", "content": "x"}), "prompt": "q", **sides}),
        ({}, {"prompt": text(["q1", "q2"]), "chosen": text(["a1", "a2"]), "rejected": text(["b1", "b2"])}),
    ):
        result = adapt(row, "rows:0", source(keys))
        assert isinstance(result, Dropped), row
        assert result.reason == "messages_as_text"
    ordinary = {"prompt": "Name two as a list.", "chosen": text(["a", "b"]), "rejected": text(["c"])}
    assert isinstance(adapt(ordinary, "rows:0", source({})), Comparison), "guard: answers may be lists"


TOOLS = [{"type": "function", "function": {"name": "add"}}]


@pytest.mark.parametrize(("keys", "row"), FORMATS.values(), ids=FORMATS)
def test_variables_are_read_in_all_formats(keys: dict[str, Any], row: Callable[[Any, Any], dict[str, Any]]) -> None:
    """They are part of the prompt; JSON text of tools is decoded, and what is not tools is refused."""
    described = source(keys, tools="functions", template_columns={"mood": "m"})
    plain, other = (adapt(row(TALK, OTHER) | {"functions": tools, "m": ""}, "rows:0", described) for tools in (None, TOOLS))
    text = adapt(row(TALK, OTHER) | {"functions": json.dumps(TOOLS)}, "rows:0", described)
    assert isinstance(plain, Comparison)
    assert isinstance(other, Comparison)
    assert (plain.variables, other.variables, text) == ({}, {"tools": TOOLS}, other)
    assert {"functions"} == set(other.columns) - set(plain.columns)
    assert prompt_hash(plain) != prompt_hash(other)
    refused = adapt(row(TALK, OTHER) | {"functions": "hammer"}, "rows:0", described)
    assert isinstance(refused, Dropped)
    assert refused.reason == "not_json"


def test_groups_have_one_set_of_variables(tmp_path: Path) -> None:
    """Rows of one response with other tools than the first of their group are not compared; rows of one prompt are not gathered."""
    other = [{"type": "function", "function": {"name": "sub"}}]
    rows = [{"prompt": "q", "g": 1, "t": f"answer {n}", "s": n, "tools": other if n == 3 else TOOLS} for n in range(4)]
    ranked = {"format": "ranked", "group_by": "g", "response": "t", "score": "s", "tools": "tools"}
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    made = [row for batch in load_comparisons(source(ranked | {"path": str(file)})) for row in batch]
    assert [(row.id, getattr(row, "reason", None)) for row in made] == [("rows:0", None), ("rows:3", "different_prompts")]
    assert made[0].variables == {"tools": TOOLS}
    sides = [{"prompt": "q", "chosen": f"a{n}", "rejected": f"b{n}", "tools": other if n == 1 else TOOLS} for n in range(3)]
    file = write_jsonl(tmp_path / "pairs.jsonl", sides)
    (gathered,) = read_batches(source({"path": str(file), "tools": "tools", "group_by_prompt": True}))
    assert [(row.id, len(row.responses), row.variables["tools"]) for row in gathered] == [
        ("pairs:0", 4, TOOLS),
        ("pairs:1", 2, other),
    ]
