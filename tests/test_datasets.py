"""docs/DATASETS.md: every entry of it, run on rows of the dataset's shape, gives the comparisons worked out by hand here."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from rmtrain.data.comparison import Comparison, Dropped, place_of, rows_of
from rmtrain.data.rows.loading import load_comparisons
from rmtrain.errors import DataError
from rmtrain.recipe.load import parse_recipe
from rmtrain.recipe.schema import Messages, PairSource, Source
from rmtrain.recipe.yaml import write_yaml
from tests.catalogue import CATALOGUE, REFUSED, Compared
from tests.helpers import write_jsonl
from tests.runs import ROOT

DOCUMENT = (ROOT / "docs/DATASETS.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)
REST = {"run": {"name": "catalogue", "output_dir": "x"}, "model": {"path": "m"}, "optimizer": {"lr": 1e-5}}
ELSEWHERE = {"split": None, "name": None, "revision": None, "data_dir": None, "data_files": None}
"""Keys of a dataset on the Hub that a local file does not have."""


def entries() -> dict[str, Source]:
    """The entries of the document, by tag or path, as a recipe has them."""
    listed = [entry for block in BLOCKS for entry in yaml.safe_load(block)]
    sources = {}
    for block in BLOCKS:
        text = write_yaml(REST) + "data:\n  train:\n" + "".join(f"    {line}\n" for line in block.splitlines())
        sources |= {source.tag or source.path: source for source in parse_recipe(text, "docs/DATASETS.md").data.train}
    assert len(sources) == len(listed), "two entries have the same name"
    return sources


ENTRIES = entries()


def local(name: str, rows: list[dict[str, Any]], folder: Path) -> Source:
    """The entry, reading a file of these rows instead of its own."""
    file = write_jsonl(folder / "rows.jsonl", rows)
    return ENTRIES[name].model_copy(update={**ELSEWHERE, "path": str(file), "tag": name.rpartition("/")[2]})


def read(source: Source) -> list[Comparison | Dropped]:
    """Return the comparisons and dropped rows of a source, in their order."""
    rows = [row for batch in load_comparisons(source) for row in batch if isinstance(row, Comparison | Dropped)]
    return sorted(rows, key=lambda row: place_of(row.id))


def written(messages: Any, marked: bool) -> str:
    return " / ".join(f"{m['role'][0]}: {m['content']}" if marked else m["content"] for m in messages)


def shown(row: Comparison | Dropped) -> Compared | str:
    if isinstance(row, Dropped):
        return row.reason
    edges = [(edge.winner, edge.loser, edge.margin) if edge.margin else (edge.winner, edge.loser) for edge in row.preferences]
    return Compared(written(row.prompt, True), [written(r, len(r) > 1) for r in row.responses], edges)


def test_every_documented_entry_has_rows() -> None:
    assert set(ENTRIES) == set(CATALOGUE) | set(REFUSED)
    assert list(ENTRIES)[:5] == list(CATALOGUE)[:5], "the five of the seed page come first"
    assert len(ENTRIES) > 50
    assert {source.format for source in ENTRIES.values()} == {"pair", "ab", "ranked"}, "guard: all formats are there"


@pytest.mark.parametrize("name", CATALOGUE)
def test_entry_gives_the_expected_comparisons(name: str, tmp_path: Path) -> None:
    rows, expected = CATALOGUE[name]
    results = read(local(name, rows, tmp_path))
    assert [shown(row) for row in results] == expected
    kept = [row for row in results if isinstance(row, Comparison)]
    counted = [row.id for row in results if isinstance(row, Dropped)] + [row_id for row in kept for row_id in rows_of(row)]
    title = name.rpartition("/")[2]
    assert sorted(counted, key=place_of) == [f"{title}:{number}" for number in range(len(rows))], "each row is in one place"
    assert kept, "guard: it is not all dropped"


@pytest.mark.parametrize("name", REFUSED)
def test_unusable_dataset_gives_documented_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        read(local(name, REFUSED[name], tmp_path))
    after = DOCUMENT.partition(f"path: {name},")[2].partition("```\n")[2]
    (documented,) = re.findall(r"\A`(.+)`$", after, re.MULTILINE)
    assert documented in str(error.value)
    assert str(error.value).startswith(f"{name.rpartition('/')[2]}: ")


def test_half_ties_have_probability_half(tmp_path: Path) -> None:
    name = "lmarena-ai/arena-human-preference-100k"
    source = local(name, CATALOGUE[name].rows, tmp_path).model_copy(update={"tie": "half"})
    kept = [row for row in read(source) if isinstance(row, Comparison)]
    assert [row.preferences[0].probability for row in kept] == [1.0, 1.0, 0.5, 0.5]


def outcomes(source: Source) -> tuple[Counter[str], list[Comparison]]:
    rows = read(source)
    return Counter(row.reason for row in rows if isinstance(row, Dropped)), [row for row in rows if isinstance(row, Comparison)]


def real(name: str, file: Path) -> Source:
    return ENTRIES[name].model_copy(update={**ELSEWHERE, "path": str(file), "tag": None})


def test_real_hh_rows(shared_data: Path) -> None:
    source = real("Anthropic/hh-rlhf", shared_data / "hh_harmless.jsonl.gz")
    assert source.model_dump() == PairSource(path=source.path, messages=Messages(transcript="hh")).model_dump()
    counts, kept = outcomes(source)
    assert counts == {"empty_response": 4, "role_order": 3, "different_prompts": 2}
    rows: dict[str, list[int]] = {}
    for row in read(source):
        if isinstance(row, Dropped):
            rows.setdefault(row.reason, []).extend(place_of(row.id))
    assert rows == {"empty_response": [86, 516, 925, 1103], "different_prompts": [1254, 1688], "role_order": [667, 763, 1319]}
    assert len(kept) == 1791
    assert all(len(response) == 1 for row in kept for response in row.responses)
    assert max(len(row.prompt) for row in kept) > 10, "guard: long dialogues are among them"


def test_real_sharegpt_rows_are_all_kept(shared_data: Path) -> None:
    counts, kept = outcomes(real("dpo_sharegpt.json", shared_data / "dpo_en_demo.json"))
    assert not counts
    assert len(kept) == 299
    assert sum(row.prompt[0]["role"] == "system" for row in kept) == 80


def test_real_pandalm_rows_follow_the_majority(shared_data: Path) -> None:
    file = shared_data / "pandalm_test.json"
    source = real("pandalm_test.json", file)
    rows = json.loads(file.read_text(encoding="utf-8"))
    majorities = [Counter(row[f"annotator{n}"] for n in (1, 2, 3)).most_common(1)[0] for row in rows]
    winners = [vote if count >= 2 else 0 for vote, count in majorities]
    results = read(source)
    assert len(results) == len(rows) == 999
    for row, winner, raw in zip(results, winners, rows, strict=True):
        if isinstance(row, Dropped):
            texts = [raw["response1"], raw["response2"]]
            bad = "not_messages" if not all(isinstance(text, str) for text in texts) else "empty_response"
            assert row.reason == ("tie" if winner == 0 else bad)
        else:
            assert row.responses[0][0]["content"] == raw[f"response{winner}"]
            assert row.prompt[0]["content"] == "\n".join(filter(str.strip, (raw["instruction"], raw["input"])))
    counts, kept = outcomes(source)
    assert counts == {"tie": winners.count(0), "empty_response": 52, "not_messages": 6} == {**counts, "tie": 105}
    assert len(kept) == 836
    halved, more = outcomes(source.model_copy(update={"tie": "half"}))
    assert (halved["tie"], len(more)) == (0, 999 - halved.total())
    assert sum(row.preferences[0].probability == 0.5 for row in more) == len(more) - len(kept) > 90


def test_real_llmbar_rows_name_better_output(shared_data: Path) -> None:
    counts, kept = outcomes(real("llmbar_natural.json", shared_data / "llmbar_natural.json"))
    assert not counts
    assert len(kept) == 100


def test_real_rmbench_rows_have_nine_preferences(shared_data: Path) -> None:
    counts, kept = outcomes(real("THU-KEG/RM-Bench", shared_data / "rmbench_chat.json"))
    assert not counts
    assert len(kept) == 129
    sizes = Counter((len(row.responses), len(row.preferences)) for row in kept)
    assert sizes == {(6, 9): 117, (5, 6): 12}, "twelve rows have the same chosen response twice, whose preferences weigh double"
    assert {sum(edge.weight for edge in row.preferences) for row in kept} == {9.0}
