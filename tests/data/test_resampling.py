"""`balance`, `augment` and `repeat`: which comparisons are trained on, reproducible, counted, and never those that are held out."""

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from rmtrain.data import resampling
from rmtrain.data.checks.findings import findings_of
from rmtrain.data.comparison import place_of
from rmtrain.data.prepare import PreparedData, dropped_rows, prepare, read_again
from rmtrain.data.rows import loading
from rmtrain.data.rows.fingerprint import source_identity
from rmtrain.data.text.tokenizer import prepared
from rmtrain.errors import DataError
from rmtrain.recipe.schema import Data, PairSource, RankedSource, TokenizedSource
from rmtrain.recipe.sources import RESAMPLING, Augment
from tests.helpers import byte_bpe, write_jsonl

ALL: dict[str, Any] = {"balance": "longer", "augment": Augment(other_prompts=0.4), "repeat": 1.5}
MANY = Augment(other_prompts=1.0)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return prepared(byte_bpe(), "simple_chat")


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "BATCH_ROWS", 7)
    monkeypatch.setattr(resampling, "BATCH_ROWS", 5)


def biased(count: int, longer: float = 0.8, prompts: int | None = None, seed: int = 1) -> list[dict[str, Any]]:
    """Pairs of random words; the chosen side has more words in a share of them, and as many in every tenth."""
    rng, rows = random.Random(seed), []
    for number in range(count):
        sizes = sorted(rng.sample(range(1, 9), 2), reverse=rng.random() < longer)
        if number % 10 == 0:
            sizes[1] = sizes[0]
        sides = [" ".join(rng.choice(["a", "b", "c", "d", "e"]) for _ in range(size)) for size in sizes]
        rows.append({"prompt": f"Is it {seed}-{number % (prompts or count)}?", "chosen": sides[0], "rejected": f"{sides[1]} z"})
        rows[-1]["chosen"] += " y"
    return rows


def build(
    folder: Path, tokenizer: PreTrainedTokenizerFast, rows: Sequence[dict[str, Any]], processes: int = 1, **keys: Any
) -> PreparedData:
    settings = {key: keys.pop(key) for key in ("max_length", "overlong", "max_drop_fraction") if key in keys}
    folder.mkdir(exist_ok=True)
    source = PairSource(path=str(write_jsonl(folder / "rows.jsonl", rows)), **keys)
    cache = str(folder / f"cache{processes}")
    return prepare(Data(train=[source], cache_dir=cache, processes=processes, chat_template="simple_chat", **settings), tokenizer)


@dataclass(frozen=True)
class Text:
    """A comparison of an artifact as text."""

    id: str
    prompt: str
    responses: tuple[str, ...]


def texts(made: PreparedData, tokenizer: PreTrainedTokenizerFast) -> list[Text]:
    rows = []
    for row in made.train:
        prompt, _, _ = tokenizer.decode(row.sequences[0]).rpartition("Assistant:")
        replies = (tokenizer.decode(sequence).removeprefix(prompt) for sequence in row.sequences)
        rows.append(Text(row.id, prompt, tuple(reply.removeprefix("Assistant: ") for reply in replies)))
    return rows


def contents(made: PreparedData, tokenizer: PreTrainedTokenizerFast) -> Counter[tuple[str, tuple[str, ...]]]:
    return Counter((row.prompt, row.responses) for row in texts(made, tokenizer))


def counts_add_up(made: PreparedData) -> None:
    for split in (made.train, made.eval):
        for count in split.waterfall.sources.values():
            assert count.read + sum(count.added.values()) == count.kept + count.gathered + sum(count.dropped.values())
            assert count.kept == len(split)
    ids = [*made.train.ids, *made.eval.ids, *(row.id for name in ("train", "eval") for row in dropped_rows(made.directory, name))]
    assert len(set(ids)) == len(ids)
    assert all(place_of(row_id)[0] >= 0 for row_id in ids)


def longer_wins(made: PreparedData) -> Counter[int]:
    winners, losers = made.train.preference_lengths()
    return Counter(np.sign(winners - losers).tolist())


@pytest.mark.parametrize("gather", [False, True])
def test_processes_and_batches_change_nothing(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, gather: bool
) -> None:
    """All files are the same to the byte with two processes, and the rows are the same in other batches."""
    rows, keys = biased(90, prompts=60), {**ALL, "holdout": 0.2, "dedup": True, "group_by_prompt": gather}
    one, two = (build(tmp_path, tokenizer, rows, processes, **keys) for processes in (1, 2))
    for file in one.directory.iterdir():
        assert (two.directory / file.name).read_bytes() == file.read_bytes(), file.name
    assert {file.name for file in one.directory.iterdir()} >= {"train.arrow", "manifest.json"}
    monkeypatch.setattr(loading, "BATCH_ROWS", 1000)
    monkeypatch.setattr(resampling, "BATCH_ROWS", 1000)
    whole = build(tmp_path / "whole", tokenizer, rows, **keys)
    assert list(whole.train) == list(one.train)
    counts_add_up(one)
    assert one.train.waterfall.sources["rows"].added.keys() == {"other_prompts", "repeated"}, "guard"
    assert (one.train.response_counts.max() > 2) == gather, "guard"


def test_counts_add_up_and_ids_parse(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    made = build(tmp_path, tokenizer, biased(100), **ALL, holdout=0.2)
    counts_add_up(made)
    count, ids = made.train.waterfall.sources["rows"], list(made.train.ids)
    ends = Counter(row_id.partition("+")[2] for row_id in ids)
    assert ends.keys() == {"", "2", "other", "other+2"}
    assert ends["other"] == count.added["other_prompts"]
    assert ends["2"] + ends["other+2"] == count.added["repeated"]
    assert place_of("a+b:12.1+other+2") == (12, 1)
    assert made.train.are_added().tolist() == ["+" in row_id for row_id in ids]
    manifest = json.loads((made.directory / "manifest.json").read_text())["splits"]
    assert manifest["train"]["waterfall"]["rows"]["added"] == count.added
    assert "added" not in manifest["eval"]["waterfall"]["rows"]


def test_held_out_rows_are_not_used(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """The evaluation data is the same to the byte, and no prompt or response of it is in the training data."""
    rows = [{**row, "chosen": f"{row['chosen']} {number}"} for number, row in enumerate(biased(80))]
    plain, made = (build(tmp_path / name, tokenizer, rows, holdout=0.3, **keys) for name, keys in (("a", {}), ("b", ALL)))
    assert (made.directory / "eval.arrow").read_bytes() == (plain.directory / "eval.arrow").read_bytes()
    held_out = {place_of(row_id)[0] for row_id in made.eval.ids}
    trained = {text for row in texts(made, tokenizer) for text in (row.prompt, *row.responses)}
    for number in held_out:
        assert not any(rows[number]["prompt"] in text for text in trained)
        assert f"{rows[number]['chosen']}<|endoftext|>" not in {text.strip() for text in trained}
    assert len(held_out) > 10, "guard"
    assert any("+other" in row_id for row_id in made.train.ids), "guard"


def test_absent_keys_change_no_byte(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Neither the key of the cache nor a file knows about keys that are absent or have no effect."""
    plain, same = (build(tmp_path, tokenizer, biased(20), **keys) for keys in ({}, {"repeat": 1.0, "balance": None}))
    assert plain.train.key == same.train.key
    source = PairSource(path=str(tmp_path / "rows.jsonl"), balance="longer")
    assert {name for name in RESAMPLING if name in source_identity(source)} == {"balance"}
    assert "added" not in (plain.directory / "manifest.json").read_text()
    assert build(tmp_path, tokenizer, biased(20), repeat=2.0).train.key != plain.train.key, "guard"


@pytest.mark.parametrize("longer", [0.8, 0.2])
def test_balance_makes_the_longer_one_win_half(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, longer: float) -> None:
    """Only rows of the more frequent kind are left out; equal lengths stay. The choice does not depend on the order."""
    rows = biased(120, longer)
    plain, made = (build(tmp_path / name, tokenizer, rows, **keys) for name, keys in (("a", {}), ("b", {"balance": "longer"})))
    before, after = longer_wins(plain), longer_wins(made)
    assert after == {1: min(before[1], before[-1]), -1: min(before[1], before[-1]), 0: before[0]}
    lost = list(dropped_rows(made.directory, "train"))
    assert {row.reason for row in lost} == {"unbalanced"}
    assert made.train.waterfall.sources["rows"].dropped == {"unbalanced": abs(before[1] - before[-1])}
    assert "longer" in lost[0].detail if longer > 0.5 else "shorter" in lost[0].detail
    turned = build(tmp_path / "c", tokenizer, rows[::-1], balance="longer")
    assert contents(turned, tokenizer) == contents(made, tokenizer)
    assert abs(before[1] - before[-1]) > 30, "guard"
    assert before[0] > 2, "guard"


def test_one_kind_alone_cannot_be_balanced(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"prompt": f"Is it {number}?", "chosen": "so it is", "rejected": "no"} for number in range(30)]
    with pytest.raises(DataError, match=r"^rows: balance: the longer response wins in all 30 .*remove balance"):
        build(tmp_path, tokenizer, rows, balance="longer")
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    with pytest.raises(DataError, match=r"^rows: balance: the shorter response wins in all 30 .* the longer one wins"):
        build(tmp_path, tokenizer, swapped, balance="longer")
    same = [{**row, "rejected": "or it is"} for row in rows]
    assert len(build(tmp_path, tokenizer, same, balance="longer").train) == 30, "nothing differs in length"


def test_rankings_are_balanced_by_their_extremes(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """The best response against the worst one, whatever the others."""
    sizes = [(6, 1, 3)] * 9 + [(2, 1, 5)] * 3
    rows = [
        {
            "q": f"Is it {number}?",
            "answers": [{"text": "a " * size + str(place), "s": -place} for place, size in enumerate(three)],
        }
        for number, three in enumerate(sizes)
    ]
    source = RankedSource(
        path=str(write_jsonl(tmp_path / "rows.jsonl", rows)), format="ranked", responses="answers", response="text", score="s",
        prompt="q", balance="longer",
    )  # fmt: skip
    made = prepare(Data(train=[source], cache_dir=str(tmp_path), chat_template="simple_chat"), tokenizer)
    assert made.train.response_counts.tolist() == [3] * 6
    assert [place_of(row_id)[0] for row_id in made.train.ids][3:] == [9, 10, 11]


def test_other_prompt_comparisons_are_as_described(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """The chosen response to its own prompt is better than that to another prompt, which does not answer this one."""
    rows = [{**row, "chosen": f"{row['chosen']} {number % 50}"} for number, row in enumerate(biased(100, prompts=40))]
    made = build(tmp_path, tokenizer, rows, augment=MANY)
    chosen = {place_of(row.id)[0]: row for row in texts(made, tokenizer) if "+" not in row.id}
    added = [row for row in texts(made, tokenizer) if row.id.endswith("+other")]
    assert len(added) == len(rows) == made.train.waterfall.sources["rows"].added["other_prompts"]
    others = Counter[str]()
    for row in added:
        own = chosen[place_of(row.id)[0]]
        assert (row.prompt, row.responses[0]) == (own.prompt, own.responses[0])
        assert row.responses[1] not in {text for one in chosen.values() if one.prompt == row.prompt for text in one.responses}
        assert row.responses[1] in {one.responses[0] for one in chosen.values() if one.prompt != row.prompt}
        others[row.responses[1]] += 1
    assert len(others) > 30, "not always the same one"
    numbers = [number for number, row_id in enumerate(made.train.ids) if row_id.endswith("+other")]
    assert all(made.train[number].preferences == made.train[0].preferences for number in numbers)


def test_choices_do_not_depend_on_other_rows(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """In another order they are the same; with a tenth more rows, nine of ten are."""
    rows, keys = biased(200), {"augment": Augment(other_prompts=0.5), "repeat": 1.5}
    made, turned, more = (
        contents(build(tmp_path / name, tokenizer, given, **keys), tokenizer)
        for name, given in (("a", rows), ("b", rows[::-1]), ("c", rows + biased(20, seed=2)))
    )
    assert made == turned
    assert (made & more).total() > 0.85 * made.total()
    assert made.total() == pytest.approx(200 * 1.5 * 1.5, rel=0.1)
    assert max(made.values()) == 2, "guard"


@pytest.mark.parametrize("overlong", ["drop", "error"])
def test_new_pairs_keep_to_the_limit(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, overlong: str) -> None:
    """One that is too long is left out under a reason of its own, and is neither an error nor a fault of the source."""
    rows = biased(40)
    for row in rows[:3]:
        row["prompt"] += " It is long." * 6
    for row in rows[3:]:
        row["chosen"] += " c" * 30
    limit = int(build(tmp_path, tokenizer, rows).train.longest.max())
    keys = {"augment": MANY, "max_length": limit, "overlong": overlong, "max_drop_fraction": 0.0}
    made = build(tmp_path, tokenizer, rows, **keys)
    counts_add_up(made)
    count = made.train.waterfall.sources["rows"]
    assert count.added == {"other_prompts": 40}
    assert count.dropped.keys() == {"other_prompt_unfit"}
    assert made.train.longest.max() <= limit
    lost = list(dropped_rows(made.directory, "train"))
    assert {place_of(row.id)[0] for row in lost} <= set(range(3))
    assert lost, "guard"
    data = Data(train=[PairSource(path=str(tmp_path / "rows.jsonl"))], cache_dir=str(tmp_path))
    assert {row["prompt"] for _, row in read_again(data, "train", lost) if isinstance(row, dict)} <= {
        row["prompt"] for row in rows[:8]
    }


def test_answers_that_a_template_refuses_are_left_out(tmp_path: Path) -> None:
    """Under this prompt, although it takes them under their own."""
    template = (
        "{% if 'picky' in messages[0].content and 'odd' in messages[-1].content %}{{ raise_exception('not here') }}{% endif %}"
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    )
    rows = [{**row, "chosen": f"{row['chosen']} odd"} for row in biased(30)]
    for row in rows[:10]:
        row.update(prompt=f"picky {row['prompt']}", chosen=row["chosen"].removesuffix(" odd"))
    made = build(tmp_path, prepared(byte_bpe(), template), rows, augment=MANY, max_drop_fraction=0.0)
    counts_add_up(made)
    lost = list(dropped_rows(made.directory, "train"))
    assert {row.reason for row in lost} == {"other_prompt_unfit"}
    assert {place_of(row.id)[0] for row in lost} <= set(range(10))
    assert all("(template_refused): " in row.detail and row.detail.endswith("not here") for row in lost)
    assert len(lost) > 3, "guard"


def test_augment_needs_two_prompts(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match=r"^rows: augment.other_prompts needs .* two different prompts; remove augment$"):
        build(tmp_path, tokenizer, biased(20, prompts=1), augment=MANY)
    with pytest.raises(DataError, match=r"^rows: augment.other_prompts 1e-06 chose none of 20 comparisons; raise it$"):
        build(tmp_path, tokenizer, biased(20), augment=Augment(other_prompts=1e-6))


def test_repeat_copies_each_row(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """2.5 is each twice, and about half of them a third time; copies have the same content as their row."""
    made = build(tmp_path, tokenizer, biased(200), repeat=2.5)
    copies: dict[int, list[Text]] = {}
    for row in texts(made, tokenizer):
        copies.setdefault(place_of(row.id)[0], []).append(row)
    assert len(copies) == 200
    for number, members in copies.items():
        assert [row.id for row in members] == [f"rows:{number}", f"rows:{number}+2", f"rows:{number}+3"][: len(members)]
        assert len({(row.prompt, row.responses) for row in members}) == 1
    sizes = Counter(map(len, copies.values()))
    assert sizes.keys() == {2, 3}
    assert 80 < sizes[3] < 120
    assert made.train.waterfall.sources["rows"].added == {"repeated": len(made.train) - 200}


def test_tokenized_rows_are_balanced_and_repeated(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    end = tokenizer.eos_token_id
    rows = [
        {"chosen_ids": [5, 6 + number, *[7] * (number % 4), end], "rejected_ids": [5, 9 + number, 8, end]} for number in range(20)
    ]
    source = TokenizedSource(
        path=str(write_jsonl(tmp_path / "rows.jsonl", rows)), format="tokenized", balance="longer", repeat=2.0
    )
    made = prepare(Data(train=[source], cache_dir=str(tmp_path)), tokenizer)
    counts_add_up(made)
    assert longer_wins(made) == {1: 10, -1: 10, 0: 10}


def test_checks_report_rows_once(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Planned copies are no duplicates; a true duplicate and a near-identical pair are one finding each."""
    rows = biased(60)
    rows[1] = rows[0]
    rows[5]["rejected"] = rows[5]["chosen"].upper()
    found = []
    for name, keys in (("a", {}), ("b", {"augment": MANY, "repeat": 3.0})):
        made = build(tmp_path / name, tokenizer, rows, **keys)
        data = Data(train=[PairSource(path=str(tmp_path / name / "rows.jsonl"))])
        report = findings_of(made, data, tokenizer, [])
        lines = (made.directory / "findings.jsonl").read_text().splitlines()
        found.append([(one["kind"], one["ids"]) for one in map(json.loads, lines)])
    assert found[0] == found[1]
    assert ("duplicate", ["rows:0", "rows:1"]) in found[1]
    assert ("near_identical", ["rows:5"]) in found[1]
    assert report["splits"]["train"]["comparisons"] == 360, "guard"
