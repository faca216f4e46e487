"""A file with one of each fault gives each fault once, with its row; a clean file gives none."""

import errno
import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from rmtrain.data.checks import findings as module
from rmtrain.data.checks.findings import KINDS, LIST, SUMMARY, Finding, read_findings, summarize_findings, write_findings
from rmtrain.data.prepare import PreparedData, prepare
from rmtrain.data.text.tokenizer import prepared
from rmtrain.errors import DataError
from rmtrain.evaluation.benchmarks.measure import prompt_sources
from rmtrain.recipe.schema import AbSource, Data, PairSource, TokenizedSource, UntrainedPrompts
from tests.data.text.test_encoder import THINKING_TEMPLATE
from tests.edges import prepared_rows, row
from tests.helpers import byte_bpe, pairs, write_jsonl

LONG = "The quick brown fox jumps over the lazy dog, and then it sleeps under the old oak tree. " * 3


def findings_of(made: PreparedData, data: Data, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Audit with the benchmarks of the recipe."""
    return module.findings_of(made, data, tokenizer, prompt_sources(data.benchmarks))


def chat(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": "x"}]


PLANTED: list[tuple[str, str, dict[str, Any]]] = [
    ("duplicate 0", "q1", row("What is rain?", "Water that falls.", "A kind of wind.")),
    ("duplicate 1", "q1", row("what  is rain?", "water that falls.", "A kind of WIND.")),
    ("contradictory 0", "q2", row("What is snow?", "Ice in flakes.", "Salt from the sky.")),
    ("contradictory 1", "q2", row("What is snow?", "Salt from the sky.", "Ice in flakes.")),
    ("cycle 0", "q3", row("Name a river.", "The Seine.", "Mount Etna.")),
    ("cycle 1", "q3", row("Name a river.", "Mount Etna.", "Lake Como?!")),
    ("cycle 2", "q3", row("Name a river.", "Lake Como?!", "The Seine.")),
    ("near_identical", "q4", row("Is it late?", "Yes, it is!", "yes it is")),
    ("short_winner", "q5", row("Tell me about dogs.", "I", LONG)),
    ("zero_margin", "q6", row("How tall is an oak?", "Some thirty metres.", "No idea at all.", m=0.0)),
    ("margin_outlier", "q7", row("How old is an oak?", "Centuries, at times.", "I would not know.", m=900.0)),
    ("benchmark", "q8", row("Which fox is quick?", "The brown one.", "None of them is.")),
    ("identical", "", row("Same?", "same", "same ")),
    ("empty_response", "", row("Empty?", " ", "b")),
    ("empty_cell", "", row("Null?", "a", None)),  # type: ignore[arg-type]
    ("response_repeats_prompt", "", row("Tell me a story.", "Tell me a story. Once", "Tell me a story. No.")),
    (
        "different_prompts",
        "",
        {"chosen": chat("a"), "rejected": chat("b")},
    ),
    ("rewritten_by_template", "", row("Think?", "<think>a</think>b", "c")),
    ("too_long", "", row("Long?", LONG * 9, "b")),
    ("missing_column", "", {"prompt": "q", "chosen": "a"}),
    ("unknown_role", "", {"prompt": "q", "chosen": [{"role": "judge", "content": "a"}], "rejected": "b"}),
]
CLEAN = 24
LABEL = {"by": "index", "column": "better"}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return prepared(byte_bpe(), "{{ mood }}" + THINKING_TEMPLATE)


def planted(folder: Path, tokenizer: PreTrainedTokenizerFast, **settings: Any) -> tuple[PreparedData, Data]:
    """Clean rows, then the planted ones; a file of tokens with a fault; an evaluation row that is trained on; and a benchmark."""
    clean = [{**one, "m": 1.0 + number % 4} for number, one in enumerate(pairs(CLEAN))]
    rows = write_jsonl(folder / "rows.jsonl", [*clean, *({"m": 2.0, **one} for _, _, one in PLANTED)])
    with rows.open("a") as stream:
        stream.write("{oops\n")
    end = tokenizer.eos_token_id
    tokens = [{"chosen_ids": [5, 6, end], "rejected_ids": [5, 7, 8, end]}, {"chosen_ids": [6, 7, end], "rejected_ids": [6, 9]}]
    labels = [{"prompt": f"Odd {number}?", "x": f"{number}, yes", "y": f"{number}, no", "better": 0} for number in range(6)]
    test = [
        row("Fresh?", "It is.", "Stale as a stone.", mood="calm"),
        row("WHAT is 3 plus one?", "Four, of course.", "Perhaps nine?"),
    ]
    benchmark = [{"question": "Where is it?"}, {"question": "which fox is quick?"}]
    data = Data(
        train=[
            PairSource(path=str(rows), margin="m"),
            TokenizedSource(path=str(write_jsonl(folder / "tokens.jsonl", tokens)), format="tokenized"),
            AbSource(path=str(write_jsonl(folder / "labels.jsonl", labels)), format="ab", a="x", b="y", label=LABEL),
        ],
        eval=[PairSource(path=str(write_jsonl(folder / "test.jsonl", test)))],
        benchmarks=[str(write_jsonl(folder / "bench.jsonl", benchmark))],
        cache_dir=str(folder / "cache"),
        **{"max_length": 400, "max_drop_fraction": 1.0, "allow_overlap": True} | settings,
    )
    return prepare(data, tokenizer), data


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def expected() -> dict[str, list[str]]:
    """Row ids by what was planted in them."""
    ids: dict[str, list[str]] = {}
    for number, (name, _, _) in enumerate(PLANTED):
        ids.setdefault(name.split()[0], []).append(f"rows:{CLEAN + number}")
    others = {"missing_end_token": ["tokens:1"], "overlap": ["test:1"], "unset_variable": ["test:0", "test:1"]}
    others |= {"malformed_row": [f"rows:{CLEAN + len(PLANTED)}"], "one_sided_labels": [f"labels:{number}" for number in range(6)]}
    return ids | others


def test_trap_20_planted_faults_are_found_once(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Each planted fault is found once, with its rows, and nothing else is found."""
    made, data = planted(tmp_path, tokenizer)
    report = findings_of(made, data, tokenizer)
    listed = lines(Path(report["list"]))
    dropped = lines(made.directory / "dropped.jsonl")
    faults = [(fault["kind"], tuple(fault["ids"])) for fault in listed]
    faults += [(fault["reason"], (fault["id"],)) for fault in dropped]
    assert sorted(faults) == sorted((kind, tuple(ids)) for kind, ids in expected().items())
    assert {fault["kind"] for fault in listed} == set(KINDS), "guard: every kind was planted"
    assert len({fault["reason"] for fault in dropped}) >= 10, "guard: reasons to drop were planted"
    assert "Seine" not in json.dumps(listed), "no text of rows is kept"
    details = {fault["kind"]: fault["detail"] for fault in listed}
    assert "rows:3" in details["overlap"]
    assert "bench.jsonl:1" in details["benchmark"]
    first, second = expected()["contradictory"]
    assert all(place in details["contradictory"] for place in (f"1 one way: {first}", f"1 the other way: {second}"))
    assert details["cycle"].startswith("3 responses ")
    assert details["unset_variable"].startswith("the chat template reads mood, a column of 1 rows")
    assert details["unset_variable"].endswith("set template_columns: {mood: mood}")


@pytest.mark.parametrize(
    ("label", "better", "found"),
    [
        (LABEL, [1] * 9, ["b"]),
        (LABEL, [1] * 5, []),
        (LABEL, [1] * 8 + [0], []),
        ({"by": "value", "column": "better", "values": {"yes": "a", "no": "b", "both": "tie"}}, ["yes"] * 8 + ["both"], ["a"]),
        ({"by": "sign", "column": "better", "positive": "b"}, [3, 1, 2, 2, 1, 0.5, 1], ["b"]),
    ],
    ids=["always 1", "too few", "one other", "and ties", "sign"],
)
def test_label_with_one_value_is_a_finding(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, label: dict[str, Any], better: list[Any], found: list[str]
) -> None:
    """Counted over all batches and processes, also where rows are gathered."""
    rows = [{"prompt": f"q{n}", "x": f"yes {n}", "y": f"no {n}", "better": value} for n, value in enumerate(better)]
    source = AbSource(
        path=str(write_jsonl(tmp_path / "rows.jsonl", rows)),
        format="ab",
        a="x",
        b="y",
        label=label,
        group_by_prompt=len(rows) == 7,
    )
    data = Data(train=[source], cache_dir=str(tmp_path / "cache"), chat_template="simple_chat")
    made = prepare(data, tokenizer)
    assert made.train.waterfall.sources["rows"].kept == sum(value != "both" for value in better)
    findings = findings_of(made, data, tokenizer)["splits"]["train"]["found"].get("one_sided_labels", {"examples": []})
    assert [
        example["detail"].endswith(f"{side} is better") for example, side in zip(findings["examples"], found, strict=True)
    ] == [True] * len(found)
    assert findings.get("share", 1.0) == 1.0


def test_summary_counts_the_list(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    made, data = planted(tmp_path, tokenizer)
    train, evaluation = (findings_of(made, data, tokenizer)["splits"][name] for name in ("train", "eval"))
    assert (train["comparisons"], evaluation["comparisons"]) == (len(made.train), 2)
    assert list(train["found"]) == [kind for kind in KINDS if kind not in ("overlap", "unset_variable")]
    cycle = train["found"]["cycle"]
    assert (cycle["found"], cycle["rows"], cycle["share"]) == (1, 3, 3 / len(made.train))
    assert cycle["examples"][0]["ids"] == expected()["cycle"]
    assert list(evaluation["found"]) == ["overlap", "unset_variable"]
    assert train["baselines"]["longer"]["wins"] > 0


def test_clean_file_has_no_finding(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    made, data = prepared_rows(tmp_path, tokenizer, pairs(60), holdout=0.2)
    report = findings_of(made, data, tokenizer)
    assert [split["found"] for split in report["splits"].values()] == [{}, {}]
    assert Path(report["list"]).read_text() == ""
    assert len(made.eval) > 0, "guard: both splits were looked at"


def test_faults_across_sources_and_within_gathered(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    one, other, third = "Ice in flakes.", "Salt from the sky.", "Sugar, I think?"
    rows = [
        row("Snow?", one, other),
        row("Snow?", other, third),
        row("Snow?", third, other),
        row("Rain?", "Wet.", "Dry, always."),
    ]
    again = PairSource(
        path=str(write_jsonl(tmp_path / "again.jsonl", [row("snow?", other, one), row("Rain?", "wet.", "Dry, always.")]))
    )
    data = prepared_rows(tmp_path, tokenizer, rows, group_by_prompt=True)[1]
    data = data.model_copy(update={"train": (*data.train, again)})
    made = prepare(data, tokenizer)
    assert made.train.ids == ["rows:0", "rows:3", "again:0", "again:1"], "guard: one was gathered"
    details = {
        (fault["kind"], *fault["ids"]): fault["detail"] for fault in lines(Path(findings_of(made, data, tokenizer)["list"]))
    }
    assert details == {
        ("contradictory", "rows:0", "again:0"): "1 one way: rows:0 (0 over 1); 1 the other way: again:0",
        ("contradictory", "rows:0"): "1 one way: rows:0 (1 over 2); 1 the other way: rows:0 (2 over 1)",
        ("duplicate", "rows:3", "again:1"): "the same preference, 2 times",
    }


def test_repeated_or_reversed_ranking_is_one_finding(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    words = ["Ice in flakes.", "Salt from the sky.", "Sugar, I think?", "No idea."]
    ranked = [row("Snow?", words[best], words[worse]) for best in range(4) for worse in range(best + 1, 4)]
    turned = [{**one, "chosen": one["rejected"], "rejected": one["chosen"]} for one in ranked]
    data = prepared_rows(tmp_path, tokenizer, ranked, group_by_prompt=True)[1]
    ways = "1 one way: rows:0 (0 over 1); 1 the other way: "
    for name, rows, kind, detail in (
        ("again", ranked, "duplicate", "the same preference, 2 times: "),
        ("turned", turned, "contradictory", ways),
    ):
        file = write_jsonl(tmp_path / f"{name}.jsonl", rows)
        source = PairSource(path=str(file), group_by_prompt=True)
        both = data.model_copy(update={"train": (*data.train, source)})
        (fault,) = lines(Path(findings_of(prepare(both, tokenizer), both, tokenizer)["list"]))
        assert (fault["kind"], fault["ids"]) == (kind, ["rows:0", f"{source.title}:0"])
        assert fault["detail"].startswith(detail)
        assert fault["detail"].endswith("; and 5 more in the same rows")


def test_dedup_leaves_no_duplicate(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [*pairs(10), pairs(10)[3]]
    kept, kept_data = prepared_rows(tmp_path / "kept", tokenizer, rows)
    assert findings_of(kept, kept_data, tokenizer)["splits"]["train"]["found"]["duplicate"]["rows"] == 2
    once, once_data = prepared_rows(tmp_path / "once", tokenizer, rows, dedup=True)
    assert findings_of(once, once_data, tokenizer)["splits"]["train"]["found"] == {}


def test_trap_12_contaminated_training_data_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Training on prompts of a benchmark is an error (exit code 3) that names the rows; the list is written."""
    made, data = planted(tmp_path, tokenizer)
    with pytest.raises(DataError) as error:
        findings_of(made, data.model_copy(update={"allow_overlap": False}), tokenizer)
    row_id = expected()["benchmark"][0]
    assert error.value.exit_code == 3
    message = str(error.value)
    assert message.startswith(f"1 of {len(made.train)} ")
    assert all(part in message for part in ("data.benchmarks", row_id, "bench.jsonl:1", "data.allow_overlap"))
    assert row_id in (made.directory / "findings.jsonl").read_text(), "the list is written all the same"
    with pytest.raises(DataError, match=r"^data\.benchmarks: .*none\.jsonl"):
        findings_of(
            made, data.model_copy(update={"benchmarks": (UntrainedPrompts(path=str(tmp_path / "none.jsonl")),)}), tokenizer
        )


def test_contamination_error_names_the_list(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    bench = write_jsonl(tmp_path / "bench.jsonl", [{"prompt": one["prompt"]} for one in pairs(9)])
    made, data = prepared_rows(tmp_path, tokenizer, pairs(12), benchmarks=[str(bench)])
    with pytest.raises(DataError, match=r"^9 of 12 .*: rows:0 \(.*, rows:4 \(.*\) and 4 more; .*findings\.jsonl\b"):
        findings_of(made, data, tokenizer)


def test_audit_is_cached_until_damaged(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The audit runs once for an artifact and its benchmarks, and again when its files are damaged."""
    made, data = planted(tmp_path, tokenizer)
    inner, calls = module.find_all, []

    def counting(*arguments: Any) -> Any:
        calls.append(1)
        return inner(*arguments)

    monkeypatch.setattr(module, "find_all", counting)
    first = findings_of(made, data, tokenizer)
    assert findings_of(made, data, tokenizer) == first
    assert len(calls) == 1
    (made.directory / "findings.json").write_text("{}")
    assert findings_of(made, data, tokenizer) == first
    (made.directory / "findings.jsonl").write_text("")
    assert findings_of(made, data, tokenizer) == first
    assert len(calls) == 3
    fewer = findings_of(made, data.model_copy(update={"benchmarks": ()}), tokenizer)
    assert len(calls) == 4, "other benchmarks, other findings"
    assert "benchmark" not in fewer["splits"]["train"]["found"]
    write_jsonl(tmp_path / "bench.jsonl", [{"question": "Where is it?"}])
    assert "benchmark" not in findings_of(made, data, tokenizer)["splits"]["train"]["found"], (
        "the bytes of a benchmark count, not its name"
    )


def test_read_only_directory_loses_only_the_list(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, data = planted(tmp_path, tokenizer)
    monkeypatch.setattr(module, "write_findings", lambda *arguments: False)
    report = findings_of(made, data, tokenizer)
    assert report["list"] is None
    assert report["splits"]["train"]["found"]["cycle"]["found"] == 1


def test_list_is_private_to_its_owner(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    made, data = prepared_rows(tmp_path, tokenizer, pairs(5))
    findings_of(made, data, tokenizer)
    assert stat.S_IMODE(made.directory.stat().st_mode) == 0o700


def test_report_is_json(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    made, data = planted(tmp_path, tokenizer)
    fresh = findings_of(made, data, tokenizer)
    assert json.loads(json.dumps(fresh, allow_nan=False)) == fresh

    def values(value: Any) -> list[Any]:
        return [leaf for item in value.values() for leaf in values(item)] if isinstance(value, Mapping) else [value]

    assert len(values(fresh)) > 50, "guard: there is something in it"


def test_real_duplicates_equal_counted_texts(shared_data: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    def plain(turns: list[dict[str, str]]) -> tuple[tuple[str, str], ...]:
        return tuple((turn["from"], " ".join(turn["value"].casefold().split())) for turn in turns if turn["value"].strip())

    texts: dict[Any, list[str]] = {}
    for number, one in enumerate(json.loads((shared_data / "dpo_en_demo.json").read_text(encoding="utf-8"))):
        key = (plain(one["conversations"]), plain([one["chosen"]]), plain([one["rejected"]]))
        texts.setdefault(key, []).append(f"dpo_en_demo:{number}")
    source = PairSource(path=str(shared_data / "dpo_en_demo.json"), prompt="conversations")
    data = Data(train=[source], max_length=100_000, cache_dir=str(tmp_path / "cache"))
    listed = lines(Path(findings_of(prepare(data, tokenizer), data, tokenizer)["list"]))
    duplicates = [tuple(fault["ids"]) for fault in listed if fault["kind"] == "duplicate"]
    assert sorted(duplicates) == sorted(tuple(ids) for ids in texts.values() if len(ids) > 1)
    assert len(duplicates) >= 3, "guard: there are some"


FINDINGS = [
    Finding("duplicate", "train", ("a:1", "a:5"), "the same preference, 2 times"),
    Finding("contradictory", "train", ("a:2", "a:5", "a:9"), "2 one way, 1 the other way"),
    *(Finding("duplicate", "eval", tuple(f"b:{k}" for k in range(n)), "ë") for n in range(2, 9)),
]


def test_summary_counts_findings_rows_and_examples() -> None:
    summary = summarize_findings(FINDINGS, {"train": 10, "eval": 20})
    assert list(summary["train"]) == ["contradictory", "duplicate"], "the worst first"
    assert summary["train"]["duplicate"] == {
        "found": 1,
        "rows": 2,
        "share": 0.2,
        "examples": [{"ids": ["a:1", "a:5"], "detail": "the same preference, 2 times"}],
    }
    numbers = summary["eval"]["duplicate"]
    assert (numbers["found"], numbers["rows"], numbers["share"]) == (7, 8, 0.4)
    assert [len(example["ids"]) for example in numbers["examples"]] == [2, 3, 4, 5, 5]
    assert summarize_findings([], {"train": 3}) == {"train": {}}


def test_findings_are_read_under_their_key(tmp_path: Path) -> None:
    assert read_findings(tmp_path, "key") is None
    assert write_findings(tmp_path, "key", FINDINGS, {"train": {"n": 1}})
    assert read_findings(tmp_path, "key") == {"train": {"n": 1}}
    assert read_findings(tmp_path, "other") is None
    lines = [json.loads(line) for line in (tmp_path / LIST).read_text(encoding="utf-8").splitlines()]
    assert lines[0] == {"kind": "duplicate", "split": "train", "ids": ["a:1", "a:5"], "detail": "the same preference, 2 times"}
    assert len(lines) == len(FINDINGS)
    assert {line["kind"] for line in lines} <= set(KINDS)
    assert sorted(file.name for file in tmp_path.iterdir()) == [SUMMARY, LIST], "nothing temporary is left"


@pytest.mark.parametrize("name", [SUMMARY, LIST])
@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "empty", "list"])
def test_damaged_findings_are_not_read(name: str, damage: str, tmp_path: Path) -> None:
    write_findings(tmp_path, "key", FINDINGS, {"train": {"n": 1}})
    file = tmp_path / name
    text = file.read_text()
    if damage == "gone":
        file.unlink()
    else:
        file.write_text({"cut": text[:-9], "changed": text.replace("1", "2", 1), "empty": "", "list": "[]"}[damage])
    assert read_findings(tmp_path, "key") is None
    assert write_findings(tmp_path, "key", FINDINGS, {"train": {"n": 1}}), "guard: made again"
    assert read_findings(tmp_path, "key") is not None


@pytest.mark.parametrize(("number", "raises"), [(errno.EROFS, False), (errno.EACCES, False), (errno.ENOSPC, True)])
def test_read_only_disk_and_full_disk(number: int, raises: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only directory returns False; a full disk raises."""

    def refuse(file: Path, text: str) -> Any:
        raise OSError(number, "no")

    monkeypatch.setattr(module, "write_text", refuse)
    if raises:
        with pytest.raises(OSError, match=r"no$"):
            write_findings(tmp_path, "key", [], {})
    else:
        assert not write_findings(tmp_path, "key", [], {})
