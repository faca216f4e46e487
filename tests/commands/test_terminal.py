"""What a person sees: in a terminal, in a pipe, and with `--json`."""

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.runs import ROOT, rmtrain, tiny_recipe, write_recipe

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def in_terminal(*arguments: str, cwd: Path, seconds: float = 120) -> str:
    """Everything the command line writes to a terminal of 100 columns, control sequences included."""
    environment = {k: v for k, v in os.environ.items() if k not in ("CI", "NO_COLOR", "FORCE_COLOR")}
    environment |= {
        "TERM": "xterm-256color",
        "COLUMNS": "100",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "rmtrain", *arguments], stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd, env=environment
    )
    os.close(theirs)
    written, end = b"", time.monotonic() + seconds
    while time.monotonic() < end:
        if select.select([ours], [], [], 0.1)[0]:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # Linux: the other end is closed
                break
            written += piece
        elif process.poll() is not None:
            break
    os.close(ours)
    assert process.wait(timeout=10) == 0, written.decode(errors="replace")
    return written.decode(errors="replace")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("terminal")
    return write_recipe(folder, tiny_recipe(folder, evaluation={"samples": 1}))


def test_inspect_colours_a_terminal_and_draws_lines_in_a_pipe(recipe: Path) -> None:
    coloured = in_terminal("inspect", str(recipe), "--row", "3", cwd=recipe.parent)
    assert "\x1b[" in coloured
    assert "48;5;" in coloured, "tokens stand on coloured grounds"
    assert "╎" not in coloured
    piped = rmtrain("inspect", "--recipe", recipe, "--row", "3").stdout
    assert "\x1b[" not in piped
    assert "╎" in piped
    for shown in (ESCAPE.sub("", coloured), piped):
        assert "train:3" in shown
        assert shown.count("⟦<|endoftext|>⟧") == 2, "where both rewards are read"
        assert "│" in shown


def test_inspect_as_json_is_one_document_with_everything(recipe: Path) -> None:
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


def test_train_is_live_in_a_terminal_and_plain_lines_in_a_pipe(recipe: Path) -> None:
    live = in_terminal("train", str(recipe), f"run.output_dir={recipe.parent}/live", cwd=recipe.parent)
    assert "\x1b[?25l" in live, "the cursor is hidden while a line is redrawn"
    assert "tok/s" in live
    assert "step 6/6" in ESCAPE.sub("", live)
    result = rmtrain("train", recipe, f"run.output_dir={recipe.parent}/piped", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["evaluation"]["n"] == 16, "exactly one document"
    lines = [line for line in result.stderr.splitlines() if line.startswith("step ")]
    assert len(lines) == 6
    assert re.fullmatch(r"step 1/6  loss \d\.\d{3}  acc \d\.\d{3}  lr \S+  \S+ tok/s  eta \S+", lines[0])
    assert "\x1b[" not in result.stderr


def test_preprocess_reports_draws_and_exports(recipe: Path) -> None:
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


def test_exported_columns_are_accepted_as_input_and_give_the_same_tokens(recipe: Path) -> None:
    export = recipe.parent / "again"
    assert rmtrain("preprocess", recipe, "--export", export).returncode == 0
    source = f"data.train=[{{path: {export}/train.parquet, format: tokenized, margin: margin}}]"
    tokenizer = f"model.tokenizer={recipe.parent}/piped/model"
    if not (recipe.parent / "piped/model").is_dir():
        assert rmtrain("train", recipe, f"run.output_dir={recipe.parent}/piped").returncode == 0
    first = json.loads(rmtrain("inspect", recipe, "--json").stdout)
    second = json.loads(rmtrain("inspect", recipe, source, tokenizer, "--json").stdout)
    assert [r["ids"] for r in first["responses"]] == [r["ids"] for r in second["responses"]]
