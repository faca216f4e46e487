"""`rmtrain init`: the recipe that it prints runs unchanged, or asks the right question; files are never overwritten."""

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rmtrain.command_line.options import InitOptions
from rmtrain.commands.init import evaluation_split, init, render, training_split
from rmtrain.commands.init_files import first_comment
from rmtrain.commands.train import train
from rmtrain.data.prepare import PreparedData, prepare
from rmtrain.data.text.tokenizer import load_tokenizer
from rmtrain.recipe.library import SCHEMA_LINE, SCHEMA_NAME, recipes
from rmtrain.recipe.load import load_recipe, parse_recipe
from rmtrain.recipe.schema import PretrainedModel, ScratchModel, json_schema
from tests.catalogue import CATALOGUE
from tests.data.rows.test_examine import ASKED, SHAPES, usable
from tests.forks import rmtrain
from tests.helpers import byte_bpe, llama_like, pairs, write_jsonl
from tests.hub_server import hub_server
from tests.runs import ROOT, environment_of_process, metrics_of, planted_rows

QUIET = Console(quiet=True)
CHECK = re.compile(r"# CHECK: (.*)")
ROWS = 60


def text_of(data: str | Path, model: str | Path | None = None) -> str:
    return init(InitOptions(data=str(data), model=None if model is None else str(model)), QUIET)


def prepared(text: str, folder: Path) -> PreparedData:
    """The data of a recipe as a run prepares it; only the cache is elsewhere."""
    file = folder / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    recipe = load_recipe(file, [f"data.cache_dir={folder / 'cache'}"])
    return prepare(recipe.data, load_tokenizer(recipe.model, recipe.data))


def trained(text: str, folder: Path) -> dict[str, Any]:
    """Train two steps of a recipe; return the document of the run."""
    file = folder / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    changes = [f"data.cache_dir={folder / 'cache'}", f"run.output_dir={folder / 'run'}", "training.max_steps=2"]
    return train(load_recipe(file, changes), QUIET).document


def messy(folder: Path) -> dict[str, tuple[Path, list[str], int]]:
    """CSV files as people have them, each with its questions and the number of comparisons."""
    rows = planted_rows(60, seed=3)
    both = [(row["prompt"], row["chosen"], row["rejected"]) for row in rows]

    def write(name: str, header: Sequence[str], cells: Sequence[Sequence[Any]], mark: str, encoding: str = "utf-8") -> Path:
        quoted = [[f'"{str(cell).replace(chr(34), chr(34) * 2)}"' for cell in row] for row in [header, *cells]]
        file = folder / name
        file.write_bytes("\r\n".join(mark.join(row) for row in quoted).encode(encoding))
        return file

    swapped = [(q, a, b, "A") if n % 2 else (q, b, a, "B") for n, (q, a, b) in enumerate(both)]
    with_ties = [(*row[:3], "tie") if n % 10 == 0 else row for n, row in enumerate(swapped)]
    numbers = {"A": 1, "B": 0}
    with_lines = [(f'He said: "{q}"\nand?', f"{a}\n\n- x, y", b) for q, a, b in both]
    return {
        "semicolons and a BOM": (
            write("semicolons.csv", ["question", "answer_a", "answer_b", "winner"], with_ties, ";", "utf-8-sig"), [], 54
        ),
        "good and bad, an empty column": (
            write("words.csv", ["id", "user input", "notes", "good", "bad"], [(n, q, "", a, b) for n, (q, a, b) in enumerate(both)], ","),
            [],
            60,
        ),
        "bits": (
            write("bits.csv", ["question", "answer_a", "answer_b", "label"], [(*row[:3], numbers[row[3]]) for row in swapped], "\t"),
            ["is answer_a the better one where label is 0?"],
            60,
        ),
        "ratings": (
            write("ratings.csv", ["Question", "Answer", "Rating"], [(q, a, n % 5 + 1) for n, (q, a, _) in enumerate(both)], ","),
            ["is a higher Rating better?"],
            60,
        ),
        "quotes and lines": (
            write("quotes.csv", ["prompt", "chosen", "rejected"], with_lines, ","),
            [],
            60,
        ),
    }  # fmt: skip


@pytest.mark.parametrize("what", ["semicolons and a BOM", "good and bad, an empty column", "bits", "ratings", "quotes and lines"])
def test_messy_files_give_a_recipe_that_runs(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unchanged, it keeps every row; the only CHECK in it is the question that the rows do not answer."""
    monkeypatch.chdir(tmp_path)
    file, checks, count = messy(tmp_path)[what]
    text = text_of(file.name)
    assert [line.partition(" If not,")[0] for line in CHECK.findall(text)] == checks
    data = prepared(text, tmp_path)
    assert len(data.train) + len(data.eval) == count
    assert len(data.eval) >= 3, "guard: some rows are held out"
    assert text.count("rmtrain inspect recipe.yaml --row 0") == 1 + len(checks)


@pytest.mark.parametrize("what", ["semicolons and a BOM", "ratings"])
def test_recipe_trains_unchanged(what: str, tmp_path: Path, no_reload: None) -> None:
    file, _, _ = messy(tmp_path)[what]
    trained(text_of(file), tmp_path)
    steps = {line["step"] for line in metrics_of(tmp_path / "run") if "eval/loss" in line}
    assert steps == {2}
    assert (tmp_path / "run/model").is_dir()


def copies(name: str, count: int) -> list[dict[str, Any]]:
    """Rows in the shape of a documented dataset, each with a prompt and responses of its own."""
    shapes = [json.dumps(row) for row in usable(CATALOGUE[name])[0]]
    return [
        json.loads(re.sub(r"\b(q|good|bad|one|two)\b", rf"\1 {number}", shapes[number % len(shapes)])) for number in range(count)
    ]


@pytest.mark.long
@pytest.mark.parametrize("known", [True, False], ids=["by its entry", "by its rows"])
@pytest.mark.parametrize("name", SHAPES)
def test_documented_shapes_train_unchanged(
    name: str, known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_reload: None
) -> None:
    """As a local file, which is recognised by its columns, and as rows of a dataset that nobody has documented."""
    if not known:
        monkeypatch.setattr("rmtrain.data.rows.examine.entries", tuple)
    rows = copies(name, ROWS)
    text = text_of(write_jsonl(tmp_path / "rows.jsonl", rows))
    assert len(CHECK.findall(text)) == (0 if known else len(ASKED.get(name, [])))
    document = trained(text, tmp_path)
    data = prepared(text, tmp_path)
    assert len(data.train) + len(data.eval) == ROWS
    assert document["steps"] == 2
    assert document["evaluation"]["n"] == len(data.eval) > 0
    losses = [line["train/loss"] for line in metrics_of(tmp_path / "run") if "train/loss" in line]
    assert all(0 < loss < 20 for loss in losses)
    assert (tmp_path / "run/model/model.safetensors").is_file()


def test_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    file = tmp_path / "latin.csv"
    file.write_bytes("prompt,chosen,rejected\nq,caf\xe9,tea\n".encode("cp1252"))
    ended = rmtrain("init", file)
    assert (ended.returncode, ended.stdout) == (3, "")
    (line,) = ended.stderr.splitlines()
    assert f"{file}:2" in line
    assert "UTF-8" in line


REAL = {
    "hh_harmless.jsonl.gz": ("pair", 1650),
    "dpo_en_demo.json": ("pair", 295),
    "pandalm_test.json": ("ab", 800),
    "rmbench_chat.json": ("pair", 129),
    "llmbar_natural.json": ("ab", 100),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files_give_a_recipe_that_runs(name: str, shared_data: Path, tmp_path: Path) -> None:
    """The recipe of each real file has no question, and keeps nearly all of its rows."""
    kind, least = REAL[name]
    text = text_of(shared_data / name)
    assert not CHECK.findall(text)
    assert parse_recipe(text, "recipe").data.train[0].format == kind
    data = prepared(text, tmp_path)
    assert len(data.train) + len(data.eval) >= least
    assert len(data.eval) > 5, "guard: some rows are held out"


def folder_of(folder: Path) -> Path:
    data = folder / "data"
    data.mkdir()
    write_jsonl(data / "train-00000-of-00002.jsonl", pairs(30))
    write_jsonl(data / "train-00001-of-00002.jsonl", [row | {"prompt": f"Again: {row['prompt']}"} for row in pairs(30)])
    write_jsonl(data / "test.jsonl", [row | {"prompt": f"Test: {row['prompt']}"} for row in pairs(10)])
    return data


def test_own_test_split_is_used(tmp_path: Path) -> None:
    text = text_of(folder_of(tmp_path))
    recipe = parse_recipe(text, "recipe")
    assert [(source.split, source.holdout) for source in (*recipe.data.train, *recipe.data.eval)] == [
        ("train", None),
        ("test", None),
    ]
    data = prepared(text, tmp_path)
    assert (len(data.train), len(data.eval)) == (60, 10)


def test_test_file_next_to_training_file_is_used(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "pairs_train.jsonl", pairs(30))
    write_jsonl(tmp_path / "pairs_test.jsonl", [row | {"prompt": f"Test: {row['prompt']}"} for row in pairs(10)])
    recipe = parse_recipe(text_of(tmp_path / "pairs_train.jsonl"), "recipe")
    assert [Path(source.path).name for source in recipe.data.eval] == ["pairs_test.jsonl"]
    assert recipe.data.train[0].holdout is None


def test_test_split_of_another_shape_is_not_used(tmp_path: Path) -> None:
    data = folder_of(tmp_path)
    write_jsonl(data / "test.jsonl", [{"question": "q", "answer": "x"}] * 5)
    recipe = parse_recipe(text_of(data), "recipe")
    assert recipe.data.eval == ()
    assert recipe.data.train[0].holdout


def test_split_without_a_telling_name_is_asked(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_jsonl(tmp_path / f"{name}.jsonl", [row | {"prompt": f"{name}: {row['prompt']}"} for row in pairs(30)])
    text = text_of(tmp_path)
    assert CHECK.findall(text) == ["is one the split to train on? If not, set split to two."]
    assert parse_recipe(text, "recipe").data.train[0].split == "one"


def test_names_of_splits() -> None:
    assert training_split(["test", "train", "train_extra"]) == "train"
    assert training_split(["test_prefs", "train_prefs"]) == "train_prefs"
    assert training_split(["validation", "filtered"]) == "filtered"
    assert evaluation_split("train", ["train", "validation", "test"]) == "test"
    assert evaluation_split("train_prefs", ["train_prefs", "train_sft", "test_sft", "test_prefs"]) == "test_prefs"
    assert evaluation_split("train", ["train", "extra"]) is None


@pytest.mark.parametrize("own_template", [True, False])
def test_settings_follow_the_model(own_template: bool, tmp_path: Path) -> None:
    """Its own template is used where it has one, and `max_length` is measured with its tokenizer."""
    model = tmp_path / "model"
    tokenizer = llama_like() if own_template else byte_bpe()
    tokenizer.save_pretrained(model)
    config = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config |= {"vocab_size": len(tokenizer), "max_position_embeddings": 600, "architectures": ["LlamaForCausalLM"]}
    (model / "config.json").write_text(json.dumps(config))
    rows = [row | {"chosen": row["chosen"] + " and so on" * 40} for row in planted_rows(40)]
    text = text_of(write_jsonl(tmp_path / "rows.jsonl", rows), model)
    recipe = parse_recipe(text, "recipe")
    assert isinstance(recipe.model, PretrainedModel)
    assert recipe.data.chat_template == ("tokenizer" if own_template else "simple_chat")
    assert recipe.lora is None, "a tiny model fits with all weights"
    data = prepared(text, tmp_path)
    assert len(data.train) + len(data.eval) == 40
    assert recipe.data.max_length / 2.5 < max(data.train.longest) <= recipe.data.max_length, "guard: the lengths were measured"


def test_small_memory_means_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "model"
    byte_bpe().save_pretrained(model)
    config = {
        "model_type": "llama",
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
    }
    config |= {"vocab_size": 420, "max_position_embeddings": 2048, "architectures": ["LlamaForCausalLM"]}
    (model / "config.json").write_text(json.dumps(config))
    file, texts = write_jsonl(tmp_path / "rows.jsonl", planted_rows(20)), []
    for gigabytes in (16.0, 0.6, 0.01):
        monkeypatch.setattr("rmtrain.commands.init_model.memory_of", lambda *_, size=gigabytes: int(size * 1e9))
        texts.append(text_of(file, model))
    whole, adapters, nothing = (parse_recipe(text, "recipe") for text in texts)
    assert whole.lora is None
    assert adapters.lora is not None
    assert adapters.optimizer.lr > whole.optimizer.lr
    assert nothing.model.dtype == "bfloat16"
    assert "too large for this machine" in texts[2]


def test_model_out_of_reach_is_estimated(tmp_path: Path) -> None:
    """Offline, the lengths of a model that is not cached are estimated, and the recipe says so."""
    ended = rmtrain("init", write_jsonl(tmp_path / "rows.jsonl", pairs(30)), "--model", "owner/unknown")
    assert ended.returncode == 0, ended.stderr
    assert "estimate" in ended.stdout
    assert "estimate" in ended.stderr
    recipe = parse_recipe(ended.stdout, "recipe")
    assert isinstance(recipe.model, PretrainedModel)
    assert recipe.data.chat_template == "simple_chat"


def test_documented_dataset_needs_no_network(tmp_path: Path) -> None:
    """The recipe is the tested entry, whatever the case of its name; an unknown dataset is an error."""
    ended = rmtrain("init", "NVIDIA/helpsteer3:preference")
    assert ended.returncode == 0, ended.stderr
    recipe = parse_recipe(ended.stdout, "recipe")
    source = recipe.data.train[0].model_dump()
    assert (source["path"], source["name"], source["label"]["positive"]) == ("nvidia/HelpSteer3", "preference", "b")
    assert not CHECK.findall(ended.stdout)
    unknown = rmtrain("init", "owner/unknown")
    assert (unknown.returncode, unknown.stdout) == (3, "")
    assert len(unknown.stderr.splitlines()) == 1


HH = [
    {side: f"\n\nHuman: {row['prompt']}\n\nAssistant: {row[side]}" for side in ("chosen", "rejected")} for row in planted_rows(30)
]
UNKNOWN = [{"question": row["prompt"], "good": row["chosen"], "bad": row["rejected"]} for row in planted_rows(30)]


@pytest.mark.parametrize(
    ("name", "folder", "rows", "keys"),
    [
        ("owner/pairs", "data", UNKNOWN, {"chosen": "good", "prompt": "question"}),
        ("anthropic/HH-RLHF", "harmless-base", HH, {"path": "Anthropic/hh-rlhf", "data_dir": "harmless-base"}),
    ],
)
def test_hub_dataset_is_looked_at(
    name: str, folder: str, rows: list[dict[str, Any]], keys: dict[str, str], tmp_path: Path
) -> None:
    """Its splits and its first rows are read from the Hub, also those of a documented dataset."""
    files = {f"{folder}/{split}.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode() for split in ("train", "test")}
    with hub_server() as hub:
        hub.add("dataset", keys.get("path", name), files)
        environment = environment_of_process(**hub.environment(tmp_path))
        command = [sys.executable, "-m", "rmtrain", "init", name]
        ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=200)
    assert ended.returncode == 0, ended.stderr
    recipe = parse_recipe(ended.stdout, "recipe")
    assert [source.split for source in (*recipe.data.train, *recipe.data.eval)] == ["train", "test"]
    assert recipe.data.train[0].model_dump().items() >= keys.items()
    assert "30 comparisons" in ended.stdout
    assert isinstance(recipe.model, ScratchModel), "this Hub has no models"


@pytest.mark.parametrize(
    ("content", "code", "part"),
    [
        (None, 3, "does not exist"),
        ("", 3, "empty"),
        ('{"a": 1}\n', 3, "column a"),
        ("not json\n", 3, "no row can be read"),
    ],
)
def test_unusable_files_are_refused(content: str | None, code: int, part: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    if content is not None:
        file.write_text(content)
    ended = rmtrain("init", file, "-o", tmp_path / "recipe.yaml")
    assert (ended.returncode, ended.stdout) == (code, "")
    assert part in ended.stderr
    assert all(line.startswith("error: ") for line in ended.stderr.splitlines())
    assert not (tmp_path / "recipe.yaml").exists()


def test_output_is_never_overwritten(tmp_path: Path) -> None:
    file, output = write_jsonl(tmp_path / "rows.jsonl", pairs(30)), tmp_path / "recipe.yaml"
    first = rmtrain("init", file, "-o", output)
    assert (first.returncode, first.stdout) == (0, ""), first.stderr
    written = output.read_bytes()
    assert f"rmtrain inspect {output} --row 0" in output.read_text()
    for again in (["init", file], ["init", "--recipe", "quickstart"]):
        ended = rmtrain(*again, "-o", output)
        assert ended.returncode == 2
        assert "never overwritten" in ended.stderr
    assert output.read_bytes() == written
    assert output.read_text().splitlines()[0] == SCHEMA_LINE
    assert (tmp_path / SCHEMA_NAME).read_text() == json_schema()


def test_shipped_recipes_are_listed_and_written(tmp_path: Path) -> None:
    """Data files that a recipe names are written where it expects them; one that exists stays as it is."""
    listed = rmtrain("init", "--list")
    assert listed.returncode == 0, listed.stderr
    lines = listed.stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(recipes())
    assert all(first_comment(file) in line for line, file in zip(lines, recipes().values(), strict=True))
    mine = tmp_path / "recipes/data/sentiment_test.jsonl"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    ended = rmtrain("init", "--recipe", "quickstart", "-o", "new/quickstart.yaml", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert load_recipe(tmp_path / "new/quickstart.yaml").run.name == "quickstart"
    assert mine.read_text() == "mine"
    shipped = ROOT / "recipes/data/sentiment_train.jsonl"
    if shipped.is_file():
        assert (tmp_path / "recipes/data/sentiment_train.jsonl").read_bytes() == shipped.read_bytes()
    printed = rmtrain("init", "--recipe", "quickstart")
    assert parse_recipe(printed.stdout, "quickstart").run.name == "quickstart"
    unknown = rmtrain("init", "--recipe", "quickstrat")
    assert (unknown.returncode, len(unknown.stderr.splitlines())) == (2, 1)


@pytest.mark.parametrize("words", [[], ["x.jsonl", "--list"], ["--list", "-o", "x"], ["--recipe", "quickstart", "--model", "m"]])
def test_options_that_do_not_go_together(words: list[str]) -> None:
    ended = rmtrain("init", *words)
    assert (ended.returncode, ended.stdout, len(ended.stderr.splitlines())) == (2, "", 1)


def test_names_of_strangers_stay_names(tmp_path: Path) -> None:
    """A column name with line feeds and control characters ends up as one quoted name, never as a key or a comment of its own."""
    name = "good\nmodel: {path: evil}\x1b[31m # ${HOME} x"
    deep: Any = "x"
    for level in range(300):
        deep = [deep] if level % 2 else {"k": deep}
    rows: list[dict[str, Any]] = [
        {"question": row["prompt"], name: row["chosen"], name.replace("good", "bad"): row["rejected"], "deep": deep}
        for row in pairs(30)
    ]
    text = text_of(write_jsonl(tmp_path / "rows.jsonl", rows))
    recipe = parse_recipe(text, "recipe")
    assert recipe.data.train[0].model_dump()["chosen"] == name
    assert not any(line.startswith("model: {path: evil") for line in text.splitlines())
    assert "\x1b" not in text


def test_comments_end_with_their_line() -> None:
    text = render(["one\ntwo: 2"], {"run": {"name": "x"}}, {("run",): "a\nb: c"}, (), "r.yaml")
    assert [line for line in text.splitlines() if line and not line.lstrip().startswith("#")] == ["run: {name: x}    # a\\nb: c"]


def test_terminal_is_asked(tmp_path: Path) -> None:
    """On a terminal the question comes with a row; the answer no turns the label around, and no CHECK is left."""
    file = messy(tmp_path)["bits"][0]
    output = tmp_path / "recipe.yaml"
    command = [sys.executable, "-m", "rmtrain", "init", str(file), "-o", str(output)]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command, stdin=theirs, stdout=subprocess.DEVNULL, stderr=theirs, env=environment_of_process(), cwd=tmp_path
    )
    os.close(theirs)
    shown, deadline, answered = b"", time.monotonic() + 200, False
    while process.poll() is None and time.monotonic() < deadline:
        if select.select([ours], [], [], 0.2)[0]:
            try:
                shown += os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
        if b"[yes/no]" in shown and not answered:
            os.write(ours, b"no\n")
            answered = True
    assert process.wait(60) == 0, shown
    assert b"answer_a: " in shown
    text = output.read_text()
    assert not CHECK.findall(text)
    label = parse_recipe(text, "recipe").data.train[0].model_dump()["label"]
    assert label["values"] == {"0": "b", "1": "a"}
