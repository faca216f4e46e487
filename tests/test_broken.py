"""Mistakes of users: each gives its line and its exit code, none a traceback, and none leaves a run behind."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from rmtrain import cli
from rmtrain.recipe.load import load_recipe
from tests.runs import ROOT, planted_rows, tiny_recipe, write_recipe, write_rows


class Case(NamedTuple):
    """A mistake.

    `{base}` in `arguments` is a good recipe. `line` is `start|word|word`: one line on stderr starts so and has these words, which are
    places, keys, values and numbers, never sentences.
    """

    name: str
    arguments: list[str]
    code: int
    line: str


TRAIN = ["train", "{base}"]
ROWS = {
    "columns.jsonl": [{"question": "a", "good": "b", "bad": "c"}] * 5,
    "identical.jsonl": [{"prompt": f"q{i}", "chosen": "same", "rejected": "same"} for i in range(5)],
    "hh.jsonl": [
        {"chosen": f"\n\nHuman: q{i}\n\nAssistant: a", "rejected": f"\n\nHuman: q{i}\n\nAssistant: b"} for i in range(5)
    ],
    "repeats.jsonl": [{"prompt": f"q{i}", "chosen": f"q{i} a", "rejected": f"q{i} b"} for i in range(5)],
    "margins.jsonl": [
        {"prompt": f"q{i}", "chosen": "a", "rejected": "b", "m": -1 if i == 3 else 1, "t": "high"} for i in range(5)
    ],
    "roles.jsonl": [{"chosen": [{"role": "user", "content": "q"}] * 2, "rejected": [{"role": "user", "content": "z"}] * 2}] * 5,
    "tokens.jsonl": [{"chosen_ids": [1, 2, 0], "rejected_ids": [1, 3, 0]}] * 5,
    "ab.jsonl": [{"prompt": f"q{i}", "x": "a", "y": "b", "winner": ["model_a", "tie"][i % 2]} for i in range(6)],
    "kto.jsonl": [{"prompt": f"q{i}", "completion": "a", "label": True} for i in range(5)],
    "lists.jsonl": [{"prompt": f"q{i}", "answers": [{"text": "a", "s": i}, {"text": "b", "s": "?"}]} for i in range(5)],
    "calls.jsonl": [
        {
            "prompt": f"q{i}",
            "chosen": {"role": "assistant", "content": "", "tool_calls": [{"name": "add", "arguments": {"x": i}}]},
            "rejected": "b",
        }
        for i in range(5)
    ],
    "mixed.jsonl": [*planted_rows(9, seed=5), {"prompt": "q", "chosen": None, "rejected": "b"}],
}
TEXTS = {
    "broken.jsonl": '{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 2 + '{"prompt": oops}\n',
    "array.json": '[{"prompt": "a", "chosen": "b", "rejected": "c"},\n {"prompt" 3}]',
    "empty.jsonl": "",
    "notes.txt": "no data",
    "scores.jsonl": '{"id": "a", "source": "s", "rewards": [1.0, 0.5]}\n{"id": "b", "source": "s", "rewards": [1]}\n',
    "unclosed.yaml": "run: {name: a\n  b",
    "tag.yaml": "run: !!python/object/apply:os.system [touch canary]\n",
    "list.yaml": "- run\n",
}


def reads(file: str, *more: str) -> list[str]:
    return [*TRAIN, f"data.train.0.path={file}", *more]


AB = "data.train=[{path: ab.jsonl, format: ab, a: x, b: y, label: {by: value, column: winner, values: {a: a, b: b, tie: tie}}}]"
RANKED = "data.train=[{path: lists.jsonl, format: ranked, responses: answers, response: text, score: s}]"

RECIPES = [
    Case("no recipe", ["train"], 2, "|recipe|--recipe"),
    Case("mistyped override", ["train", "{base}", "optimizer.lr"], 2, "optimizer.lr: |optimizer.lr=1e-5"),
    Case("recipe twice", ["train", "{base}", "--recipe", "b.yaml"], 2, "|either|--recipe"),
    Case("missing recipe", ["train", "nothing.yaml"], 2, "nothing.yaml  "),
    Case("directory", ["train", "."], 2, ".  "),
    Case("unclosed brace", ["train", "unclosed.yaml"], 2, "unclosed.yaml:2:4  |YAML"),
    Case("python tag", ["train", "tag.yaml"], 2, "tag.yaml:1:6  |os.system"),
    Case("list", ["train", "list.yaml"], 2, "list.yaml:1:1  |run, data and model|list of 1"),
    Case("misspelt key", [*TRAIN, "optimizer.learing_rate=1"], 2, "override |  optimizer.learing_rate: |mean lr?"),
    Case("wrong type", [*TRAIN, "optimizer.lr=fast"], 2, "override optimizer.lr=fast  optimizer.lr: |number|fast"),
    Case("out of range", [*TRAIN, "training.batch_size=0"], 2, "override |  training.batch_size: |got 0"),
    Case("wrong choice", [*TRAIN, "optimizer.schedule=cosin"], 2, "override |  optimizer.schedule: |mean cosine?"),
    Case(
        "label kind",
        [*TRAIN, AB.replace("by: value", "by: values")],
        2,
        "override |  data.train.0.label.by: |value, index|mean value?",
    ),
    Case(
        "values without b",
        [*TRAIN, AB, "data.train.0.label.values={a: a}"],
        2,
        "override |  data.train.0.label.values: | b",
    ),
    Case(
        "list and group",
        [*TRAIN, RANKED, "data.train.0.group_by=prompt"],
        2,
        "override |  data.train.0.group_by: |responses",
    ),
    Case(
        "no list and no group",
        [*TRAIN, "data.train=[{path: lists.jsonl, format: ranked, score: s}]"],
        2,
        "override |  data.train.0.responses: |missing|group_by",
    ),
    Case(
        "pairs of one",
        [*TRAIN, RANKED, "data.train.0.policy=best_worst", "data.train.0.max_pairs=2"],
        2,
        "override |  data.train.0.max_pairs: |best_worst",
    ),
    Case("no value", [*TRAIN, "optimizer.lr"], 2, "optimizer.lr: |optimizer.lr=1e-5"),
    Case("index", [*TRAIN, "data.train.3.path=x"], 2, "override |  data.train.3.path: |list of 1"),
    Case("budget", [*TRAIN, "batching.max_tokens=90"], 2, "override |  batching.max_tokens: |data.max_length (96)|got 90"),
    Case("positions", [*TRAIN, "data.max_length=512"], 2, "override |  data.max_length: |max_positions (128)|got 512"),
    Case("unknown option", [*TRAIN, "--quick"], 2, "|--quick"),
    Case("tracker", [*TRAIN, "tracking.to=[wandb]"], 2, "tracking.to: wandb |rmtrain[wandb]"),
]
DATA = [
    Case("missing file", reads("none.jsonl"), 3, "none.jsonl |"),
    Case("unknown kind", reads("notes.txt"), 3, "notes.txt: |.json"),
    Case("columns", reads("columns.jsonl"), 3, 'columns: |"chosen", "rejected"|question, good, bad'),
    Case("one column", [*TRAIN, "data.train.0.chosen=gut"], 3, 'train: |"gut"|prompt, chosen, rejected'),
    Case("broken line", reads("broken.jsonl"), 3, "broken: 1 of 3 |33.3 %|5 %|broken.jsonl:3:12"),
    Case("broken array", reads("array.json"), 3, "array.json:2:12: |JSON"),
    Case("empty file", reads("empty.jsonl"), 3, "empty: |no rows"),
    Case("identical", reads("identical.jsonl"), 3, "identical: |(identical)|identical.jsonl:1:"),
    Case("a bad row", reads("mixed.jsonl"), 3, "mixed: 1 of 10 |10.0 %|5 %|mixed:9"),
    Case("hh unsaid", reads("hh.jsonl"), 3, "hh: |messages.transcript: hh"),
    Case("prompt twice", reads("repeats.jsonl"), 3, "repeats: |prompt: implicit"),
    Case("roles", reads("roles.jsonl"), 3, "roles: | 5 |(role_order)|roles.jsonl:1:"),
    Case("tokens unsaid", reads("tokens.jsonl"), 3, 'tokens: |"chosen", "rejected"|format: tokenized'),
    Case(
        "unknown label",
        [*TRAIN, AB, "data.train.0.label.values={A: a, B: b, both: tie}"],
        3,
        "ab: | 6 |(unknown_label)|ab.jsonl:1:|winner|'model_a'|A, B, both",
    ),
    Case(
        "tie",
        [*TRAIN, AB, "data.train.0.label.values={model_a: a, model_b: b, tie: tie}", "data.train.0.tie=error"],
        3,
        "ab: |tie|error|ab:1|ab:3",
    ),
    Case("no score", [*TRAIN, RANKED], 3, "lists: |(no_score)|lists.jsonl:1:|answers.1.text|'?'|number"),
    Case("unpaired", reads("kto.jsonl"), 3, 'kto: |"chosen", "rejected"|completion|label'),
    Case("calls unshown", reads("calls.jsonl"), 3, "calls: | 5 |hidden_by_template 5|calls:0|tool_calls"),
    Case("negative margin", reads("margins.jsonl", "data.train.0.margin=m"), 3, "|margins:3|got -1"),
    Case("text margin", reads("margins.jsonl", "data.train.0.margin=t"), 3, "|margins:0|'high'"),
    Case("overlap", [*TRAIN, "data.eval.0.path=train.jsonl"], 3, "48 of 48 |train:0"),
    Case("all too long", [*TRAIN, "data.max_length=8"], 3, "train: | 48 |too_long 48"),
    Case("error policy", [*TRAIN, "data.max_length=30", "data.overlong=error"], 3, "data.overlong |error"),
    Case("no template", [*TRAIN, "data.chat_template=tokenizer"], 2, "data.chat_template: |simple_concat"),
    Case("template name", [*TRAIN, "data.chat_template=simple_cat"], 2, 'data.chat_template: |"simple_cat"|mean simple_chat?'),
    Case(
        "template fails",
        [*TRAIN, "data.chat_template='{{ raise_exception(\"no\") }}'"],
        3,
        "data.chat_template: |no",
    ),
    Case("no reply", [*TRAIN, "data.chat_template='{{ messages[0].content }}'"], 3, "data.chat_template: |reply"),
]
MODELS = [
    Case("architecture", [*TRAIN, "model.scratch.architecture=lama"], 2, "|model.scratch.architecture: |lama|llama"),
    Case("heads", [*TRAIN, "model.scratch.heads=3"], 2, "override |  model.scratch.heads: |hidden_size (32)|got 3"),
    Case("no checkpoint", [*TRAIN, "model.head=from_checkpoint"], 2, "model.head: |from_checkpoint|model.path"),
    Case("adapter target", [*TRAIN, "lora={targets: [nope]}"], 2, "lora.targets: |nope"),
    Case("8 bit", [*TRAIN, "optimizer.name=adamw_8bit"], 2, "optimizer.name: |adamw_8bit|bitsandbytes"),
    Case("no model yet", ["eval", "{base}"], 4, "|run/model|rmtrain train"),
    Case("no such model", ["eval", "nowhere/none", "--data", "test.jsonl"], 4, "model: |nowhere/none"),
    Case("nothing to evaluate", ["eval"], 2, "|recipe|run directory|model"),
    Case("model without data", ["eval", "nowhere/none"], 2, "nowhere/none: |--data|--recipe"),
    Case("gate name", ["eval", "{base}", "--fail-under", "acc=1"], 2, "--fail-under acc=1: |accuracy"),
    Case("gate value", ["eval", "{base}", "--fail-under", "accuracy=x"], 2, "--fail-under accuracy=x: |number"),
    Case("scores", ["eval", "--scores", "scores.jsonl"], 3, "scores.jsonl:2  rewards: |[1]"),
    Case("row", ["inspect", "{base}", "--row", "99"], 3, "--row 99: |train|48|0 to 47"),
    Case("split", ["inspect", "{base}", "--split", "dev"], 2, "--split: |train|eval|dev"),
    Case("choices", ["inspect", "{base}", "--row", "0", "--find", "x"], 2, "--row: |--find"),
    Case("step", ["inspect", "{base}", "--step", "99"], 2, "--step 99: |6|0 to 5"),
    Case("source", ["inspect", "{base}", "--source", "x"], 2, "--source x: |train"),
]
CASES = RECIPES + DATA + MODELS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good recipe and its data, together with all wrong files."""
    place = tmp_path_factory.mktemp("broken")
    write_recipe(place, tiny_recipe(place))
    for name, rows in ROWS.items():
        write_rows(place / name, rows)
    for name, text in TEXTS.items():
        (place / name).write_text(text)
    return place


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["rmtrain", *arguments])
    with pytest.raises(SystemExit) as ending:
        cli.main()
    code = ending.value.code
    assert isinstance(code, int)
    return code


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_a_mistake_gets_line_and_exit_code(
    case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    before = {path.name for path in folder.iterdir()}
    code = run(
        [argument.format(base="recipe.yaml") if "{base}" in argument else argument for argument in case.arguments], monkeypatch
    )
    stderr = capsys.readouterr().err
    lines = [line.removeprefix("error: ") for line in stderr.splitlines()]
    start, *words = case.line.split("|")
    assert code == case.code, stderr
    assert any(line.startswith(start) and all(word in line for word in words) for line in lines), stderr
    assert "Traceback" not in stderr
    assert {path.name for path in folder.iterdir()} - {"cache"} == before - {"cache"}, "nothing is left behind"


def test_the_table_is_long_enough() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 40


def test_all_mistakes_of_a_recipe_are_reported(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(folder)
    text = (folder / "recipe.yaml").read_text()
    (folder / "worse.yaml").write_text(
        text.replace("  lr:", "  rate:").replace("  batch_size: 8", "  batch_size: -8").replace("name: tiny", "nmae: tiny")
    )
    assert run(["train", "worse.yaml"], monkeypatch) == 2
    lines = capsys.readouterr().err.splitlines()
    (folder / "worse.yaml").unlink()
    assert len([line for line in lines if line.startswith("error: worse.yaml:")]) >= 4
    assert any("  run.nmae: " in line and "mean name?" in line for line in lines)


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["train", "unclosed.yaml"], 2), (["schema"], 0)])
def test_help_and_errors_import_nothing_heavy(arguments: list[str], code: int, folder: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "rmtrain", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert result.returncode == code
    imported = re.findall(r"\| +([\w.]+)$", result.stderr, re.MULTILINE)
    assert len(imported) > 50, "guard: imports were traced"
    assert not {"torch", "transformers", "datasets", "accelerate", "peft", "numpy"} & set(imported)


def test_trap_26_no_is_text_exponents_are_numbers(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(folder)
    assert run(["train", "recipe.yaml", "optimizer.lr=no"], monkeypatch) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "  optimizer.lr: " in line]
    assert '"no"' in line, "it is text, not false"
    assert load_recipe("recipe.yaml", ["optimizer.lr=1e-5"]).optimizer.lr == 1e-5
