"""`rmtrain runs`: what differs between runs and what came out, whatever state their directories are in."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from rmtrain.command_line.options import RunsOptions
from rmtrain.commands.runs import list_runs
from rmtrain.commands.runs_compare import compare_runs
from rmtrain.engine.run_dir import RunDirectory
from rmtrain.engine.run_records import read_run
from rmtrain.errors import NumericError, RecipeError
from rmtrain.evaluation.compare import compare
from rmtrain.evaluation.metrics import summarize
from rmtrain.evaluation.scores_file import ScoredComparison, write_scores
from tests.chromium import Browser
from tests.evaluation.test_metrics import pair
from tests.forks import rmtrain
from tests.report.test_page import MEASURE, Reader
from tests.runs import ROOT, tiny_recipe

STEPS = 6
FIELDS = {
    *("path", "name", "state", "step", "steps", "keys", "accuracy", "accuracy_low", "accuracy_high", "spearman", "auc", "loss"),
    *("seconds", "evaluation", "training", "gates_missed", "problems"),
}


def scored(right: int, of: int = 60) -> list[ScoredComparison]:
    """Rows of which the first ones are right."""
    return [pair(1.0 if number < right else -1.0, 0.0, name=str(number)) for number in range(of)]


def planted(
    folder: Path,
    place: str,
    right: int | None = 40,
    *,
    state: str = "finished",
    seed: int = 1,
    of: int = 60,
    name: str = "tiny",
    **changes: Any,
) -> Path:
    """The directory of a run as training leaves it, in this state; of the rows of its evaluation so many are right."""
    run = {"name": name, "output_dir": str(folder / place), "seed": seed}
    directory = RunDirectory.open(tiny_recipe(folder.parent, run=run, **changes), {"steps": STEPS})
    done = STEPS if state == "finished" else 3
    lines: list[dict[str, float]] = []
    for step in range(1, done + 1):
        lines.append({"step": step, "train/loss": 1 / step + seed / 100, "train/runtime": 2.0 * step})
        if step % 3 == 0 and right is not None:
            summary = summarize(scored(right - 6 + step, of))
            lines.append({"step": step, **{f"eval/{key}": value for key, value in summary.items() if isinstance(value, float)}})
    (directory.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if state == "finished":
        if right is not None:
            write_scores(directory.path / "scores.jsonl", scored(right, of), {"rows_sha256": str(of)})
        directory.finish()
    elif state == "failed":
        directory.fail(NumericError("step 3: gradient not finite"))
    directory.close()
    return folder / place


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the runs of a test are."""
    path = tmp_path / "runs"
    path.mkdir()
    return path


def listed(*places: Path, **options: Any) -> dict[str, Any]:
    return list_runs(RunsOptions(directories=list(places), **options)).document


def printed(report: Any, width: int | None = None) -> str:
    """What is printed to a file, or in a terminal of this width."""
    console = Console(file=io.StringIO(), width=width or 1000, force_terminal=width is not None, color_system=None)
    console.print(report)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_table_has_only_keys_that_differ(folder: Path) -> None:
    """Columns are the keys in which recipes differ, under short names; rows are in natural order."""
    for number, lr in ((9, 2e-3), (10, 3e-6)):
        planted(folder, f"r{number}", 30 + number, optimizer={"lr": lr}, lora={"rank": number})
    outcome = list_runs(RunsOptions(directories=[folder]))
    assert outcome.document["differing"] == ["lora.rank", "optimizer.lr"]
    text = printed(outcome.report)
    header, *rows = [line.split() for line in text.splitlines()[2:] if line.strip()]
    assert header[:4] == ["run", "state", "rank", "lr"]
    assert [row[:4] for row in rows] == [["r9", "finished", "9", "2e-3"], ["r10", "finished", "10", "3e-6"]]
    assert "6 of 6" in text
    assert text.startswith("2 runs: 2 finished, in ")
    (first, _) = outcome.document["runs"]
    assert (first["step"], first["steps"], first["seconds"]) == (6, 6, 12.0)
    assert first["accuracy"] == pytest.approx(39 / 60)
    assert first["accuracy_low"] < first["accuracy"] < first["accuracy_high"]


def test_section_that_some_lack_is_one_key(folder: Path) -> None:
    """LoRA or none is one column, as is the kind of an objective: not one for each key within."""
    planted(folder, "full")
    planted(folder, "lora", lora={"rank": 4})
    document = listed(folder)
    assert document["differing"] == ["lora"]
    planted(folder, "ranked", objective={"type": "plackett_luce"})
    assert listed(folder)["differing"] == ["lora", "objective.type"]
    assert document["runs"][0]["keys"] == {"lora": None}, "guard: the first one has none"


def test_means_over_seeds_equal_numpy(folder: Path) -> None:
    rights = {2e-3: [30, 35, 43], 1e-3: [28, 50, 33]}
    for lr, counts in rights.items():
        for seed, right in enumerate(counts, start=1):
            planted(folder, f"lr{lr}-s{seed}", right, seed=seed, optimizer={"lr": lr}, name=f"n{seed}")
    planted(folder, "lr0.002-s4", 1, seed=4, state="interrupted")
    document = listed(folder)
    groups = {group["keys"]["optimizer.lr"]: group for group in document["seeds"]}
    assert list(groups) == [1e-3, 2e-3]
    for lr, counts in rights.items():
        shares = np.array(counts) / 60
        assert groups[lr]["seeds"] == [1, 2, 3], "only finished runs count"
        assert groups[lr]["accuracy"] == {
            "mean": pytest.approx(shares.mean()),
            "std": pytest.approx(shares.std(ddof=1)),
            "n": 3,
        }
    text = printed(list_runs(RunsOptions(directories=[folder])).report)
    expected = np.array(rights[2e-3]) / 60
    assert f"{expected.mean():.4f} ± {expected.std(ddof=1):.4f}" in text
    planted(folder, "alone", lora={"rank": 2})
    alone = next(group for group in listed(folder)["seeds"] if group["seeds"] == [1])
    assert alone["accuracy"]["std"] is None, "guard: one run has no deviation"


def test_each_state_is_told(folder: Path) -> None:
    states = ("finished", "interrupted", "failed")
    for state in states:
        planted(folder, state, state=state)
    held = RunDirectory.open(tiny_recipe(folder.parent, run={"output_dir": str(folder / "running"), "name": "x"}), {"steps": 9})
    runs = {Path(run["path"]).name: run for run in listed(folder)["runs"]}
    assert {name: run["state"] for name, run in runs.items()} == {"running": "running", **dict(zip(states, states, strict=True))}
    assert runs["failed"]["problems"] == ["step 3: gradient not finite"]
    assert (runs["interrupted"]["step"], runs["interrupted"]["steps"]) == (3, 6)
    assert (runs["running"]["step"], runs["running"]["steps"]) == (0, 9)
    held.close()
    assert read_run(folder / "running").state == "interrupted", "guard: the lock made the difference"


def test_missed_gates_are_noted(folder: Path) -> None:
    planted(folder, "good", 50, evaluation={"gates": {"accuracy": 0.8}})
    planted(folder, "bad", 40, evaluation={"gates": {"accuracy": 0.8}})
    assert {Path(run["path"]).name: run["gates_missed"] for run in listed(folder)["runs"]} == {"bad": ["accuracy"], "good": []}


def damage_no_recipe(run: Path) -> str:
    (run / "recipe.yaml").unlink()
    return "recipe.yaml is missing"


def damage_old_recipe(run: Path) -> str:
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(text + "a_section_of_long_ago: {x: 1}\n")
    return "recipe.yaml is of another version"


def damage_recipe_is_no_yaml(run: Path) -> str:
    (run / "recipe.yaml").write_text("{ a: [")
    return "recipe.yaml cannot be read"


def damage_half_a_line(run: Path) -> str:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "eval/accuracy": 0.')
    return "last line of metrics.jsonl is incomplete"


def damage_other_lines(run: Path) -> str:
    lines = (
        "[" * 100_000,
        "7",
        '{"step": "x"}',
        '{"step": 1e999}',
        '{"eval/loss": NaN, "step": -1}',
        "\x00\x1b]0;x\x07",
        "9" * 5000,
    )
    with (run / "metrics.jsonl").open("a") as file:
        file.write("".join(line + "\n" for line in lines))
    return "lines that are not JSON objects"


def damage_pipe(run: Path) -> str:
    (run / "environment.json").unlink()
    os.mkfifo(run / "environment.json")
    return "environment.json cannot be read: not a regular file"


def damage_marker(run: Path) -> str:
    (run / "run.json").write_text("{")
    return "run.json cannot be read"


DAMAGES = [value for name, value in sorted(globals().items()) if name.startswith("damage_")]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_run_is_a_row(damage: Any, folder: Path) -> None:
    """What cannot be read is said in the row of the run; the others are shown as ever, and nothing is changed."""
    planted(folder, "a", 50)
    reason = damage(planted(folder, "b", 30))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    outcome = list_runs(RunsOptions(directories=[folder]))
    whole, damaged = outcome.document["runs"]
    assert any(reason in problem for problem in damaged["problems"]), damaged["problems"]
    assert whole["problems"] == []
    assert whole["accuracy"] == pytest.approx(50 / 60)
    assert damaged["state"] == ("damaged" if "run.json" in reason else "finished")
    if "metrics" in reason or "environment" in reason:
        assert damaged["accuracy"] == pytest.approx(0.5)
    json.dumps(outcome.document, allow_nan=False)
    text = printed(outcome.report)
    assert reason in text
    assert "\x1b]" not in text
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_places_without_runs_are_errors(folder: Path) -> None:
    (folder / "file").write_text("")
    with pytest.raises(RecipeError) as raised:
        listed(folder, folder / "file", folder / "nothing")
    assert len(raised.value.problems) == 3
    assert [part in problem for part, problem in zip(("no run", "file", "exist"), raised.value.problems, strict=True)] == [
        True
    ] * 3
    run = planted(folder, "deep/er/run")
    assert [one["path"] for one in listed(folder, run)["runs"]] == [str(run)], "once, and found below"


def test_csv_and_json_agree(folder: Path) -> None:
    planted(folder, "a", 30, optimizer={"lr": 1e-3})
    planted(folder, "b", None, optimizer={"lr": 2e-3}, state="interrupted")
    ended = rmtrain("runs", folder, "--json")
    assert ended.returncode == 0, ended.stderr
    document = json.loads(ended.stdout)
    assert set(document) == {"runs", "differing", "seeds", "best", "compared", "report"}
    assert all(set(run) == FIELDS for run in document["runs"])
    assert "a " in ended.stderr, "the tables go to stderr"
    ended = rmtrain("runs", folder, "--csv")
    assert ended.stderr == ""
    rows = list(csv.DictReader(io.StringIO(ended.stdout)))
    assert [(row["path"], float(row["optimizer.lr"]), row["state"]) for row in rows] == [
        (run["path"], run["keys"]["optimizer.lr"], run["state"]) for run in document["runs"]
    ]
    assert float(rows[0]["accuracy"]) == document["runs"][0]["accuracy"]
    assert rows[1]["accuracy"] == ""
    assert rmtrain("runs", folder, "--csv", "--json").returncode == 2


def test_sorting_puts_the_best_first(folder: Path) -> None:
    for name, right, lr in (("a", 30, 1e-3), ("b", 50, 3e-3), ("c", None, 2e-3)):
        planted(folder, name, right, optimizer={"lr": lr})

    def order(sort: str) -> str:
        return "".join(Path(run["path"]).name for run in listed(folder, sort=sort)["runs"])

    assert [order(key) for key in ("accuracy", "loss", "lr", "optimizer.lr", "path")] == ["bac", "bac", "acb", "acb", "abc"]
    with pytest.raises(RecipeError, match=r"--sort nothing: .*accuracy.*lr"):
        order("nothing")


def test_compare_is_that_of_eval(folder: Path) -> None:
    """The best run against each other one has the numbers of `rmtrain eval --compare`; what has other rows is said."""
    best, other = planted(folder, "best", 55), planted(folder, "other", 30, seed=2)
    planted(folder, "rows", 20, of=50)
    planted(folder, "unfinished", state="interrupted")
    outcome = compare_runs(RunsOptions(directories=[folder], compare=True))
    compared = outcome.document["compared"]
    assert compared["best"] == str(best)
    results = {Path(one["path"]).name: one for one in compared["others"]}
    expected = compare(other / "scores.jsonl", best / "scores.jsonl")
    assert {key: results["other"][key] for key in ("difference", "low", "high", "p", "units", "better", "worse")} == {
        key: expected[key] for key in ("difference", "low", "high", "p", "units", "better", "worse")
    }
    assert results["other"]["low"] > 0, "guard: it is better"
    assert "rows_sha256" in results["rows"]["problem"]
    assert results["unfinished"]["problem"] == "not compared: the run is interrupted"
    text = printed(outcome.report)
    assert "best: best, accuracy 0.9167, 95 % in [" in text
    assert re.search(r"other .*\+0\.4167 .*better", text)
    with pytest.raises(RecipeError, match="--compare"):
        compare_runs(RunsOptions(directories=[folder / "unfinished"], compare=True))


EVIL = "[red]x\x1b]0;t\x07<script>alert(1)<b>$a_b$\u202e"


def test_strange_names_are_only_text(folder: Path) -> None:
    """Names of directories and values have no power over a terminal, a page or a spreadsheet."""
    planted(folder, EVIL, 40)
    run = planted(folder, "=1+1", 30)
    recipe = (run / "recipe.yaml").read_text()
    changed = recipe.replace("chat_template: simple_chat", f"chat_template: {json.dumps('=cmd()' + EVIL)}")
    assert changed != recipe, "guard"
    (run / "recipe.yaml").write_text(changed)
    page = folder.parent / "page.html"
    for options in ((), ("--json",), ("--csv",), ("--report", page)):
        ended = rmtrain("runs", folder, *options)
        assert ended.returncode == 0, ended.stderr
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", ended.stdout + ended.stderr)
        assert "[red]" in ended.stdout, "guard: it is shown"
    html = page.read_text()
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert not Reader(html).open
    cells = [cell for row in csv.reader(io.StringIO(rmtrain("runs", folder, "--csv").stdout)) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "@"))]
    assert any(cell.startswith("'=cmd()") for cell in cells)


def sweep_of(folder: Path, settings: int, seeds: int) -> None:
    """Runs of several settings and seeds, one of them interrupted."""
    for number in range(settings):
        for seed in range(1, seeds + 1):
            state = "interrupted" if number == settings - 1 and seed == seeds else "finished"
            right = 30 + 3 * number + seed
            planted(
                folder,
                f"lr{number + 1}e-5-seed{seed}",
                right,
                seed=seed,
                optimizer={"lr": float(f"{number + 1}e-5")},
                state=state,
            )


def pages(folder: Path) -> Iterator[Path]:
    """A page of a sweep, of many runs, and of one that has nothing yet."""
    for number, (settings, seeds) in enumerate(((3, 3), (12, 1))):
        sweep_of(folder / str(number), settings, seeds)
        page = folder / f"{number}.html"
        compare_runs(RunsOptions(directories=[folder / str(number)], report=page, compare=True))
        yield page
    planted(folder / "2", "new", None, state="interrupted")
    compare_runs(RunsOptions(directories=[folder / "2"], report=folder / "2.html"))
    yield folder / "2.html"


def test_page_has_curves_and_tables(folder: Path) -> None:
    first, many, new = pages(folder)
    for page in (first, many, new):
        text = page.read_text()
        reader = Reader(text)
        assert not reader.open
        assert len(reader.ids) == len(set(reader.ids))
        assert [address for address in reader.addresses if not address.startswith("#")] == ["data:,"]
        assert str(folder) not in text, "no absolute path"
    words = " ".join("".join(Reader(first.read_text()).words).split())
    for part in ("Accuracy by run", "Training loss", "Evaluation loss", "Means over seeds", "may be equal", "lr 3e-5", "±"):
        assert part in words, part
    assert "Grey: the 6 others." in many.read_text()
    assert "Evaluation" not in new.read_text(), "guard: only what it has"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_browser_shows_runs_without_complaint(browser: Browser, folder: Path, width: int, scheme: str) -> None:
    measure = {key: MEASURE[key] for key in ("wide", "clipped", "touching", "smallest")}
    for page in pages(folder):
        seen = browser.visit(page, width, scheme, measure=measure)
        if shots := os.environ.get("SCREENSHOTS"):
            Path(shots, f"{page.stem}-{width}-{scheme}.png").write_bytes(seen.screenshot)
        assert seen.complaints == []
        assert len(seen.requests) == 1
        assert seen.values["wide"] <= width
        assert seen.values["clipped"] == []
        assert seen.values["touching"] == []
        assert seen.values["smallest"] >= 11


def test_listing_loads_no_heavy_library() -> None:
    heavy = ("torch", "transformers", "datasets", "accelerate", "peft", "matplotlib", "pyarrow")
    modules = "rmtrain.cli, rmtrain.commands.runs, rmtrain.commands.sweep, rmtrain.recipe.combinations"
    code = f"import sys, {modules}; print([name for name in {heavy} if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ended.stdout.strip() == "[]"


@pytest.mark.parametrize("width", [40, 80, 200])
def test_terminal_of_any_width_keeps_numbers(folder: Path, width: int) -> None:
    sweep_of(folder, 2, 2)
    text = printed(list_runs(RunsOptions(directories=[folder])).report, width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert len(re.findall(r"0\.\d{4}", text)) >= 8
