"""The beginning and the end of a run."""

from rmtrain.report.tables import next_steps, run_header
from tests.report.render import render

FACTS = {
    "name": "rm_sentiment_1b",
    "directory": "models/rm",
    "device": "1 × NVIDIA H100",
    "model": "EleutherAI/pythia-1b-deduped",
    "parameters": 1_010_000_000,
    "trainable": 12_300_000,
    "comparisons": 61_135,
    "tokens": 32_123_456,
    "steps": 1911,
    "batch_size": 32,
}


def test_the_header_says_what_is_trained_on_what() -> None:
    assert render(run_header(**FACTS, notes={"precision": "bfloat16 autocast"})) == (
        "rmtrain rm_sentiment_1b\n"
        "model      EleutherAI/pythia-1b-deduped, 1.01B parameters, 12.3M train (1.2 %)\n"
        "data       61,135 comparisons, 32.1M tokens an epoch\n"
        "steps      1,911 of 32 comparisons\n"
        "device     1 × NVIDIA H100\n"
        "precision  bfloat16 autocast\n"
        "writes to  models/rm\n"
    )
    assert "1.01B parameters, all train" in render(run_header(**{**FACTS, "trainable": FACTS["parameters"]}))


def test_a_command_stays_one_line_to_copy() -> None:
    command = "rmtrain eval " + "runs/a_long_directory/" * 8 + "model"
    text = render(next_steps([("accuracy on other comparisons", command)]), width=40, soft_wrap=True)
    assert text == f"next\n  # accuracy on other comparisons\n  {command}\n"
