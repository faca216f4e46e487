"""A stopped and resumed run equals the undisturbed one: rows, losses, rates, weights, optimizer and generators, bit for bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rmtrain.recipe.load import load_recipe
from tests.faults.runs import (
    STEPS,
    every_row_once_an_epoch,
    full_recipe,
    in_directory,
    left,
    lines,
    steps_saved,
    stop_after,
    stopped,
    weights,
)
from tests.forks import FAST, ON_CPU, ForkServer

STOPS = {"mid-epoch 1": [3], "boundary": [5], "mid-epoch 2": [8], "twice in a row": [3, 8], "while an evaluation is due": [6]}


@pytest.mark.parametrize("steps", STOPS.values(), ids=STOPS.keys())
def test_trap_08_and_25_resume_is_bit_exact(
    steps: list[int], place: Path, recipe: Path, server: ForkServer, undisturbed: dict[str, Any]
) -> None:
    run = place / "-".join(map(str, steps))
    stopped(server, recipe, run, steps)
    ended = server.run(*in_directory(recipe, run))
    assert ended.code == 0, ended.stderr
    assert left(run) == undisturbed
    assert every_row_once_an_epoch(lines(run, "ledger"), load_recipe(recipe))
    rates = [line["train/learning_rate"] for line in lines(run, "metrics") if "train/loss" in line]
    assert rates[0] < max(rates), "guard: the rate warmed up"


def test_lost_generators_would_show(place: Path, recipe: Path, server: ForkServer) -> None:
    """Guard: dropout, and so the random generators, affect the results."""
    run = place / "undisturbed-without-dropout"
    assert server.run(*in_directory(recipe, run), "model.dropout=0.0").code == 0
    assert left(run)["sha256"] != left(place / "undisturbed")["sha256"]


ADAPTERS = {
    "lora": ["lora={rank: 4, dropout: 0.1}"],
    "dora": ["lora={rank: 2, dora: true, dropout: 0.1}"],
    "experts": ["lora={rank: 2}", "model.scratch.architecture=mixtral", "objective.router_balance=0.02"],
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapters_resume_bit_for_bit(kind: str, place: Path, recipe: Path, server: ForkServer) -> None:
    whole, parts = (place / f"{name}-{kind}" for name in ("whole", "parts"))
    assert server.run(*in_directory(recipe, whole), *ADAPTERS[kind]).code == 0
    for faults, code in ((stop_after(3), 143), (stop_after(8, at=3), 143), (FAST, 0)):
        ended = server.run(*in_directory(recipe, parts), *ADAPTERS[kind], faults=faults)
        assert ended.code == code, ended.stderr
    assert left(parts) == left(whole)
    assert all("lora_" in name or "score" in name for name in weights(parts)), "guard: only trained weights are saved"
    is_mixture = kind == "experts"
    assert any("experts" in name for name in weights(parts)) == is_mixture
    assert any("train/router_balance" in line for line in lines(parts, "metrics")) == is_mixture


def test_float16_resumes_bit_for_bit(place: Path, recipe: Path, server: ForkServer) -> None:
    """The loss scale, and the steps until it grows, are part of the state."""
    whole, parts = (place / f"{name}-float16" for name in ("whole", "parts"))
    precision, states = "training.precision=float16", []
    assert server.run(*in_directory(recipe, whole), precision).code == 0
    for faults, code in ((stop_after(3), 143), (FAST, 0)):
        ended = server.run(*in_directory(recipe, parts), precision, faults=faults)
        assert ended.code == code, ended.stderr
    assert left(parts) == left(whole)
    assert json.loads((parts / "environment.json").read_text())["computing"] == "float16"
    for run in (whole, parts):
        state = json.loads((run / f"checkpoints/step-{STEPS:08d}/state.json").read_text())
        states.append(state["loss_scale"])
    assert states[0] == states[1]
    assert states[0]["scale"] < 2**16, "guard: a step has overflowed, and so was computed again, with other dropout"


def test_8_bit_optimizers_resume_bit_for_bit(place: Path, server: ForkServer) -> None:
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install 'rmtrain[8bit]'")
    sizes = {**load_recipe(full_recipe(place / "8bit")).model.model_dump(), "dropout": 0.1}
    sizes["scratch"] |= {"hidden_size": 64}
    recipe = full_recipe(place / "8bit", model=sizes, optimizer={"lr": 2e-3, "warmup": 0.2, "name": "adamw_8bit"})
    whole, parts = (place / "8bit" / name for name in ("whole", "parts"))
    assert server.run(*in_directory(recipe, whole)).code == 0
    for faults, code in ((stop_after(3), 143), (FAST, 0)):
        ended = server.run(*in_directory(recipe, parts), faults=faults)
        assert ended.code == code, ended.stderr
    assert left(parts) == left(whole)


def test_a_chosen_checkpoint_is_resumed_from(place: Path, recipe: Path, server: ForkServer, undisturbed: dict[str, Any]) -> None:
    """Later records are cut off, and later checkpoints renamed."""
    run = place / "chosen"
    stopped(server, recipe, run, [9])
    older, newer = steps_saved(run)[0], steps_saved(run)[-1]
    assert older < newer
    chosen = run / f"checkpoints/step-{older:08d}"
    ended = server.run(*in_directory(recipe, run), "--resume", chosen, faults=stop_after(older + 1, at=older))
    assert ended.code == 143, ended.stderr
    assert [line["step"] for line in lines(run, "ledger")] == list(range(1, older + 2))
    assert (run / f"checkpoints/aside-step-{newer:08d}").is_dir()
    ended = server.run(*in_directory(recipe, run))
    assert f"from step {older + 1} (" in ended.stderr
    assert left(run) == undisturbed


@pytest.mark.long
@pytest.mark.parametrize("order", [(1, 2), (2, 1)], ids=["1 to 2", "2 to 1"])
def test_trap_08_another_number_of_processes_resumes(order: tuple[int, int], place: Path, server: ForkServer) -> None:
    """The order of the rows stays, and losses and weights agree within rounding."""
    folder = place / "processes"
    model = load_recipe(full_recipe(folder)).model.model_dump() | {"dropout": 0.0}
    recipe = full_recipe(folder, model=model, optimizer={"lr": 1e-3, "warmup": 0.2, "eps": 1e-6})
    whole, run = folder / "whole", folder / "-".join(map(str, order))
    if not whole.exists():
        assert server.run(*in_directory(recipe, whole)).code == 0
    for processes, faults in zip(order, (stop_after(8), FAST), strict=True):
        if processes == 1:
            ended: Any = server.run(*in_directory(recipe, run), faults=faults)
        else:
            on_one = [(point, when, f"{what}@1" if what == "SIGTERM" else what) for point, when, what in faults]
            ended = server.run(*in_directory(recipe, run), faults=on_one, processes=processes, **ON_CPU)
    assert f"{order[0]} processes, now running {order[1]}" in ended.stderr
    assert lines(run, "ledger") == lines(whole, "ledger")
    for one, other in zip(lines(run, "metrics"), lines(whole, "metrics"), strict=True):
        assert one["step"] == other["step"]
        for key in ("train/loss", "train/learning_rate", "train/grad_norm", "eval/loss"):
            assert one.get(key, 0.0) == pytest.approx(other.get(key, 0.0), rel=2e-5, abs=2e-6), (key, one["step"])
    for name, tensor in weights(run).items():
        assert torch.allclose(tensor, weights(whole)[name], atol=1e-4), name


def test_changed_recipes_and_data_are_refused(place: Path, server: ForkServer) -> None:
    """A changed learning rate and changed rows are refused with 4; a changed log interval is not."""
    folder = place / "changed"
    recipe, run = full_recipe(folder), folder / "run"
    stopped(server, recipe, run, [3])
    ended = server.run(*in_directory(recipe, run), "optimizer.lr=1e-3")
    assert ended.code == 4, ended.stderr
    assert "optimizer.lr was 0.002, is 0.001" in ended.stderr
    ended = server.run(*in_directory(recipe, run), "tracking.log_every=5", faults=stop_after(5, at=3))
    assert ended.code == 143, ended.stderr
    assert "from step 3 (" in ended.stderr
    data = folder / "train.jsonl"
    data.write_text("".join(reversed(data.read_text().splitlines(keepends=True))))
    ended = server.run(*in_directory(recipe, run), "tracking.log_every=5")
    assert ended.code == 4, ended.stderr
    assert "data was" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_fresh_replaces_a_finished_run(place: Path, recipe: Path, server: ForkServer, undisturbed: dict[str, Any]) -> None:
    run = place / "finished"
    assert server.run(*in_directory(recipe, run)).code == 0
    ended = server.run(*in_directory(recipe, run))
    assert ended.code == 4
    assert f"error: run.output_dir: the run in {run} " in ended.stderr
    ended = server.run(*in_directory(recipe, run), "--fresh")
    assert ended.code == 0, ended.stderr
    assert left(run) == left(place / "finished.old-1") == undisturbed


def test_load_best_at_end_exports_the_best_weights(place: Path, server: ForkServer) -> None:
    settings = {"every": 2, "minutes": None, "keep": 1, "best": "loss", "load_best_at_end": True}
    recipe = full_recipe(place / "best", checkpoints=settings, optimizer={"lr": 0.3})
    run = place / "best/run"
    assert server.run(*in_directory(recipe, run), faults=stop_after(11)).code == 143
    ended = server.run(*in_directory(recipe, run))
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
