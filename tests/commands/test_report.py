"""Reports of a run, of an evaluation, and of scores alone."""

import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rmtrain.command_line.model_options import EvalOptions
from rmtrain.command_line.options import CommandResult
from rmtrain.commands.evaluate import run_eval
from rmtrain.commands.train import train
from rmtrain.engine.run_log import pixels
from rmtrain.evaluation.metrics import EvaluationResult, summarize
from rmtrain.report.hardest_errors import HARDEST
from rmtrain.report.plots import pictures
from tests.evaluation.test_metrics import random_pairs
from tests.report.test_page import SECTIONS, Reader
from tests.runs import planted_rows, tiny_recipe, write_rows

MARKUP = "<script>1</script>"
PICTURES = {"report_rewards.png", "report_calibration.png"}


def evaluated(**asked: Any) -> CommandResult:
    return run_eval(EvalOptions(**asked), Console(quiet=True))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train on labels that are shuffled in the evaluation data, so that there are errors; one row would be markup."""
    folder = tmp_path_factory.mktemp("run")
    recipe = tiny_recipe(folder, evaluation={"every": 2, "gates": {"accuracy": 0.9}})
    markup = {"prompt": MARKUP, "chosen": MARKUP, "rejected": "no"}
    write_rows(folder / "test.jsonl", [markup, *planted_rows(40, seed=2, shuffled=True)])
    outcome = train(recipe, Console(quiet=True))
    assert "report.html" in outcome.report.plain
    return folder / "run"


def test_train_writes_a_report_with_every_section(run: Path) -> None:
    text = (run / "report.html").read_text(encoding="utf-8")
    reader = Reader(text)
    assert not reader.open
    sections = [named.get("id") for tag, named in reader.seen if tag == "section"]
    assert sections == SECTIONS
    assert len(reader.ids) == len(set(reader.ids))
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert str(run.parent) not in text, "no absolute path"
    assert 'id="drift-title"' in text
    assert re.search("gate accuracy.*0.9000", text)
    assert {file.name for file in run.iterdir()} >= PICTURES
    assert (run / "report.html").stat().st_mode & 0o777 == 0o600


def test_eval_writes_a_report_to_any_path(run: Path, tmp_path: Path) -> None:
    page = tmp_path / "new" / "report.html"
    outcome = evaluated(target=str(run), report=page, output=tmp_path / "scores")
    assert outcome.document["report"] == str(page)
    text = page.read_text(encoding="utf-8")
    assert not Reader(text).open
    assert 'id="training"' in text, "curves of the run"
    assert re.search("gate accuracy.*0.9000", text)
    errors = text[text.index('id="errors"') : text.index('id="samples"')]
    assert 0 < len(re.findall('class="comparison"', errors)) <= HARDEST
    assert {file.name for file in page.parent.iterdir()} == {"report.html", *PICTURES}


def test_scores_alone_give_a_report(run: Path, tmp_path: Path) -> None:
    evaluated(scores=run / "scores.jsonl", report=tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'id="diagnosis"' in text
    assert 'id="errors"' not in text, "scores have no texts"


def test_pictures_of_trackers_are_drawn_when_called() -> None:
    scored = random_pairs(50)
    drawn = {name: pixels(draw()) for name, draw in pictures(EvaluationResult(scored, summarize(scored), 1.0, 1)).items()}
    assert list(drawn) == ["eval/rewards", "eval/calibration"]
    for picture in drawn.values():
        assert picture.ndim == 3
        assert picture.std() > 5, "guard: something is on it"
