"""Any rows under any settings: a source is refused in one line, or each of its rows is counted once."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rmtrain.data.builder import RowEncoder
from rmtrain.data.comparison import Comparison, Dropped, place_of, rows_of
from rmtrain.data.encoded_rows import RowTask
from rmtrain.data.rows.loading import load_comparisons, read_batches
from rmtrain.data.text.tokenizer import prepared
from rmtrain.errors import DataError
from rmtrain.recipe.schema import AbSource, PairSource, RankedSource, Source
from tests.helpers import byte_bpe, data_of

COLUMNS = ["prompt", "a", "b", "label", "x", "y", "list", "group", "margin", "a.b", "system"]
WORDS = ["yes", "no", "perhaps", " yes\n", "q", "\n\nHuman: q\n\nAssistant: yes", "naïve 日本語", "<|endoftext|>", "\x00"]
texts = st.sampled_from(WORDS) | st.text(max_size=6)
numbers = st.integers(-3, 3) | st.sampled_from([0.5, "1", "2", "N/A", 10**400, 1e308, -1e308, True, None, ""])
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool", "critic"]), "content": texts},
    optional={"tool_calls": st.sampled_from([[], [{"name": "f", "arguments": "{}"}], "f"]), "name": texts, "thinking": texts},
)
turns = st.lists(texts.map(lambda text: {"role": "assistant", "content": text}), min_size=1, max_size=2)
talks = st.builds(lambda ask, reply: [{"role": "user", "content": ask}, *reply], st.sampled_from(["q", "r"]), turns)
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(COLUMNS) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
replies = texts | talks | turns | messages | st.lists(messages, max_size=3) | st.lists(texts, min_size=1, max_size=2)
plain = st.fixed_dictionaries(
    {"text": st.sampled_from(["yes", "no", "perhaps", "so"]), "s": st.integers(0, 4), "t": st.integers(0, 2)}
)
messy = st.fixed_dictionaries({}, optional={"text": replies, "s": numbers, "t": numbers}) | junk
items = st.one_of(plain, plain, plain, messy)
cells: dict[str, st.SearchStrategy[Any]] = {
    "prompt": st.one_of(st.just("p"), st.just("p"), st.sampled_from(["q", ["q"], ["q", "r"]]), replies),
    "a": replies,
    "b": replies,
    "label": st.sampled_from(["a", "b", "tie", 0, 1, "1", True, -2, 2.0, None]) | numbers,
    "x": st.integers(-1, 2) | numbers,
    "y": st.integers(0, 2) | numbers,
    "list": st.lists(items, min_size=2, max_size=4),
    "group": st.sampled_from([1, "1", [1], {"k": 1}]),
    "margin": st.sampled_from([0, 0.5, 2]),
    "system": texts,
}


@st.composite
def rows(draw: st.DrawFn) -> dict[str, Any]:
    """A row that is nearly right: some of its cells are junk, and some are missing."""
    row = {}
    for column, cell in cells.items():
        fate = draw(st.integers(0, 39))
        if fate:
            row[column] = draw(junk if fate == 1 else cell)
    return row


def json_cells(row: dict[str, Any]) -> dict[str, Any]:
    """The same row with text, lists and objects as JSON text."""
    return {column: json.dumps(cell) if isinstance(cell, list | dict | str) else cell for column, cell in row.items()}


labels: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [
        {"by": "value", "column": "label", "values": {"a": "a", "b": "b", "tie": "tie", "1": "a", "0": "b"}},
        {"by": "value", "column": ["label", "x", "y"], "values": {"1": "a", "2": "b", "0": "tie", "true": "a"}},
        {"by": "index", "column": "label"},
        {"by": "one_hot", "a": "x", "b": "y", "tie": "label"},
        {"by": "sign", "column": "x", "positive": "b"},
        {"by": "scores", "a": "x", "b": "y", "lower_is_better": True},
    ]
)
shared = {
    "prompt": st.sampled_from(["auto", "implicit", "prompt", ("prompt", "system")]),
    "system": st.sampled_from([None, None, "system"]),
    "messages": st.sampled_from([{}, {}, {}, {"transcript": "hh"}, {"decode_json": True}]),
    "group_by_prompt": st.booleans(),
    "dedup": st.booleans(),
    "cap": st.sampled_from([None, None, {"by": "group", "rows": 2}]),
    "fraction": st.sampled_from([None, None, 0.5]),
    "balance": st.sampled_from([None, "longer"]),
    "augment": st.sampled_from([None, {"other_prompts": 0.5}]),
}
margins = {"margin": st.sampled_from([None, "margin", ("margin", "margin")]), "margin_default": st.sampled_from([None, 0.0])}
ranking = {
    "score": st.sampled_from(["s", "s", "s", {"s": 1.0, "t": -0.5}, "x"]),
    "lower_is_better": st.booleans(),
    "policy": st.sampled_from(["all", "best_vs_rest", "best_worst", "adjacent"]),
    "min_gap": st.sampled_from([None, 0.5]),
    "max_pairs": st.sampled_from([None, 1]),
    "margin_from_score": st.booleans(),
}
KINDS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "pair": st.fixed_dictionaries(
        {**shared, **margins, "chosen": st.sampled_from(["a", "list"]), "rejected": st.just("b"), "lists": st.booleans()}
    ),
    "ab": st.fixed_dictionaries(
        {
            **shared,
            **margins,
            "format": st.just("ab"),
            "a": st.just("a"),
            "b": st.just("b"),
            "label": labels,
            "tie": st.sampled_from(["drop", "half", "half", "error"]),
            "margin_from_label": st.booleans(),
        }
    ),
    "ranked": st.fixed_dictionaries(
        {
            **shared,
            **ranking,
            "format": st.just("ranked"),
            "responses": st.just("list"),
            "response": st.sampled_from(["text"] * 5 + [None]),
        }
    ),
    "grouped": st.fixed_dictionaries(
        {
            **shared,
            **ranking,
            "format": st.just("ranked"),
            "group_by": st.sampled_from(["group", "prompt"]),
            "response": st.just("a"),
            "score": st.sampled_from(["x", {"x": 1.0, "y": 2.0}]),
        }
    ),
}
CLASSES = {"pair": PairSource, "ab": AbSource, "ranked": RankedSource, "grouped": RankedSource}
PLAIN: dict[str, dict[str, Any]] = {
    "pair": {"chosen": "a", "rejected": "b"},
    "ab": {"format": "ab", "a": "a", "b": "b", "label": {"by": "index", "column": "label"}},
    "ranked": {"format": "ranked", "responses": "list", "response": "text", "score": "s"},
    "grouped": {"format": "ranked", "group_by": "group", "response": "a", "score": "x"},
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> RowEncoder:
    folder = tmp_path_factory.mktemp("properties")
    return RowEncoder(prepared(byte_bpe(), "simple_chat"), data_of(folder / "rows.jsonl", folder, max_length=64))


class Seen:
    """Counts of a run of examples, to guard against a vacuous test."""

    def __init__(self) -> None:
        self.kept = self.gathered = self.dropped = self.refused = 0

    def add(self, kept: int, gathered: int, dropped: int) -> None:
        self.kept, self.gathered, self.dropped = self.kept + kept, self.gathered + gathered, self.dropped + dropped


def check_edges(row: Comparison) -> None:
    assert len(row.responses) >= 2
    assert len(row.preferences) >= 1
    named = set()
    for edge in row.preferences:
        assert edge.winner != edge.loser
        assert 0 <= edge.margin < float("inf")
        assert edge.probability in (0.5, 1.0)
        assert edge.weight > 0
        named |= {edge.winner, edge.loser}
    assert named == set(range(len(row.responses))), "only responses that a preference is about stay"
    assert row.id == rows_of(row)[0]
    assert all(response[-1]["role"] == "assistant" for response in row.responses)


def check(source: Source, count: int, encoder: RowEncoder, seen: Seen) -> None:
    """Read a source in both ways, and count the results of its rows."""
    message = ""
    expected = [f"r:{number}" for number in range(count)]
    try:
        loaded = [row for batch in load_comparisons(source) for row in batch]
        ids = [row_id for row in loaded for row_id in ([row.id] if isinstance(row, Dropped) else rows_of(row))]
        assert sorted(ids, key=place_of) == expected
        for row in loaded:
            if isinstance(row, Comparison):
                check_edges(row)
        whole: list[str] = []
        for batch in read_batches(source):
            for part in encoder(RowTask(batch, source, "train")).values():
                kept = [] if part.stored is None else part.stored.column("id").to_pylist()
                gathered = [row_id for row_id, _ in part.gathered]
                whole += [*kept, *gathered, *(row.id for row in part.dropped)]
                seen.add(len(kept), len(gathered), len(part.dropped))
        assert sorted(whole, key=place_of) == expected
    except DataError as error:
        message = str(error)
        seen.refused += 1
    assert "\n" not in message
    assert len(message) < 3000


@pytest.mark.parametrize("kind", KINDS)
def test_any_rows_are_counted_or_refused(kind: str, tmp_path: Path, encoder: RowEncoder) -> None:
    """Any rows under any settings give no traceback: the source is refused in one line, or each row is counted once."""
    seen = Seen()
    good = {"prompt": "p", "a": "yes", "b": "no", "label": 1, "x": 1, "y": 0, "group": 1, "margin": 1, "system": ""}
    good["list"] = [{"text": "yes", "s": 2, "t": 1}, {"text": "no", "s": 1, "t": 1}]

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @example(keys={**PLAIN[kind], "messages": {}, "group_by_prompt": True}, drawn=[], good_rows=3)
    @given(keys=KINDS[kind], drawn=st.lists(rows(), min_size=1, max_size=6), good_rows=st.integers(0, 4))
    def run(keys: dict[str, Any], drawn: list[dict[str, Any]], good_rows: int) -> None:
        others = [good | {"a": f"so {number}", "b": f"or {number}", "x": 2 + number} for number in range(good_rows)]
        drawn = [good, *others, *drawn] if good_rows else drawn
        if keys["messages"].get("decode_json"):
            drawn = [json_cells(row) for row in drawn]
        file = tmp_path / "r.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in drawn), encoding="utf-8")
        check(CLASSES[kind](path=str(file), **keys), len(drawn), encoder, seen)

    run()
    assert seen.kept > 10, f"guard: some rows are good: {vars(seen)}"
    assert seen.dropped > 10, f"guard: some rows are bad: {vars(seen)}"
    assert seen.refused > 0, f"guard: some sources are refused: {vars(seen)}"
    assert seen.gathered > 0, f"guard: some rows are gathered: {vars(seen)}"
