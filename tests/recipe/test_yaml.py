"""Strict YAML: scalars mean one thing, nothing is executed or guessed, every key and value has a place."""

import itertools
import math
import time
from pathlib import Path
from typing import Any

import pytest
import yaml as pyyaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtrain.errors import RecipeError
from rmtrain.recipe.parts import read_parts
from rmtrain.recipe.yaml import MAX_BYTES, MAX_DEPTH, MAX_VALUES, Document, Place, parse_yaml, read_yaml, write_yaml
from tests.recipe.recipes import assert_problems

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

MALFORMED = [  # text, and the place of its one problem
    ("a: b: c", "1:5"),
    ("a: [1, 2", "1:9"),
    ("a: [", "1:5"),
    ("a:\n  b: 1\n c: 2", "3:2"),
    ("a: 'x", "1:6"),
    ("a:\n\tb: 1", "2:1"),
    ("a: @x", "1:4"),
    ("a: *x", "1:4"),
    ("a: 1\n---\nb: 2", "2:1"),
    ("a\nb: 1", "2:2"),
    ("a: \x00", "1:4"),
    ('a: "\\UFFFFFFFF"', "1:7"),
    ("%YAML 1." + "1" * 5000 + "\n---\na: 1", "1:9"),
    ("[" * 50 + "]" * 50, "1:42"),
    ("a: !!str 1", "1:4"),
    ("a: !custom 1", "1:4"),
    ("!!str a: 1", "1:1"),
    ("a: &a [*a]", "1:4"),
]

REFUSED = [  # text, and `place|key|words` of its one problem
    ("a: 1\nb: 2\na: 3", "3:1|a|duplicate|1|3"),
    ("a: {b: 1, b: 2}", "1:11|a.b|duplicate"),
    ("a: True", '1:4|a|true|"True"'),
    ("a: FALSE", '1:4|a|false|"FALSE"'),
    ("a: None", '1:4|a|null|"None"'),
    ("a: .inf", "1:4|a|.inf"),
    ("a: .NaN", "1:4|a|.NaN"),
    ("a: 1e999", "1:4|a|number"),
    ("a: 99999999999999999999", "1:4|a|number"),
    ("a: 0xffffffffffffffffff", "1:4|a|number"),
    ("a: " + "9" * 5000, "1:4|a|number"),
    ("null: a", "1:1|null|quotes"),
    ("True: a", "1:1|True|quotes"),
    ("{1: a, '1': b}", "1:8|1|duplicate"),
    ("? [a]\n: 1", "1:3||key"),
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


def test_pyyaml_reads_some_scalars_differently() -> None:
    different = [text for text, value in SCALARS if text not in ("<<", "=") and pyyaml.safe_load(f"key: {text}")["key"] != value]
    assert {"1e-5", "no", "012", "12:30"} <= set(different), "guard: PyYAML reads these another way"


@pytest.mark.parametrize(("text", "place"), MALFORMED)
def test_malformed_yaml_is_one_problem(text: str, place: str) -> None:
    document = parse(text)
    assert document.data is None
    (line,) = map(str, document.problems)
    assert line.startswith(f"{place}  "), line
    assert line.isprintable()


@pytest.mark.parametrize(("text", "expected"), REFUSED)
def test_ambiguous_yaml_is_refused(text: str, expected: str) -> None:
    document = parse(text)
    assert document.data is not None
    assert_problems([str(problem) for problem in document.problems], [expected])


def test_all_problems_come_at_once() -> None:
    text = "\n".join(f"key{i}: {text.removeprefix('a: ')}" for i, (text, _) in enumerate(REFUSED[2:10]))
    assert [problem.path for problem in parse(text).problems] == [(f"key{i}",) for i in range(8)]


def test_every_key_and_value_has_a_place() -> None:
    document = parse("a: 1\nb:\n  - x: {y: 2}\n  - &k [3]\nc: *k\nd:\n")
    keys = {path: place[1:3] for path, place in document.keys.items()}
    values = {path: place[1:3] for path, place in document.values.items()}
    assert keys[("a",)] == (1, 1)
    assert values[("a",)] == (1, 4)
    assert keys[("b", 0)] == values[("b", 0)] == (3, 5)
    assert keys["b", 0, "x", "y"] == (3, 9)
    assert values["b", 0, "x", "y"] == (3, 12)
    assert values[("c", 0)] == values[("b", 1, 0)] == (4, 9), "an alias has the place of its anchor"
    assert values[("d",)] == keys[("d",)] == (6, 1), "an empty value has the place of its key"
    assert document.key_place(("b", 0, "z", "q")) == document.keys["b", 0], "what is missing has the place of its section"
    assert document.data == {"a": 1, "b": [{"x": {"y": 2}}, [3]], "c": [3], "d": None}


def test_an_alias_is_a_copy() -> None:
    data = parse("a: &k {x: 1}\nb: *k").data
    assert data["a"] == data["b"]
    assert data["a"] is not data["b"]


def test_a_tag_runs_nothing(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    text = f"a: !!python/object/apply:os.system ['touch {canary}']"
    (line,) = map(str, parse(text).problems)
    assert line.startswith("1:4  ")
    assert "!!python/object/apply:os.system" in line
    assert not canary.exists()
    pyyaml.unsafe_load(text)
    assert canary.exists(), "guard: a careless loader would have run it"


def bomb(names: str, times: int) -> str:
    lines = [f"a: &a [{', '.join(['x'] * times)}]"]
    lines += [f"{name}: &{name} [{', '.join([f'*{before}'] * times)}]" for before, name in itertools.pairwise(names)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        (bomb("abcdefghijk", 9), str(MAX_VALUES)),
        ("a: &a [*a, *a, *a]", str(MAX_DEPTH)),
        ("a: &a {b: &b [*a, *b], c: *a}", str(MAX_DEPTH)),
        ("[" * (MAX_BYTES - 1), str(MAX_DEPTH)),
        ("{a: " * 30_000, str(MAX_DEPTH)),
        ("- " * 60_000, str(MAX_DEPTH)),
        (bomb("abcdefghijklmnopqrstuvwxyz", 1) + "\nz1: " + "[" * 30 + "*z" + "]" * 30, str(MAX_DEPTH)),
    ],
    ids=["laughs", "itself", "each other", "brackets", "braces", "dashes", "deep by aliases"],
)
def test_an_alias_bomb_ends_in_one_line(text: str, limit: str) -> None:
    """A billion laughs are 9^11 values, and an anchor can contain itself: without limits they would not end."""
    started = time.monotonic()
    document = parse(text)
    assert time.monotonic() - started < 60, "guard: it ended by itself"
    assert document.data is None
    (line,) = map(str, document.problems)
    assert limit in line


def test_unreadable_files_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("latin.yaml").write_bytes("run: x\nname: café\n".encode("latin-1"))
    Path("large.yaml").write_bytes(b"a" * (MAX_BYTES + 1))
    expected = {
        "missing.yaml": "missing.yaml|",
        ".": ".|",
        "latin.yaml": "latin.yaml:2:10||0xe9|UTF-8",
        "large.yaml": f"large.yaml||{MAX_BYTES // 1024} KiB",
    }
    for name, problem in expected.items():
        with pytest.raises(RecipeError) as raised:
            read_parts([Path(name)])
        assert_problems(raised.value.problems, [problem])


def test_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
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
def test_written_data_is_read_back(data: Any) -> None:
    document = parse(write_yaml(data))
    assert not document.problems
    assert repr(document.data) == repr(data)  # repr: 1 is not 1.0, and -0.0 is not 0.0


@settings(max_examples=300, deadline=None)
@given(text=st.text(alphabet=st.sampled_from(list("ab:-[]{}#&*!|>'\"%@`,?\n\t 01.e~\\Ux\x00\x85\ufeff")), max_size=40))
def test_no_text_raises(text: str) -> None:
    document = parse(text)
    assert document.data is not None or len(document.problems) <= 1
    for problem in document.problems:
        assert str(problem).isprintable()


def test_other_readers_read_the_same_numbers() -> None:
    written = write_yaml({"lr": 1e-05, "eps": 1e-08, "tag": "1e-5", "split": "no"})
    assert pyyaml.safe_load(written) == {"lr": 1e-05, "eps": 1e-08, "tag": "1e-5", "split": "no"}
    assert math.isclose(parse(written).data["lr"], 1e-05)
