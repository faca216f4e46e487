"""Every strategy gives the gradients and the losses of one process, for each kind of model, layout and cut of a step."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from rmtrain.batching.plan import Plan
from tests.engine.ranks import CASES, MIXTURES, SHARDING, STEPS, Case, cases_of, comparisons, plan_of, steps_of
from tests.forks import fork_server

STRATEGIES = {
    "ddp": "DDP",
    "fsdp2": "FSDP2",
    "zero1": "DeepSpeed ZeRO-1",
    "zero2": "DeepSpeed ZeRO-2",
    "zero3": "DeepSpeed ZeRO-3",
    "fsdp2_offload": "FSDP2 with CPU offload",
    "zero2_offload": "DeepSpeed ZeRO-2 with CPU offload",
    "zero3_offload_optimizer": "DeepSpeed ZeRO-3 with CPU offload of the optimizer",
    "zero3_offload": "DeepSpeed ZeRO-3 with CPU offload",
}
LONG = ("zero1", *(name for name in STRATEGIES if "offload" in name))
OFFLOAD_TOLERANCE = {"float32": 2e-6, "bfloat16": 0.02}
"""Largest relative difference of DeepSpeed's offload, which sums the gradient norm, and so the factor of clipping, in another order."""
TOLERANCE = {"float64": 1e-10, "float32": 2e-5, "bfloat16": 0.1}
"""Largest relative difference: in float32 from the order of sums, in bfloat16 from its 8 bits, to which FSDP2 also rounds activations."""


def run(name: str, processes: int, folder: Path) -> Path:
    """Run the ranks of a strategy and return the folder of their results."""
    ended = fork_server().run(name, folder / name, program="tests.engine.ranks", processes=processes, **SHARDING.get(name, {}))
    assert ended.code == 0, ended.stderr[-3000:]
    return folder / name


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the results of a strategy on two ranks, or of one process; each runs once."""
    folder = tmp_path_factory.mktemp("ran")
    return lambda name: folder / name if (folder / name).exists() else run(name, 1 if name == "alone" else 2, folder)


def largest_difference(one: Path, other: Path, case: Case, steps: int) -> float:
    """Compare the gradients of the first step, relative to the largest of each parameter, and the losses and norms of all steps."""
    gradients = [load_file(folder / f"{case.name}.safetensors") for folder in (one, other)]
    curves = [json.loads((folder / f"{case.name}.json").read_text()) for folder in (one, other)]
    assert gradients[0].keys() == gradients[1].keys()
    differences = [0.0]
    for name, expected in gradients[0].items():
        scale = float(expected.abs().max())
        difference = float((gradients[1][name].double() - expected.double()).abs().max())
        assert scale > 0 or difference == 0, name
        differences.append(difference / scale if scale else 0.0)
    for key in ("loss", "grad_norm"):
        assert len(curves[1][key]) == steps
        differences += [abs(b - a) / abs(a) for a, b in zip(curves[0][key], curves[1][key], strict=False)]
    return max(differences)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.long] if name in LONG else []) for name in STRATEGIES])
def test_trap_17_and_48_strategies_equal_one_process(name: str, ran: Callable[[str], Path]) -> None:
    alone, folder, found = ran("alone"), ran(name), {}
    for case in cases_of(name):
        found[case.name] = largest_difference(alone, folder, case, steps_of(name))
        assert json.loads((folder / f"{case.name}.json").read_text())["strategy"] == STRATEGIES[name]
    assert json.loads((folder / "not_finite.json").read_text()) == {"steps": True, "unchanged": True, "moved": True}
    refused = json.loads((folder / "refused.json").read_text())
    assert list(refused) == (["olmoe"] if name.startswith("zero3") else [])
    assert all(problem.startswith("lora.experts: ") for problem in refused.values())
    in_bfloat16 = json.loads((folder / "full-shared_prefix-bfloat16.json").read_text())
    assert in_bfloat16["off_grid"] > 0.9, "the head and the rewards are float32"
    print(name, {case: f"{difference:.1e}" for case, difference in found.items()})
    for case in cases_of(name):
        assert found[case.name] < TOLERANCE[case.dtype], case.name
    assert len(found) >= 8, (
        "guard: full models and adapters, two layouts, gradient checkpointing, bfloat16, experts of two mixtures"
    )


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in STRATEGIES if "offload" in name])
def test_offload_changes_no_number(name: str, ran: Callable[[str], Path]) -> None:
    """Under FSDP2 bit for bit. A CPU's shards are in main memory anyway: this shows what is computed, but not the copies to a GPU."""
    base = name.partition("_")[0]
    for case in cases_of(name):
        difference = largest_difference(ran(base), ran(name), case, steps_of(name))
        assert difference <= (0.0 if base == "fsdp2" else OFFLOAD_TOLERANCE[case.dtype]), case.name
    strategy = json.loads((ran(name) / f"{CASES[1].name}.json").read_text())["strategy"]
    assert "offload" in strategy, "guard: it was in force"


def micro_batches(plan: Plan) -> list[list[int]]:
    """Count the comparisons in each micro-batch of all ranks, step by step."""
    return [[len(indices) for rank in plan.step(number).micro_batches for indices in rank] for number in range(STEPS)]


def test_steps_of_a_mixture_are_cut_alike() -> None:
    """Each micro-batch is one comparison for one process and for two, so that the balancing losses are the same; or none, as a filler."""
    assert {count for world in (1, 2) for step in micro_batches(plan_of(MIXTURES[0], world)) for count in step} == {0, 1}
    assert len(comparisons(MIXTURES[0])) > 2, "guard"


def test_compared_steps_have_different_micro_batches() -> None:
    for case in CASES:
        steps = micro_batches(plan_of(case, world=2))
        assert len({len(step) for step in steps}) > 1, "steps with different numbers of micro-batches"
        assert len({count for step in steps for count in step}) > 2, "micro-batches of different sizes"
    assert any(0 in step for case in CASES for step in micro_batches(plan_of(case, world=2))), (
        "some rank had fewer and was filled up"
    )
    assert os.environ.keys().isdisjoint(SHARDING["fsdp2"]), "guard: this process itself has no strategy"
