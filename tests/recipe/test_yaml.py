"""Strict YAML: scalars mean one thing, nothing is executed or guessed, every key and value has a place."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import yaml as pyyaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtrain.errors import RecipeError
from rmtrain.recipe.yaml import MAX_BYTES, Document, Place, parse_yaml, read_yaml, write_yaml

SCALARS: list[tuple[str, Any]] = [
    ("1e-5", 1e-05),
    ("3.0e-6", 3e-06),
    ("1E+2", 100.0),
    (".5", 0.5),
    ("5.", 5.0),
    ("-0.5", -0.5),
    ("32", 32),
    ("+1", 1),
    ("012", 12),
    ("0o17", 15),
    ("0x1F", 31),
    ("12:30", "12:30"),
    ("1_000", "1_000"),
    ("0b11", "0b11"),
    ("no", "no"),
    ("off", "off"),
    ("yes", "yes"),
    ("On", "On"),
    ("true", True),
    ("false", False),
    ("null", None),
    ("~", None),
    ("", None),
    ("2020-01-01", "2020-01-01"),
    ("'1'", "1"),
    ('"true"', "true"),
    ("<<", "<<"),
    ("=", "="),
    ("1e-5x", "1e-5x"),
    ("1.2.3", "1.2.3"),
    ("٣", "٣"),
]

MALFORMED = [
    ("a: b: c", '1:5  not well-formed YAML: a second ": " in one line; quote the text, or begin a new line'),
    ("a: [1, 2", "1:9  not well-formed YAML: a bracket or brace is never closed, or a comma is missing"),
    ("a: [", "1:5  not well-formed YAML: the text ends too early; a value, bracket or brace is missing"),
    ("a:\n  b: 1\n c: 2", "3:2  not well-formed YAML: the block above has not ended here; check the indentation and the quotes"),
    ("a: 'x", "1:6  not well-formed YAML: a quote is never closed"),
    ("a:\n\tb: 1", "2:1  not well-formed YAML: a tab; indent with spaces"),
    ("a: @x", "1:4  not well-formed YAML: a value begins with a reserved character; put it in quotes"),
    ("a: *x", "1:4  not well-formed YAML: an alias (*name) without its anchor (&name)"),
    ("a: 1\n---\nb: 2", "2:1  not well-formed YAML: a second document begins; a recipe is one document"),
    ("a\nb: 1", '2:2  not well-formed YAML: a second ": " in one line; quote the text, or begin a new line'),
    ("a: \x00", "1:4  character 0x00 cannot stand in YAML; remove it"),
    ('a: "\\UFFFFFFFF"', "1:7  not well-formed YAML: an escape that is no character"),
    ("[" * 50, "1:51  not well-formed YAML: nested more than 40 deep"),
]

REFUSED = [
    ("a: 1\nb: 2\na: 3", "3:1  a: duplicate key, on line 1 and on line 3; keep one"),
    ("a: {b: 1, b: 2}", "1:11  a.b: duplicate key, on line 1 and on line 1; keep one"),
    ("a: True", '1:4  a: write true in lower case, or "True" in quotes if it is text'),
    ("a: FALSE", '1:4  a: write false in lower case, or "FALSE" in quotes if it is text'),
    ("a: None", '1:4  a: write null to turn it off, or "None" in quotes if it is text'),
    ("a: .inf", "1:4  a: expected a finite number, got .inf"),
    ("a: .NaN", "1:4  a: expected a finite number, got .NaN"),
    ("a: 1e999", "1:4  a: the number is too large"),
    ("a: 99999999999999999999", "1:4  a: the number is too large"),
    ("a: " + "9" * 5000, "1:4  a: the number is too large"),
    ("null: a", "1:1  null: expected text as a key; put it in quotes"),
    ("True: a", "1:1  True: expected text as a key; put it in quotes"),
    ("{1: a, '1': b}", "1:8  1: duplicate key, on line 1 and on line 1; keep one"),
    ("? [a]\n: 1", "1:3  expected text as a key, got a list or mapping"),
    ("a: !!str 1", "1:4  a: tags such as !!str are not followed; write the plain value"),
    ("a: !custom 1", "1:4  a: tags such as !custom are not followed; write the plain value"),
    ('a: "\\ud800"', "1:4  a: half a surrogate pair is no character; write the character itself"),
    ("a: &a [*a]", "1:4  a.0: an alias (*name) inside its own anchor (&name)"),
]


def parse(text: str) -> Document:
    return parse_yaml(text, lambda line, column: Place(0, line, column, f"{line}:{column}"))


@pytest.mark.parametrize(("text", "value"), SCALARS)
def test_scalars_follow_yaml_1_2(text: str, value: Any) -> None:
    document = parse(f"key: {text}")
    assert document.data == {"key": value}
    assert type(document.data["key"]) is type(value)
    assert not document.problems


def test_a_key_is_its_text() -> None:
    document = parse("{1: a, -2.50: b, true: c, x y: d}")
    assert document.data == {"1": "a", "-2.50": "b", "true": "c", "x y": "d"}
    assert not document.problems
    assert parse(write_yaml(document.data)).data == document.data


def test_the_scalar_rules_differ_from_pyyaml_where_yaml_1_1_surprises() -> None:
    different = [text for text, value in SCALARS if text not in ("<<", "=") and pyyaml.safe_load(f"key: {text}")["key"] != value]
    assert {"1e-5", "no", "012", "12:30"} <= set(different), "guard: PyYAML reads these another way"


@pytest.mark.parametrize(("text", "line"), MALFORMED)
def test_malformed_yaml_is_one_line_with_its_place(text: str, line: str) -> None:
    document = parse(text)
    assert not document.readable
    assert [str(problem) for problem in document.problems] == [line]


@pytest.mark.parametrize(("text", "line"), REFUSED)
def test_what_can_be_read_in_two_ways_is_refused(text: str, line: str) -> None:
    document = parse(text)
    assert document.readable
    assert [str(problem) for problem in document.problems] == [line]


def test_all_problems_come_at_once() -> None:
    text = "\n".join(f"key{i}: {text.removeprefix('a: ')}" for i, (text, _) in enumerate(REFUSED[2:10]))
    assert [problem.path for problem in parse(text).problems] == [(f"key{i}",) for i in range(8)]


def test_every_key_and_value_has_its_place() -> None:
    document = parse("a: 1\nb:\n  - x: {y: 2}\n  - &k [3]\nc: *k\nd:\n")
    keys = {path: place[1:3] for path, place in document.keys.items()}
    values = {path: place[1:3] for path, place in document.values.items()}
    assert keys[("a",)] == (1, 1)
    assert values[("a",)] == (1, 4)
    assert keys[("b", 0)] == values[("b", 0)] == (3, 5)
    assert keys["b", 0, "x", "y"] == (3, 9)
    assert values["b", 0, "x", "y"] == (3, 12)
    assert values[("c", 0)] == values[("b", 1, 0)] == (4, 9), "an alias is where its anchor is"
    assert values[("d",)] == keys[("d",)] == (6, 1), "nothing is written there, so the key is shown"
    assert document.key_place(("b", 0, "z", "q")) == document.keys["b", 0], "what is not there is at its section"
    assert document.data == {"a": 1, "b": [{"x": {"y": 2}}, [3]], "c": [3], "d": None}


def test_an_alias_is_a_copy() -> None:
    data = parse("a: &k {x: 1}\nb: *k").data
    assert data["a"] == data["b"]
    assert data["a"] is not data["b"]


def test_a_tag_runs_nothing(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    text = f"a: !!python/object/apply:os.system ['touch {canary}']"
    document = parse(text)
    message = "1:4  a: tags such as !!python/object/apply:os.system are not followed; write the plain value"
    assert [str(problem) for problem in document.problems] == [message]
    assert not canary.exists()
    pyyaml.unsafe_load(text)
    assert canary.exists(), "guard: a careless loader would have run it"


def test_billion_laughs_end() -> None:
    """Expanded, this is 9^11 values: it would not end."""
    names = "abcdefghijk"
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]" for before, name in itertools.pairwise(names)]
    document = parse("\n".join(lines))
    assert not document.readable
    message = "1:1  more than 20000 values once aliases are expanded; write fewer aliases"
    assert [str(problem) for problem in document.problems] == [message]


def test_files_that_cannot_be_read_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("latin.yaml").write_bytes("run: x\nname: café\n".encode("latin-1"))
    Path("large.yaml").write_bytes(b"a" * (MAX_BYTES + 1))
    expected = {
        "missing.yaml": "missing.yaml  no such file; expected a recipe in YAML",
        ".": ".  is a directory; expected a recipe in YAML",
        "latin.yaml": "latin.yaml:2:10  byte 0xe9 is not UTF-8; save the file as UTF-8",
        "large.yaml": f"large.yaml  expected a recipe of at most {MAX_BYTES // 1024} KiB; this file is larger",
    }
    for name, line in expected.items():
        with pytest.raises(RecipeError) as raised:
            read_yaml(Path(name))
        assert raised.value.problems == (line,)


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: no\r\n")
    assert read_yaml(file).data == {"a": 1, "b": "no"}


plain_data = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from(["no", "1e-5", "012", "True", "None", ".inf", "~", "", "<<", "=", "12:30", "a\nb", " a", "a: b", "#"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(data=plain_data)
def test_what_is_written_is_read_back(data: Any) -> None:
    document = parse(write_yaml(data))
    assert document.readable
    assert not document.problems
    assert repr(document.data) == repr(data)  # repr: 1 is not 1.0, and -0.0 is not 0.0


@settings(max_examples=300, deadline=None)
@given(text=st.text(alphabet=st.sampled_from(list("ab:-[]{}#&*!|>'\"%@`,?\n\t 01.e~\\Ux\x00\x85\ufeff")), max_size=40))
def test_no_text_raises(text: str) -> None:
    document = parse(text)
    assert document.readable or len(document.problems) == 1
    for problem in document.problems:
        assert str(problem).isprintable()


def test_written_numbers_are_numbers_for_other_readers_too() -> None:
    written = write_yaml({"lr": 1e-05, "eps": 1e-08, "tag": "1e-5", "split": "no"})
    assert pyyaml.safe_load(written) == {"lr": 1e-05, "eps": 1e-08, "tag": "1e-5", "split": "no"}
    assert math.isclose(parse(written).data["lr"], 1e-05)
