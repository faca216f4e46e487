"""Output in a terminal, in a pipe, and with `--json`."""

import json
import os
import pty
import re
import select
import time
from pathlib import Path

import psutil
import pytest
from rich.cells import cell_len

from tests.forks import fork_server, rmtrain
from tests.runs import planted_rows, tiny_recipe, write_recipe, write_rows

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def in_terminal(*arguments: str, cwd: Path, columns: int = 100, seconds: float = 300) -> str:
    """Everything the command line writes to a terminal of this width, control sequences included."""
    ours, theirs = pty.openpty()
    plain = dict.fromkeys(("CI", "NO_COLOR", "FORCE_COLOR"))
    process = fork_server().start(
        *arguments, cwd=cwd, terminal=os.ttyname(theirs), TERM="xterm-256color", COLUMNS=str(columns), **plain
    )
    written, end = b"", time.monotonic() + seconds
    while time.monotonic() < end:
        is_alive = psutil.pid_exists(process.pid)
        if select.select([ours], [], [], 0.05)[0]:
            written += os.read(ours, 65536)
        elif not is_alive:
            break
    os.close(ours)
    os.close(theirs)
    assert process.wait().code == 0, written.decode(errors="replace")
    return written.decode(errors="replace")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("terminal")
    return write_recipe(folder, tiny_recipe(folder, evaluation={"samples": 1}))


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with one row that is dropped and one with control characters."""
    folder = tmp_path_factory.mktemp("faulty")
    evil = "\x1b[31mred\x1b]0;title\x07 \x9b2J \u202eback"
    rows = [*planted_rows(30, seed=6), {"prompt": f"describe the {evil}", "chosen": "same", "rejected": "same"}]
    rows.append({"prompt": "describe the evil", "chosen": f"{evil} a", "rejected": f"{evil} b"})
    source = {"path": str(write_rows(folder / "faulty.jsonl", rows[::-1]))}
    sizes = {"data": {"train": [source], "eval": [], "max_drop_fraction": 1.0, "max_length": 128}, "training": {"epochs": 2}}
    return write_recipe(folder, tiny_recipe(folder, **sizes))


def test_inspect_colours_only_a_terminal(recipe: Path) -> None:
    coloured = in_terminal("inspect", str(recipe), "--row", "3", cwd=recipe.parent)
    assert "\x1b[" in coloured
    assert "48;5;" in coloured, "tokens have background colours"
    assert "╎" not in coloured
    piped = rmtrain("inspect", "--recipe", recipe, "--row", "3").stdout
    assert "\x1b[" not in piped
    assert "╎" in piped
    for shown in (ESCAPE.sub("", coloured), piped):
        assert "train:3" in shown
        assert shown.count("⟦<|endoftext|>⟧") == 2, "where both rewards are read"
        assert "│" in shown


def test_inspect_prints_one_json_document(recipe: Path) -> None:
    result = rmtrain("inspect", recipe, "--row", "train:5", "--json")
    document = json.loads(result.stdout)
    assert (document["id"], document["row"], document["source"]) == ("train:5", 5, "train")
    chosen, rejected = document["responses"]
    shared = document["prefix_length"]
    assert chosen["ids"][:shared] == rejected["ids"][:shared]
    assert chosen["ids"][shared] != rejected["ids"][shared]
    assert chosen["tokens"][chosen["reward_index"]] == "<|endoftext|>"
    assert "".join(chosen["tokens"]) == chosen["text"]
    assert shared > 0, "guard: something was shared"
    with_ids = rmtrain("inspect", recipe, "--row", "train:5", "--ids").stdout
    assert str(chosen["ids"][0]).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")) in with_ids


@pytest.mark.parametrize(
    ("view", "columns"), [(["--step", "7", "--world-size", "2"], 60), (["--find", "back", "--longest", "--ids"], 160)]
)
def test_inspect_views_fit_the_terminal(faulty: Path, view: list[str], columns: int) -> None:
    coloured = in_terminal("inspect", str(faulty), *view, cwd=faulty.parent, columns=columns)
    assert "\x1b[" in coloured
    lines = [ESCAPE.sub("", line) for line in re.split(r"[\r\n]", coloured)]
    assert max(map(cell_len, lines)) <= columns
    assert "".join(lines).isprintable()
    assert "micro-batch" in coloured or "\\u202eback" in "".join(lines), "guard: it is the view"


def test_pipe_has_whole_lines_without_styles(faulty: Path) -> None:
    piped = rmtrain("inspect", faulty, "--dropped", "identical", COLUMNS="40")
    assert piped.returncode == 0, piped.stderr
    assert piped.stdout.replace("\n", "").isprintable()
    assert any("describe the \\x1b[31mred\\x1b]0;title\\x07 \\x9b2J \\u202eback" in line for line in piped.stdout.splitlines())


def test_train_is_live_only_in_a_terminal(recipe: Path) -> None:
    live = in_terminal("train", str(recipe), f"run.output_dir={recipe.parent}/live", cwd=recipe.parent)
    assert "\x1b[?25l" in live, "the cursor is hidden while the line is redrawn"
    assert "tok/s" in live
    assert "step 6/6" in ESCAPE.sub("", live)
    result = rmtrain("train", recipe, f"run.output_dir={recipe.parent}/piped", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["evaluation"]["n"] == 16, "exactly one document"
    lines = [line for line in result.stderr.splitlines() if line.startswith("step ")]
    assert len(lines) == 6
    assert re.fullmatch(r"step 1/6  loss \d\.\d{3}  acc \d\.\d{3}  lr \S+  \S+ tok/s  eta \S+", lines[0])
    assert "\x1b[" not in result.stderr


def test_preprocess_reports_plots_and_exports(recipe: Path) -> None:
    export = recipe.parent / "columns"
    result = rmtrain("preprocess", recipe, "--export", export, "--plot", recipe.parent / "lengths.png")
    assert result.returncode == 0, result.stderr
    for word in ("= kept", "prompt", "chosen", "rejected", "p99", "█"):
        assert word in result.stdout
    assert (recipe.parent / "lengths.png").read_bytes().startswith(b"\x89PNG")
    from datasets import Dataset

    table = Dataset.from_parquet(str(export / "train.parquet"), cache_dir=str(recipe.parent / "hf"))
    names = {"input_ids_chosen", "attention_mask_chosen", "input_ids_rejected", "attention_mask_rejected", "margin"}
    assert names <= set(table.column_names)
    assert len(table) == 48
    document = json.loads(rmtrain("preprocess", recipe, "--json").stdout)
    assert document["splits"]["train"]["waterfall"]["train"]["kept"] == 48
    assert document["splits"]["train"]["unique_tokens"] < document["splits"]["train"]["tokens"]


def test_exported_columns_give_the_same_tokens(recipe: Path) -> None:
    export = recipe.parent / "again"
    assert rmtrain("preprocess", recipe, "--export", export).returncode == 0
    source = f"data.train=[{{path: {export}/train.parquet, format: tokenized, margin: margin}}]"
    tokenizer = f"model.tokenizer={recipe.parent}/piped/model"
    if not (recipe.parent / "piped/model").is_dir():
        assert rmtrain("train", recipe, f"run.output_dir={recipe.parent}/piped").returncode == 0
    first = json.loads(rmtrain("inspect", recipe, "--json").stdout)
    second = json.loads(rmtrain("inspect", recipe, source, tokenizer, "--json").stdout)
    assert [r["ids"] for r in first["responses"]] == [r["ids"] for r in second["responses"]]
