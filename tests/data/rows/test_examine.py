"""From rows alone to the entry that reads them: the shapes of documented datasets, and columns with other names."""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtrain.data.comparison import Comparison
from rmtrain.data.rows import examine as examining
from rmtrain.data.rows.columns import Sides, outcome_of, words
from rmtrain.data.rows.examine import GOOD, Guess, RowSample, examine, take_sample
from rmtrain.errors import DataError
from rmtrain.recipe.datasets import as_source, entries, find_entries
from rmtrain.recipe.schema import PairSource
from tests.catalogue import CATALOGUE, Compared, Rows, a, s, u
from tests.helpers import write_jsonl

SHAPES = [
    "trl-internal-testing/sentiment-trl-style",
    "HuggingFaceH4/ultrafeedback_binarized",
    "Anthropic/hh-rlhf",
    "trl-lib/hh-rlhf-helpful-base",
    "Skywork/Skywork-Reward-Preference-80K-v0.2",
    "allenai/llama-3.1-tulu-3-8b-preference-mixture",
    "Intel/orca_dpo_pairs",
    "argilla/ultrafeedback-binarized-preferences",
    "dpo_alpaca.json",
    "dpo_sharegpt.json",
    "dpo_v1.jsonl",
    "rm_swift.jsonl",
    "nvidia/HelpSteer3",
    "lmarena-ai/arena-human-preference-55k",
    "lmarena-ai/arena-human-preference-100k",
    "argilla/dpo-mix-7k",
    "berkeley-nest/Nectar",
    "allenai/reward-bench-2",
    "THU-KEG/RM-Bench",
    "llmbar_natural.json",
    "pandalm_test.json",
]
"""Documented datasets whose entry follows from their rows alone, apart from keys such as `margin` and `filter`."""
ASKED = {"nvidia/HelpSteer3": ["label"]}
"""Datasets whose rows do not say everything, with the keys that are asked about."""


@pytest.fixture
def undocumented(monkeypatch: pytest.MonkeyPatch) -> None:
    """No documented entry is looked up by its columns."""
    monkeypatch.setattr(examining, "entries", tuple)


def sample(path: Path, folder: Path) -> RowSample:
    return take_sample(PairSource(path=str(path)), folder)


def guess_of(rows: list[dict[str, Any]], folder: Path) -> Guess:
    return examine(sample(write_jsonl(folder / "rows.jsonl", rows), folder), "rows.jsonl")


def usable(shape: Rows) -> tuple[list[dict[str, Any]], list[Compared]]:
    """The rows that are compared, several times, with other prompts each time, and one result of each."""
    kept = [(row, result) for row, result in zip(shape.rows, shape.expected, strict=False) if isinstance(result, Compared)]
    return [row for row, _ in kept], [result for _, result in kept]


def texts(row: Comparison) -> tuple[list[str], list[str]]:
    """The prompt and the last turn of each response, the best first, as text."""
    return [turn["content"] for turn in row.prompt], [turns[-1]["content"] for turns in row.responses]


def expected_texts(result: Compared) -> tuple[list[str], list[str]]:
    def turns(text: str) -> list[str]:
        return [turn.partition(": ")[2] if turn[1:3] == ": " else turn for turn in text.split(" / ")]

    return turns(result.prompt), [turns(response)[-1] for response in result.responses]


@pytest.mark.usefixtures("undocumented")
@pytest.mark.parametrize("name", SHAPES)
def test_shape_of_a_documented_dataset_is_found(name: str, tmp_path: Path) -> None:
    """The guess makes the comparisons that the documented entry makes, with a question exactly where no row can tell."""
    rows, results = usable(CATALOGUE[name])
    guess = guess_of(rows, tmp_path)
    assert guess.fit.share >= GOOD, guess.fit.reason
    assert [question.key for question in guess.questions] == ASKED.get(name, [])
    assert [texts(row) for row in guess.fit.comparisons] == [expected_texts(result) for result in results]
    assert results, "guard: the dataset has usable rows"


def test_documented_entry_is_found_by_columns(tmp_path: Path) -> None:
    """A copy of a documented dataset is read by its tested entry, which knows the direction of its label."""
    rows, _ = usable(CATALOGUE["nvidia/HelpSteer3"])
    guess = guess_of(rows, tmp_path)
    assert (guess.alike, guess.questions) == ("nvidia/HelpSteer3", ())
    (entry,) = find_entries("nvidia/helpsteer3", "PREFERENCE")
    assert {key: value for key, value in entry.items() if key not in examining.PLACE_KEYS} == guess.fit.entry


def test_configurations_of_documented_datasets() -> None:
    """The name, directory or tag after the colon chooses an entry; another directory takes the place of the documented one."""
    assert [entry["format"] for entry in find_entries("nvidia/HelpSteer2")] == ["ranked", "ab"]
    assert [entry["format"] for entry in find_entries("NVIDIA/helpsteer2", "preference")] == ["ab"]
    assert [entry["tag"] for entry in find_entries("PKU-Alignment/PKU-SafeRLHF", "saferlhf-safe")] == ["saferlhf-safe"]
    assert [entry["data_dir"] for entry in find_entries("Anthropic/hh-rlhf", "helpful-base")] == ["helpful-base"]
    assert find_entries("dpo_alpaca.json") == [], "a local file is not a dataset of the Hub"
    assert find_entries("owner/unknown") == []
    assert len([as_source(entry) for entry in entries()]) > 50, "guard: the entries are there, and valid"


RESPONSES = [f"this is the first answer, number {number}" for number in range(8)]
OTHERS = [f"and that is another one, number {number}" for number in range(8)]
QUESTIONS = [f"what about {number}?" for number in range(8)]


def rows_with(**columns: list[Any]) -> list[dict[str, Any]]:
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


BOTH = {"question": QUESTIONS, "answer_a": RESPONSES, "answer_b": OTHERS}
COLUMNS: dict[str, tuple[dict[str, list[Any]], dict[str, Any], list[str]]] = {
    "good and bad": (
        {"query": QUESTIONS, "good": RESPONSES, "bad": OTHERS},
        {"chosen": "good", "rejected": "bad", "prompt": "query"},
        [],
    ),
    "letters": (
        BOTH | {"winner": list("ABABABAB")},
        {"label": {"by": "value", "column": "winner", "values": {"A": "a", "B": "b"}}},
        [],
    ),
    "sentences": (
        BOTH | {"verdict": ["A is better", "B is better", "tie", "A is better"] * 2},
        {"label": {"by": "value", "column": "verdict", "values": {"A is better": "a", "B is better": "b", "tie": "tie"}}},
        [],
    ),
    "bits": (BOTH | {"label": [0, 1] * 4}, {"label": {"by": "index", "column": "label"}}, ["label"]),
    "named bits": (
        {"question": QUESTIONS, "response_0": RESPONSES, "response_1": OTHERS, "better": [0, 1] * 4},
        {"label": {"by": "value", "column": "better", "values": {"0": "a", "1": "b"}}},
        [],
    ),
    "signs": (
        BOTH | {"preference": [-2, 1, 3, -1] * 2},
        {"label": {"by": "sign", "column": "preference", "positive": "b"}},
        ["label"],
    ),
    "a scale": (
        BOTH | {"preference": [1, 2, 4, 5, 3, 1, 2, 4]},
        {"label": {"by": "value", "column": "preference", "values": {"1": "a", "2": "a", "3": "tie", "4": "b", "5": "b"}}},
        ["label"],
    ),
    "names of models": (
        {
            "prompt": QUESTIONS,
            "model_a": ["x"] * 8,
            "model_b": ["y"] * 8,
            "response_a": RESPONSES,
            "response_b": OTHERS,
            "winner": ["model_a", "model_b"] * 4,
        },
        {"format": "ab", "a": "response_a", "b": "response_b"},
        [],
    ),
    "a boolean with a name": (
        BOTH | {"a_is_better": [True, False] * 4},
        {"label": {"by": "value", "column": "a_is_better", "values": {"true": "a", "false": "b"}}},
        [],
    ),
    "a boolean": (
        BOTH | {"label": [True, False] * 4},
        {"label": {"by": "value", "column": "label", "values": {"true": "a", "false": "b"}}},
        ["label"],
    ),
    "scores": (
        BOTH | {"score_a": [1, 2, 3, 4] * 2, "score_b": [4, 3, 2, 1] * 2},
        {"label": {"by": "scores", "a": "score_a", "b": "score_b"}},
        ["label"],
    ),
    "ranks": (
        BOTH | {"rank_a": [1, 2] * 4, "rank_b": [2, 1] * 4},
        {"label": {"by": "scores", "a": "rank_a", "b": "rank_b", "lower_is_better": True}},
        [],
    ),
    "votes": (
        BOTH | {"votes_a": [5, 2] * 4, "votes_b": [2, 7] * 4},
        {"label": {"by": "votes", "a": "votes_a", "b": "votes_b"}},
        [],
    ),
    "a probability": (
        BOTH | {"preference": [0.2, 0.9, 0.7, 0.4] * 2},
        {"label": {"by": "probability", "column": "preference"}},
        ["label"],
    ),
    "a ranked list": (
        {"prompt": QUESTIONS, "answers": [[{"text": "x y z", "rank": 2}, {"text": "u v w", "rank": 1}]] * 8},
        {"format": "ranked", "responses": "answers", "response": "text", "score": "rank", "lower_is_better": True},
        [],
    ),
    "parallel lists": (
        {"prompt": QUESTIONS, "responses": [["x y z", "u v w"]] * 8, "scores": [[0.5, 2.0]] * 8},
        {"format": "ranked", "responses": "responses", "score": "scores"},
        ["score"],
    ),
    "rows of one prompt": (
        {"prompt": [QUESTIONS[n // 2] for n in range(8)], "response": RESPONSES, "score": [1, 2, 5, 3, 2, 4, 5, 1]},
        {"format": "ranked", "group_by": "prompt", "response": "response", "score": "score"},
        ["score"],
    ),
    "ratings": (
        {"question": QUESTIONS, "answer": RESPONSES, "rating": [1, 2, 3, 4, 5, 4, 3, 2]},
        {"format": "scored", "prompt": "question", "response": "answer", "target": "rating"},
        ["target"],
    ),
    "several ratings": (
        {"question": QUESTIONS, "answer": RESPONSES, "helpfulness": [1, 2, 3, 4] * 2, "correctness": [4, 2, 3, 1] * 2},
        {"format": "scored", "target": "correctness"},
        ["target", "target"],
    ),
    "right or wrong": (
        {"problem": QUESTIONS, "solutions": [["x y z", "u v w"]] * 8, "is_correct": [[True, False]] * 8},
        {"format": "scored", "prompt": "problem", "responses": "solutions", "target": "is_correct"},
        [],
    ),
    "unpaired": (
        {"prompt": QUESTIONS, "completion": RESPONSES, "label": [True, False] * 4},
        {"format": "scored", "response": "completion", "target": "label"},
        ["target"],
    ),
    "thumbs": (
        {"prompt": QUESTIONS, "completion": RESPONSES, "outcome": ["👍", "👎"] * 4},
        {"format": "scored", "target": "outcome", "values": {"👍": 1, "👎": 0}},
        [],
    ),
    "strange messages": (
        {
            "chosen": [
                [{"who": "asker", "says": q}, {"who": "helper", "says": r}] for q, r in zip(QUESTIONS, RESPONSES, strict=True)
            ],
            "rejected": [
                [{"who": "asker", "says": q}, {"who": "helper", "says": r}] for q, r in zip(QUESTIONS, OTHERS, strict=True)
            ],
        },
        {"messages": {"role_key": "who", "content_key": "says", "roles": {"asker": "user", "helper": "assistant"}}},
        [],
    ),
    "a system column": (
        {"system": ["Be brief.", ""] * 4, "prompt": QUESTIONS, "chosen": RESPONSES, "rejected": OTHERS},
        {"system": "system"},
        [],
    ),
    "a column of sources": (
        {"source": ["web", "book"] * 4, "prompt": QUESTIONS, "chosen": RESPONSES, "rejected": OTHERS},
        {},
        [],
    ),
    "whole conversations": (
        {
            "prompt": QUESTIONS,
            "chosen": [[u("q"), a("x"), u(q), a("one")] for q in QUESTIONS],
            "rejected": [[u("q"), a("x"), u(q), a("two")] for q in QUESTIONS],
        },
        {"prompt": "implicit"},
        [],
    ),
    "conversations with system turns": (
        {
            "chosen": [[s("Brief."), u(q), a("one")] for q in QUESTIONS],
            "rejected": [[s("Brief."), u(q), a("two")] for q in QUESTIONS],
        },
        {},
        [],
    ),
}


@pytest.mark.parametrize("what", COLUMNS)
def test_columns_are_understood(what: str, tmp_path: Path) -> None:
    """Every row is kept, the keys are the right ones, and only what no row can tell is asked."""
    columns, keys, asked = COLUMNS[what]
    guess = guess_of(rows_with(**columns), tmp_path)
    assert guess.fit.share == 1.0, guess.fit.reason
    assert {key: guess.fit.entry.get(key) for key in keys} == keys
    assert [question.key for question in guess.questions] == asked
    if not keys:
        assert guess.fit.entry == {}
    for question in guess.questions:
        first, other = question.choices[:2]
        assert first[0] in ("yes", "correctness")
        assert guess.fit.entry | other[1] != guess.fit.entry, "guard: the other answer changes something"


def test_another_answer_turns_the_label_around(tmp_path: Path) -> None:
    columns = COLUMNS["signs"][0]
    read = sample(write_jsonl(tmp_path / "rows.jsonl", rows_with(**columns)), tmp_path)
    guess = examine(read, "rows.jsonl")
    turned = guess.answered(guess.questions[0], 1, read)
    assert turned.questions == ()
    for one, other in zip(guess.fit.comparisons, turned.fit.comparisons, strict=True):
        assert texts(one)[1] == texts(other)[1][::-1]
    assert len(turned.fit.comparisons) == 8, "guard"


@pytest.mark.parametrize(
    ("columns", "parts"),
    [
        (
            {"question": QUESTIONS, "answer": RESPONSES},
            ["chosen and rejected", "column question: text of", "column answer: text of"],
        ),
        (
            BOTH | {"winner": ["x", "y"] * 4},
            ["answer_a and answer_b", "winner has the values x, y", "column winner: 2 different values"],
        ),
        ({"n": [*range(8)]}, ["chosen and rejected", "column n: numbers from 0 to 7"]),
        (
            {"question": QUESTIONS, **{f"answer_{n}": RESPONSES for n in range(1, 5)}, "label": [1, 2] * 4},
            ["chosen and rejected", "column answer_4"],
        ),
        ({"chosen": RESPONSES, "rejected": RESPONSES}, ["identical"]),
    ],
)
def test_rows_that_fit_nothing_are_described(columns: dict[str, list[Any]], parts: list[str], tmp_path: Path) -> None:
    """One line says what is needed, and one for each column what it has."""
    with pytest.raises(DataError) as error:
        guess_of(rows_with(**columns), tmp_path)
    assert all(problem.startswith("rows.jsonl: ") for problem in error.value.problems)
    for part in parts:
        assert any(part in problem for problem in error.value.problems), error.value.problems
    assert len(error.value.problems) > len(columns), "guard: each column has a line"


def test_sample_knows_whether_it_is_whole(tmp_path: Path) -> None:
    """Of a larger file, the number of rows is estimated from the share that was read."""
    few = sample(write_jsonl(tmp_path / "few.jsonl", rows_with(**BOTH)), tmp_path)
    assert (few.is_whole, few.total, len(few.rows)) == (True, 8, 8)
    many = sample(write_jsonl(tmp_path / "many.jsonl", rows_with(**BOTH) * 2000), tmp_path)
    assert (many.is_whole, len(many.rows)) == (False, examining.SAMPLE_ROWS)
    assert many.total == pytest.approx(16_000, rel=0.3)


@pytest.mark.parametrize(
    ("value", "outcome"),
    [
        *(
            ("A", "a"),
            ("b", "b"),
            ("model_a", "a"),
            ("answer_b", "b"),
            ("B is a bit better", "b"),
            ("first", "a"),
            ("right", "b"),
        ),
        *(("tie (bothbad)", "tie"), ("Draw", "tie"), ("N/A", None), ("1", None), ("gpt-4", None), ("", None)),
    ],
)
def test_values_of_labels(value: str, outcome: str | None) -> None:
    assert outcome_of(value, Sides("answer_a", "answer_b", ("a", "b"))) == outcome


def test_names_are_split_into_words() -> None:
    for name in ("human_ref_A", "humanRefA", "human-ref-a", "Human Ref A"):
        assert words(name) == ("human", "ref", "a")
    assert words("response1") == ("response", "1")
    assert words("ответ_1") == ("ответ", "1")


def test_csv_cells_are_read_as_a_run_does(tmp_path: Path) -> None:
    """Numbers are text in CSV; lists are JSON text."""
    file = tmp_path / "rows.csv"
    with file.open("w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.writer(stream, delimiter=";")
        writer.writerow(["prompt", "response_1", "response_2", "preference", "empty"])
        writer.writerows([f'["q {n}"]', f'["one, {n}"]', f'["two\\n{n}"]', (-1) ** n * 2, ""] for n in range(8))
    guess = examine(sample(file, tmp_path), "rows.csv")
    assert guess.fit.share == 1.0, guess.fit.reason
    assert guess.fit.entry["messages"] == {"decode_json": True}
    assert guess.fit.entry["label"]["by"] == "sign"
    assert texts(guess.fit.comparisons[1]) == (["q 1"], ["one, 1", "two\n1"]), "guard: below 0 means the first"


NAMES = st.sampled_from(
    [
        "prompt",
        "question",
        "chosen",
        "rejected",
        "response_a",
        "response_b",
        "answer",
        "label",
        "winner",
        "score",
        "messages",
        "x.y",
        "",
        "é",
    ]
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.floats(allow_nan=False),
    st.text(max_size=8),
    st.sampled_from(["A", "b", "tie", "1"]),
)
CELLS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["role", "content", "text", "score", "a"]), inner, max_size=3),
        inner.map(json.dumps),
    ),
    max_leaves=6,
)


def test_any_rows_give_a_guess_or_lines(tmp_path: Path) -> None:
    """Whatever the rows are, the answer is a valid entry that makes comparisons, or an error of the data."""
    formats: Counter[str] = Counter()

    @given(st.lists(st.dictionaries(NAMES, CELLS, min_size=1, max_size=6), min_size=1, max_size=6))
    @settings(max_examples=150)
    def check(rows: list[dict[str, Any]]) -> None:
        try:
            guess = guess_of(rows, tmp_path)
        except DataError:
            formats["none"] += 1
            return
        assert guess.fit.comparisons
        formats[as_source(guess.fit.entry | {"path": "rows.jsonl"}).format] += 1

    check()
    assert formats["none"] > 10
    assert len(formats) > 1, "guard: some rows make comparisons"
