from pathlib import Path
from typing import Any

import pytest

from rmtrain.data.comparison import Comparison, Dropped, Preference
from rmtrain.data.rows.formats import adapt
from rmtrain.data.rows.loading import load_comparisons
from rmtrain.errors import DataError
from rmtrain.recipe.schema import AbSource
from tests.helpers import write_jsonl

LABEL = {"by": "value", "column": "winner", "values": {"a": "a", "b": "b", "both": "tie"}}
SIGN = {"by": "sign", "column": "strength", "positive": "b"}
ROW = {"prompt": "q", "x": "left", "y": "right", "winner": "b", "strength": -2, "sx": 1.0, "sy": 4.5, "m": 0.25}
Q, Q2 = {"role": "user", "content": "q"}, {"role": "user", "content": "q2"}


def source(**keys: Any) -> AbSource:
    return AbSource(**{"path": "ab.jsonl", "format": "ab", "a": "x", "b": "y", "label": LABEL, **keys})


def compared(row: dict[str, Any], **keys: Any) -> Comparison:
    result = adapt(row, "ab:0", source(**keys))
    assert isinstance(result, Comparison), result
    return result


def dropped(row: dict[str, Any], **keys: Any) -> Dropped:
    result = adapt(row, "ab:0", source(**keys))
    assert isinstance(result, Dropped), result
    return result


def texts(result: Comparison) -> list[str]:
    return [response[-1]["content"] for response in result.responses]


def test_better_candidate_is_response_0() -> None:
    for winner, expected in (("a", ["left", "right"]), ("b", ["right", "left"])):
        result = compared(ROW | {"winner": winner})
        assert texts(result) == expected
        assert list(result.prompt) == [Q]
        assert result.preferences == (Preference(0, 1),)


def test_dotted_paths_reach_candidates_and_prompt() -> None:
    row = {"info": {"the post": "q"}, "sum-maries": [{"text": "left"}, {"text": "right"}], "choice": 1}
    keys = {"prompt": "info.the post", "a": "sum-maries.0.text", "b": "sum-maries.1.text"}
    assert texts(compared(row, **keys, label={"by": "index", "column": "choice"})) == ["right", "left"]


def test_conversations_split_where_they_differ() -> None:
    left = [Q, {"role": "assistant", "content": "a"}, Q2, {"role": "assistant", "content": "c"}]
    right = [Q, {"role": "assistant", "content": "b"}, Q2, {"role": "assistant", "content": "d"}]
    result = compared({"x": left, "y": right, "winner": "b"})
    assert list(result.prompt) == [Q]
    assert [len(response) for response in result.responses] == [3, 3]
    assert texts(result) == ["d", "c"]


def test_ties_are_dropped_or_half() -> None:
    """A tie is dropped or, with `tie: half`, kept with probability 0.5 and without a margin."""
    tie = ROW | {"winner": "both"}
    assert dropped(tie).reason == "tie"
    half = compared(tie, tie="half", margin="m")
    assert texts(half) == ["left", "right"]
    assert half.preferences == (Preference(0, 1, margin=0.0, probability=0.5),)
    assert compared(ROW, tie="half", margin="m").preferences == (Preference(0, 1, margin=0.25),)


def test_trap_20_tie_error_names_rows(tmp_path: Path) -> None:
    """With `tie: error`, ties are an error that names the first rows and counts the others."""
    rows = [ROW | {"prompt": f"q{number}", "winner": "both" if number % 2 else "a"} for number in range(14)]
    file = write_jsonl(tmp_path / "ab.jsonl", rows)
    with pytest.raises(DataError, match=r"^ab: .*tie: error.* ab:1: .*; ab:9: .* 2 more$"):
        list(load_comparisons(source(path=str(file), tie="error")))
    (batch,) = load_comparisons(source(path=str(file)))
    assert [isinstance(row, Dropped) for row in batch] == [False, True] * 7


def test_margin_from_column_scores_or_label() -> None:
    assert compared(ROW, margin="m").preferences[0].margin == 0.25
    assert compared(ROW, margin=["sx", "sy"]).preferences[0].margin == 3.5
    assert compared(ROW, label=SIGN, margin_from_label=True).preferences[0].margin == 2.0
    scores = {"by": "scores", "a": "sx", "b": "sy"}
    assert compared(ROW, label=scores, margin_from_label=True).preferences[0].margin == 3.5
    against = dropped(ROW | {"winner": "a"}, margin=["sx", "sy"])
    assert against.reason == "bad_margin"
    assert against.detail.endswith("-3.5")
    assert compared(ROW | {"m": None}, margin="m", margin_default=0.5).preferences[0].margin == 0.5
    wide = ROW | {"sx": -1.7e308, "sy": 1.7e308}
    assert dropped(wide, label=scores, margin_from_label=True).reason == "bad_margin"
    assert dropped(wide, margin=["sx", "sy"]).reason == "bad_margin"


@pytest.mark.parametrize(
    ("reason", "row"),
    [
        ("no_label", ROW | {"winner": None}),
        ("unknown_label", ROW | {"winner": "c"}),
        ("identical", ROW | {"x": "right "}),
        ("empty_response", ROW | {"x": ""}),
        ("missing_column", {"prompt": "q", "x": "left", "winner": "a"}),
        ("response_repeats_prompt", ROW | {"x": "q left", "y": "q right"}),
    ],
)
def test_unusable_ab_row_is_dropped(reason: str, row: dict[str, Any]) -> None:
    assert dropped(row).reason == reason


def test_only_unknown_labels_are_refused(tmp_path: Path) -> None:
    """A first batch with unknown labels only is an error; one with ties only is not."""
    file = write_jsonl(tmp_path / "ab.jsonl", [ROW | {"winner": "model_a"}] * 4)
    with pytest.raises(DataError, match=r"^ab: .*\b4 .*\(unknown_label\): ab\.jsonl:1: winner .*'model_a'.* a, b, both"):
        list(load_comparisons(source(path=str(file))))
    write_jsonl(file, [ROW | {"winner": "both"}] * 4)
    (batch,) = load_comparisons(source(path=str(file)))
    assert [row.reason for row in batch if isinstance(row, Dropped)] == ["tie"] * 4, "ties may come first, and others after them"


def test_csv_cells_decode_labels_and_margins(tmp_path: Path) -> None:
    file = tmp_path / "ab.csv"
    file.write_text('prompt,x,y,labels,m\n"[""q""]","[""1""]","[""2""]",1,0.5\n"[""q""]","[""1""]","[""2""]",0,\n')
    label = {"by": "value", "column": "labels", "values": {1: "a", 0: "b"}}
    keys = {"label": label, "margin": "m", "margin_default": 0.0, "messages": {"decode_json": True}}
    (batch,) = load_comparisons(source(path=str(file), **keys))
    assert [texts(row) for row in batch if isinstance(row, Comparison)] == [["1", "2"], ["2", "1"]]
    assert [row.preferences[0].margin for row in batch if isinstance(row, Comparison)] == [0.5, 0.0]


SWAPPED: list[tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]] = [
    (LABEL, LABEL | {"values": {"a": "b", "b": "a", "both": "tie"}}, [{"winner": value} for value in ("a", "b", "both")]),
    (
        {"by": "index", "column": "n"},
        {"by": "value", "column": "n", "values": {0: "b", 1: "a"}},
        [{"n": value} for value in (0, 1, "1")],
    ),
    (
        {"by": "one_hot", "a": "l", "b": "r"},
        {"by": "one_hot", "a": "r", "b": "l"},
        [{"l": value, "r": not value} for value in (True, False)],
    ),
    (SIGN, SIGN | {"positive": "a"}, [{"strength": value} for value in (-1, 0, 2.5)]),
    (
        {"by": "scores", "a": "sx", "b": "sy"},
        {"by": "scores", "a": "sy", "b": "sx"},
        [{"sx": value, "sy": 1} for value in (0, 1, 2)],
    ),
]


@pytest.mark.parametrize(("label", "mirrored", "cells"), SWAPPED, ids=[str(label["by"]) for label, _, _ in SWAPPED])
def test_trap_20_mirrored_label_gives_same_comparison(
    label: dict[str, Any], mirrored: dict[str, Any], cells: list[dict[str, Any]]
) -> None:
    """Swapping the candidates and mirroring the label gives the same comparison, for each kind of label."""
    decided = 0
    for cell in cells:
        row = ROW | cell
        one, other = (adapt(row, "ab:0", source(**keys)) for keys in ({"label": label}, {"a": "y", "b": "x", "label": mirrored}))
        assert one == other
        decided += isinstance(one, Comparison)
        wrong = adapt(row, "ab:0", source(label=mirrored))
        if isinstance(one, Comparison) and isinstance(wrong, Comparison):
            assert texts(wrong) == texts(one)[::-1], "guard: a mirrored label alone inverts the pair"
    assert decided >= 2
