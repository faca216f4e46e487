"""Stopped and resumed, a run is the run it would have been: rows, losses, rates, weights, optimizer and generators, bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rmtrain.recipe.load import load_recipe
from tests.faults.driver import Fault
from tests.faults.nursery import FAST, Nursery
from tests.faults.runs import every_row_once_an_epoch, full_recipe, in_directory, launch, left, lines, steps_saved, weights

STOPS = {"mid-epoch 1": [3], "boundary": [5], "mid-epoch 2": [8], "twice in a row": [3, 8], "while an evaluation is due": [6]}


def stop_after(step: int, at: int = 0) -> list[Fault]:
    """SIGTERM during a step, so that the run ends after it; `at`: the step that the process begins with."""
    return [("step", step - at, "SIGTERM"), FAST]


def stopped(nursery: Nursery, recipe: Path, run: Path, steps: list[int]) -> None:
    """Run to each of these steps in a process of its own."""
    at = 0
    for step in steps:
        ended = nursery.run(*in_directory(recipe, run), faults=stop_after(step, at))
        assert ended.code == 143, ended.stderr
        assert f"stopped by SIGTERM after step {step}, which is saved in {run}" in ended.stderr
        assert f"going on after step {at}, from" in ended.stderr or not at
        assert steps_saved(run)[-1] == step
        at = step


@pytest.mark.parametrize("steps", STOPS.values(), ids=STOPS.keys())
def test_trap_08_and_25_a_resumed_run_is_the_undisturbed_one(
    steps: list[int], place: Path, recipe: Path, nursery: Nursery, undisturbed: dict[str, Any]
) -> None:
    run = place / "-".join(map(str, steps))
    stopped(nursery, recipe, run, steps)
    ended = nursery.run(*in_directory(recipe, run))
    assert ended.code == 0, ended.stderr
    assert left(run) == undisturbed
    assert every_row_once_an_epoch(lines(run, "ledger"), load_recipe(recipe))
    rates = [line["train/learning_rate"] for line in lines(run, "metrics") if "train/loss" in line]
    assert rates[0] < max(rates), "guard: the rate warmed up"


def test_dropout_makes_a_difference_that_lost_generators_would_show(place: Path, recipe: Path, nursery: Nursery) -> None:
    run = place / "undisturbed-without-dropout"
    assert nursery.run(*in_directory(recipe, run), "model.dropout=0.0").code == 0
    assert left(run)["sha256"] != left(place / "undisturbed")["sha256"]


@pytest.mark.parametrize("lora", ["{rank: 4, dropout: 0.1}", "{rank: 2, dora: true, dropout: 0.1}"], ids=["lora", "dora"])
def test_adapters_go_on_bit_for_bit(lora: str, place: Path, recipe: Path, nursery: Nursery) -> None:
    whole, parts = (place / f"{name}-{len(lora)}" for name in ("whole", "parts"))
    assert nursery.run(*in_directory(recipe, whole), f"lora={lora}").code == 0
    for faults, code in ((stop_after(3), 143), (stop_after(8, at=3), 143), ([FAST], 0)):
        ended = nursery.run(*in_directory(recipe, parts), f"lora={lora}", faults=faults)
        assert ended.code == code, ended.stderr
    assert left(parts) == left(whole)
    assert all("lora_" in name or "score" in name for name in weights(parts)), "guard: only what is trained is saved"


def test_8_bit_optimizers_go_on_bit_for_bit(place: Path, nursery: Nursery) -> None:
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install 'rmtrain[8bit]'")
    sizes = {**load_recipe(full_recipe(place / "8bit")).model.model_dump(), "dropout": 0.1}
    sizes["scratch"] |= {"hidden_size": 64}
    recipe = full_recipe(place / "8bit", model=sizes, optimizer={"lr": 2e-3, "warmup": 0.2, "name": "adamw_8bit"})
    whole, parts = (place / "8bit" / name for name in ("whole", "parts"))
    assert nursery.run(*in_directory(recipe, whole)).code == 0
    for faults, code in ((stop_after(3), 143), ([FAST], 0)):
        ended = nursery.run(*in_directory(recipe, parts), faults=faults)
        assert ended.code == code, ended.stderr
    assert left(parts) == left(whole)


def test_a_chosen_checkpoint_is_gone_on_from_and_what_came_after_put_aside(
    place: Path, recipe: Path, nursery: Nursery, undisturbed: dict[str, Any]
) -> None:
    run = place / "chosen"
    stopped(nursery, recipe, run, [9])
    older, newer = steps_saved(run)[0], steps_saved(run)[-1]
    assert older < newer
    chosen = run / f"checkpoints/step-{older:08d}"
    ended = nursery.run(*in_directory(recipe, run), "--resume", chosen, faults=stop_after(older + 1, at=older))
    assert ended.code == 143, ended.stderr
    assert [line["step"] for line in lines(run, "ledger")] == list(range(1, older + 2))
    assert (run / f"checkpoints/aside-step-{newer:08d}").is_dir()
    ended = nursery.run(*in_directory(recipe, run))
    assert f"going on after step {older + 1}" in ended.stderr
    assert left(run) == undisturbed


@pytest.mark.long
@pytest.mark.parametrize("order", [(1, 2), (2, 1)], ids=["1 to 2", "2 to 1"])
def test_trap_08_another_number_of_processes_keeps_the_order_and_the_losses(
    order: tuple[int, int], place: Path, nursery: Nursery
) -> None:
    folder = place / "processes"
    model = load_recipe(full_recipe(folder)).model.model_dump() | {"dropout": 0.0}
    recipe = full_recipe(folder, model=model, optimizer={"lr": 1e-3, "warmup": 0.2, "eps": 1e-6})
    whole, run = folder / "whole", folder / "-".join(map(str, order))
    if not whole.exists():
        assert nursery.run(*in_directory(recipe, whole)).code == 0
    for processes, faults in zip(order, (stop_after(8), [FAST]), strict=True):
        if processes == 1:
            ended: Any = nursery.run(*in_directory(recipe, run), faults=faults)
        else:
            on_one = [(point, when, f"{what}@1" if what == "SIGTERM" else what) for point, when, what in faults]
            ended = launch(recipe, run, processes, on_one)
    assert f"the checkpoint is of {order[0]} processes, there are {order[1]} now" in ended.stderr
    assert lines(run, "ledger") == lines(whole, "ledger")
    for one, other in zip(lines(run, "metrics"), lines(whole, "metrics"), strict=True):
        assert one["step"] == other["step"]
        for key in ("train/loss", "train/learning_rate", "train/grad_norm", "eval/loss"):
            assert one.get(key, 0.0) == pytest.approx(other.get(key, 0.0), rel=2e-5, abs=2e-6), (key, one["step"])
    for name, tensor in weights(run).items():
        assert torch.allclose(tensor, weights(whole)[name], atol=1e-4), name


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ("optimizer.lr=1e-3", 4, "optimizer.lr was 0.002, is 0.001"),
        ("tracking.log_every=5", 143, "going on after step 3"),
    ],
)
def test_changes_of_the_recipe_are_refused_or_harmless(
    change: str, code: int, message: str, place: Path, recipe: Path, nursery: Nursery
) -> None:
    run = place / f"changed-{code}"
    stopped(nursery, recipe, run, [3])
    ended = nursery.run(*in_directory(recipe, run), change, faults=stop_after(5, at=3))
    assert ended.code == code, ended.stderr
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


def test_other_data_under_the_same_name_is_refused(place: Path, nursery: Nursery) -> None:
    folder = place / "other-data"
    recipe, run = full_recipe(folder), folder / "run"
    stopped(nursery, recipe, run, [3])
    data = folder / "train.jsonl"
    data.write_text("".join(reversed(data.read_text().splitlines(keepends=True))))
    ended = nursery.run(*in_directory(recipe, run))
    assert ended.code == 4
    assert "it is of other training data or another order: data was" in ended.stderr


def test_a_finished_run_is_refused_and_fresh_moves_it_aside(
    place: Path, recipe: Path, nursery: Nursery, undisturbed: dict[str, Any]
) -> None:
    run = place / "finished"
    assert nursery.run(*in_directory(recipe, run)).code == 0
    ended = nursery.run(*in_directory(recipe, run))
    assert ended.code == 4
    assert f"the run in {run} is finished" in ended.stderr
    ended = nursery.run(*in_directory(recipe, run), "--fresh")
    assert ended.code == 0, ended.stderr
    assert left(run) == left(place / "finished.old-1") == undisturbed


def test_the_best_weights_are_exported_where_the_recipe_says_so(place: Path, nursery: Nursery) -> None:
    settings = {"every": 2, "minutes": None, "keep": 1, "best": "loss", "load_best_at_end": True}
    recipe = full_recipe(place / "best", checkpoints=settings, optimizer={"lr": 0.3})
    run = place / "best/run"
    assert nursery.run(*in_directory(recipe, run), faults=stop_after(11)).code == 143
    ended = nursery.run(*in_directory(recipe, run))
    assert ended.code == 0, ended.stderr
    losses = {line["step"]: line["eval/loss"] for line in lines(run, "metrics")[:-1] if "eval/loss" in line}
    best = min(losses, key=lambda step: losses[step])
    assert best < 15, "guard: the last weights were not the best"
    assert steps_saved(run) == [best, 15] or steps_saved(run) == [best, 11, 15]
    assert lines(run, "metrics")[-1]["eval/loss"] == pytest.approx(losses[best])
    exported, trained = load_file(run / "model/model.safetensors"), weights(run, best)
    assert torch.equal(
        exported["score.weight"], next(tensor for name, tensor in trained.items() if name.endswith("score.weight"))
    )
