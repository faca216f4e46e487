from pathlib import Path
from typing import Any

import pytest

from rmtrain.data.comparison import Comparison, Dropped, Preference, rows_of
from rmtrain.data.rows import loading
from rmtrain.data.rows.formats import Candidate, adapt
from rmtrain.data.rows.loading import load_comparisons, read_batches
from rmtrain.errors import DataError
from rmtrain.recipe.schema import RankedSource
from tests.helpers import write_jsonl

Q = {"role": "user", "content": "q"}
ROW = {
    "prompt": "q",
    "answers": [
        {"text": "middle", "marks": {"help-ful": "3", "true": 4}, "rank": 2.0},
        {"text": "worst", "marks": {"help-ful": "1", "true": 1}, "rank": 3.0},
        {"text": "best", "marks": {"help-ful": "5", "true": 4}, "rank": 1.0},
    ],
}


def source(**keys: Any) -> RankedSource:
    return RankedSource(
        **{"path": "r.jsonl", "format": "ranked", "responses": "answers", "response": "text", "score": "s", **keys}
    )


def compared(row: dict[str, Any], **keys: Any) -> Comparison:
    result = adapt(row, "r:4", source(**keys))
    assert isinstance(result, Comparison), result
    return result


def dropped(row: dict[str, Any], **keys: Any) -> Dropped:
    result = adapt(row, "r:4", source(**keys))
    assert isinstance(result, Dropped), result
    return result


def texts(result: Comparison) -> list[str]:
    return [response[-1]["content"] for response in result.responses]


def edges(result: Comparison) -> list[tuple[str, str, float]]:
    names = texts(result)
    return [(names[edge.winner], names[edge.loser], edge.margin) for edge in result.preferences]


@pytest.mark.parametrize(
    ("keys", "gaps"),
    [
        ({"score": "marks.help-ful"}, [2.0, 4.0, 2.0]),
        ({"score": {"marks.help-ful": 0.5, "marks.true": 1.0}}, [1.0, 5.0, 4.0]),
        ({"score": "rank", "lower_is_better": True}, [1.0, 2.0, 1.0]),
    ],
)
def test_scores_as_text_weighted_sums_ranks(keys: dict[str, Any], gaps: list[float]) -> None:
    result = compared(ROW, margin_from_score=True, **keys)
    assert list(result.prompt) == [Q]
    assert edges(result) == [("best", "middle", gaps[0]), ("best", "worst", gaps[1]), ("middle", "worst", gaps[2])]
    assert texts(result) == ["best", "middle", "worst"], "the best comes first"


def test_scores_in_a_separate_list() -> None:
    """Scores may be a list of the row; a list of another length is not matched to responses by guessing."""
    row = {"prompt": "q", "answers": ["a", "b", "c"], "s": [1, "3", 2]}
    assert texts(compared(row, response=None)) == ["b", "c", "a"]
    encoded = {"prompt": '"q"', "answers": '["a", "b", "c"]', "s": '[1, "3", 2]'}
    assert texts(compared(encoded, response=None, messages={"decode_json": True})) == ["b", "c", "a"]
    assert dropped(row | {"s": [1, 2]}, response=None).reason == "no_score", "which of them is whose, is not guessed"


def test_items_texts_messages_conversations_or_objects() -> None:
    message = {"role": "assistant", "content": "b", "s": 3}
    assert texts(compared({"prompt": "q", "answers": [message, message | {"content": "a", "s": 4}]}, response=None)) == ["a", "b"]
    talks = [{"turns": [Q, {"role": "assistant", "content": text}], "s": number} for number, text in enumerate("abc")]
    result = compared({"answers": talks}, response="turns")
    assert (list(result.prompt), texts(result)) == ([Q], ["c", "b", "a"])


def test_transcript_prompt_ends_at_the_assistant() -> None:
    row = {
        "prompt": "\n\nHuman: q\n\nAssistant: a\n\nHuman: q2\n\nAssistant: ",
        "answers": [{"answer": "x", "rank": 2.0}, {"answer": "y", "rank": 1.0}],
    }
    keys = {"response": "answer", "score": "rank", "lower_is_better": True, "messages": {"transcript": "hh"}}
    result = compared(row, **keys)
    assert [message["content"] for message in result.prompt] == ["q", "a", "q2"]
    assert texts(result) == ["y", "x"]


def test_only_responses_with_preferences_stay() -> None:
    keys = {"score": "marks.help-ful", "policy": "best_worst"}
    result = compared(ROW, **keys)
    assert texts(result) == ["best", "worst"]
    assert result.preferences == (Preference(0, 1),)


def test_unusable_response_is_left_out_alone() -> None:
    """An unusable response is left out and counted; the row is dropped where fewer than two are left."""
    bad = [
        {"text": "no number", "s": "N/A"},
        {"text": "none", "s": None},
        {"text": "not there"},
        {"text": "words", "s": "true enough"},
        {"text": " ", "s": 9},
        {"s": 9},
        {"text": "twice ", "s": 1},
    ]
    good = [{"text": "twice", "s": 2}, {"text": "b", "s": 3}]
    result = compared({"prompt": "q", "answers": [bad[0], good[0], *bad[1:], good[1]]})
    assert edges(result) == [("b", "twice", 0.0)]
    assert result.left_out == ("no_score",) * 4 + ("empty_response", "missing_column"), "an equal one is not missed"
    lone = dropped({"prompt": "q", "answers": [bad[0], good[0], bad[4]]})
    assert lone.reason == "no_score"
    assert lone.detail.startswith("s of answers.0.text is 'N/A'")
    assert "3 responses" in lone.detail


def test_true_and_false_are_scores() -> None:
    """Right is better than wrong, also where CSV files have them as text; true is 1."""
    answers = [
        {"text": "wrong", "s": False},
        {"text": "right", "s": True},
        {"text": "also", "s": "True"},
        {"text": "half", "s": 0.5},
    ]
    better = [
        ("right", "half", 0.0),
        ("also", "half", 0.0),
        ("right", "wrong", 0.0),
        ("also", "wrong", 0.0),
        ("half", "wrong", 0.0),
    ]
    assert sorted(edges(compared({"prompt": "q", "answers": answers}))) == sorted(better)


@pytest.mark.parametrize(
    ("reason", "row"),
    [
        ("one_response", {"prompt": "q", "answers": [{"text": "a", "s": 1}]}),
        ("one_response", {"prompt": "q", "answers": []}),
        ("identical", {"prompt": "q", "answers": [{"text": "a", "s": 1}, {"text": "a", "s": 2}]}),
        ("tie", {"prompt": "q", "answers": [{"text": "a", "s": 1}, {"text": "b", "s": "1.0"}]}),
        ("not_a_list", {"prompt": "q", "answers": "a"}),
        ("not_a_list", {"prompt": "q", "answers": None}),
        ("missing_column", {"prompt": "q"}),
        ("empty_prompt", {"prompt": "", "answers": [{"text": "a", "s": 1}, {"text": "b", "s": 2}]}),
        ("no_score", {"prompt": "q", "answers": [{"text": "a", "s": 10**400}, {"text": "b", "s": 2}]}),
        ("not_messages", {"prompt": "q", "answers": [{"text": 3, "s": 1}, {"text": 4, "s": 2}]}),
    ],
)
def test_unusable_ranked_row_is_dropped(reason: str, row: dict[str, Any]) -> None:
    assert dropped(row).reason == reason


def single(prompt: str, response: str, score: Any, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "response": response, "help-fulness": score, "verbosity": 1, **more}


GROUP = {"responses": None, "group_by": "prompt", "response": "response", "score": {"help-fulness": 1.0, "verbosity": -0.5}}
ROWS = [
    single("p", "p middle", 3),
    single("q", "q best", 4),
    single("p", "p best", 4),
    single("q", "q worst", "0"),
    single("r", "alone", 1),
    single("p", "p worst", 1),
    single("t", "t one", 2),
    single("p", "p best", 9),
    single("t", "t two", 2),
    single("p", "no number", None),
]


def grouped(folder: Path, rows: list[dict[str, Any]], **keys: Any) -> list[Any]:
    file = write_jsonl(folder / "r.jsonl", rows)
    return [row for batch in load_comparisons(source(**{"path": str(file), **GROUP, **keys})) for row in batch]


def test_rows_with_equal_cells_are_grouped(tmp_path: Path) -> None:
    """Rows with equal `group_by` cells are one comparison, wherever they are in the file; each other row has a reason."""
    rows = grouped(tmp_path, ROWS)
    first, second = (row for row in rows if isinstance(row, Comparison))
    assert (first.id, texts(first)) == ("r:0", ["p best", "p middle", "p worst"])
    assert edges(first) == [("p best", "p middle", 0.0), ("p best", "p worst", 0.0), ("p middle", "p worst", 0.0)]
    assert rows_of(first) == ("r:0", "r:2", "r:5")
    assert (second.id, texts(second), rows_of(second)) == ("r:1", ["q best", "q worst"], ("r:1", "r:3"))
    assert {row.id: row.reason for row in rows if isinstance(row, Dropped)} == {
        "r:4": "one_response", "r:6": "tie", "r:7": "identical", "r:8": "tie", "r:9": "no_score",
    }  # fmt: skip
    assert not any(isinstance(row, Candidate) for row in rows)


def test_rows_without_preference_are_not_paired(tmp_path: Path) -> None:
    rows = grouped(tmp_path, ROWS[:6], policy="best_worst")
    first, second = (row for row in rows if isinstance(row, Comparison))
    assert (first.id, texts(first), rows_of(first)) == ("r:2", ["p best", "p worst"], ("r:2", "r:5"))
    assert rows_of(second) == ("r:1", "r:3")
    assert [(row.id, row.reason) for row in rows if isinstance(row, Dropped)] == [("r:0", "not_paired"), ("r:4", "one_response")]


def test_group_with_another_prompt_drops_row(tmp_path: Path) -> None:
    rows = [single(prompt, f"answer {number}", number, id=7) for number, prompt in enumerate(["p", "p", "other", "p"])]
    (result, lost) = grouped(tmp_path, rows, group_by="id")
    assert texts(result) == ["answer 3", "answer 1", "answer 0"]
    assert (lost.id, lost.reason) == ("r:2", "different_prompts")
    assert lost.detail.startswith("r:0 ")


def test_group_cells_may_be_anything_but_null(tmp_path: Path) -> None:
    rows = [single("p", f"answer {number}", number, id={"b": 1, "a": [2]}) for number in range(2)]
    rows += [single("q", f"answer {number}", number, id="x") for number in range(2)] + [single("r", "lost", 1, id=None)]
    results = grouped(tmp_path, rows, group_by="id")
    assert [rows_of(row) for row in results if isinstance(row, Comparison)] == [("r:0", "r:1"), ("r:2", "r:3")]
    assert [row.reason for row in results if isinstance(row, Dropped)] == ["empty_cell"]


def test_groups_do_not_depend_on_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = grouped(tmp_path, ROWS)
    monkeypatch.setattr(loading, "BATCH_ROWS", 3)
    assert grouped(tmp_path, ROWS) == whole
    batches = list(read_batches(source(path=str(tmp_path / "r.jsonl"), **GROUP)))
    assert [row for batch in batches if isinstance(batch, list) for row in batch] == whole


def test_groups_can_be_gathered_by_prompt(tmp_path: Path) -> None:
    rows = [single("p", f"answer {number}", number, id=number // 2) for number in range(4)]
    file = write_jsonl(tmp_path / "r.jsonl", rows)
    keys = {**GROUP, "group_by": "id", "group_by_prompt": True}
    ((result,),) = read_batches(source(path=str(file), **keys))
    assert isinstance(result, Comparison)
    assert edges(result) == [("answer 1", "answer 0", 0.0), ("answer 3", "answer 2", 0.0)]
    assert rows_of(result) == ("r:0", "r:1", "r:2", "r:3")


def test_infinite_margin_of_group_is_an_error(tmp_path: Path) -> None:
    rows = [single("p", "a", -1.7e308), single("p", "b", 1.7e308)]
    with pytest.raises(DataError, match=r"^margins .*: r:0: "):
        grouped(tmp_path, rows, margin_from_score=True, score="help-fulness")


def test_missing_score_column_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'^r: .*"helpfulness".* prompt, response, help-fulness, verbosity$'):
        grouped(tmp_path, ROWS, score="helpfulness")
