"""State by name, without pickle: everything is saved, exactly that is restored, and any difference is reported."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from rmtrain.engine.loop import build_optimizer
from rmtrain.engine.state_dict import (
    distribute_like,
    frozen_fingerprint,
    model_state_dict,
    optimizer_state,
    restore_model,
    restore_optimizer,
    restore_rng,
    rng_tensors,
)
from rmtrain.errors import CheckpointError
from rmtrain.model.build import build_reward_model
from rmtrain.model.reward_model import RewardModel
from rmtrain.recipe.schema import Lora, Optimizer, PretrainedModel, Recipe
from tests.helpers import byte_bpe
from tests.model.builders import make_base, make_tokenizer
from tests.runs import tiny_recipe


def build(recipe: Recipe, seed: int = 1) -> RewardModel:
    return build_reward_model(recipe.model, recipe.lora, byte_bpe(), seed=seed)


def stepped(model: RewardModel, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    """Take a few optimizer steps; models of the same shape get the same gradients."""
    generator = torch.Generator().manual_seed(5)
    for _ in range(steps):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


LORA = {"full": None, "lora": {"rank": 2}, "dora": {"rank": 2, "dora": True}}


@pytest.mark.parametrize(("kind", "name"), [*((kind, "adamw") for kind in LORA), ("full", "adamw_8bit"), ("lora", "adamw_8bit")])
def test_another_model_resumes_bit_for_bit(kind: str, name: Literal["adamw", "adamw_8bit"], tmp_path: Path) -> None:
    if name == "adamw_8bit":
        pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install 'rmtrain[8bit]'")
    lora = LORA[kind]
    sizes = {
        **tiny_recipe(tmp_path).model.model_dump()["scratch"],
        "hidden_size": 64,
    }  # 8-bit optimizer state from 4096 values on
    recipe = tiny_recipe(tmp_path, lora=lora, model={"scratch": sizes}, optimizer={"lr": 1e-3, "name": name})
    ours = build(recipe)
    ours_optimizer = build_optimizer(ours, recipe.optimizer)
    stepped(ours, ours_optimizer)
    weights, tensors = model_state_dict(ours), optimizer_state(ours_optimizer, ours)
    if lora:
        assert not any(name.endswith("base_layer.weight") for name in weights), "frozen weights are not saved"
    other = build(recipe, seed=1 if lora else 2)
    other_optimizer = build_optimizer(other, Optimizer(lr=0.9, name=name))
    restore_model(other, {name: tensor.clone() for name, tensor in weights.items()})
    restore_optimizer(other_optimizer, other, tensors)
    for optimizer in (ours_optimizer, other_optimizer):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2
    stepped(ours, ours_optimizer)
    stepped(other, other_optimizer)
    for (parameter, one), (_, two) in zip(ours.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(one, two), parameter
    assert len(tensors) >= 2 * sum(parameter.requires_grad for parameter in ours.parameters()), "guard: moments were saved"
    assert any(tensor.dtype == torch.uint8 for tensor in tensors.values()) == (name == "adamw_8bit" and not lora), "guard"


@pytest.fixture
def process_group() -> Iterator[None]:
    """A process group of this process alone."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_trap_33_names_do_not_depend_on_wrappers(tmp_path: Path) -> None:
    model = build(tiny_recipe(tmp_path))
    plain = model_state_dict(model).keys()
    wrapped = DistributedDataParallel(model)
    for other in (torch.compile(model), wrapped, torch.compile(wrapped)):
        assert model_state_dict(other).keys() == plain
        restore_model(other, model_state_dict(model))
        assert other.state_dict().keys() != plain, "guard: it was wrapped"
    assert not any(name.startswith(("_orig_mod.", "module.")) for name in plain)


@pytest.mark.usefixtures("process_group")
def test_offloaded_shards_are_updated_fused(tmp_path: Path) -> None:
    """torch's fused AdamW updates sharded weights on a CPU as its plain one does, and its state is saved and restored."""
    after = {}
    for fused in (True, False):
        model, generator, state = build(tiny_recipe(tmp_path)), torch.Generator().manual_seed(5), {}
        fully_shard(model, offload_policy=CPUOffloadPolicy(pin_memory=False))
        for _ in range(3):
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)
            restore_optimizer(optimizer, model, state)
            for parameter in model.parameters():
                parameter.grad = distribute_like(torch.randn(parameter.shape, generator=generator), parameter.detach())
            optimizer.step()
            state = optimizer_state(optimizer, model)
        after[fused] = model_state_dict(model)
        assert {int(tensor) for name, tensor in state.items() if name.endswith("/step")} == {3}, "guard"
    for name, tensor in after[True].items():
        torch.testing.assert_close(tensor, after[False][name], rtol=1e-5, atol=1e-6)
    assert len(after[True]) > 10, "guard"


def drop(name: str, tensors: dict[str, torch.Tensor]) -> None:
    del tensors[name]


def add(name: str, tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{name}.more"] = torch.zeros(1)


def reshape(name: str, tensors: dict[str, torch.Tensor]) -> None:
    tensors[name] = tensors[name].reshape(-1)[:-1]


def retype(name: str, tensors: dict[str, torch.Tensor]) -> None:
    tensors[name] = tensors[name].double()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, r"^weights: 1 missing.* \S*q_proj\.weight$"),
        (add, r"^weights: 1 unknown.* \S*q_proj\.weight\.more$"),
        (reshape, r"^weights: .*q_proj\.weight: .*\(32, 32\) torch\.float32.*\(1023,\) torch\.float32"),
        (retype, r"^weights: .*q_proj\.weight: .*\(32, 32\) torch\.float32.*\(32, 32\) torch\.float64"),
    ],
)
def test_trap_25_other_weights_are_reported(
    change: Callable[[str, dict[str, torch.Tensor]], None], message: str, tmp_path: Path
) -> None:
    model = build(tiny_recipe(tmp_path))
    tensors = {name: tensor.clone() + 1 for name, tensor in model_state_dict(model).items()}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    change(next(name for name in tensors if name.endswith("q_proj.weight")), tensors)
    with pytest.raises(CheckpointError, match=message):
        restore_model(model, tensors)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()), "nothing was changed"


def test_trap_25_other_optimizer_state_is_reported(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    model = build(recipe)
    optimizer = build_optimizer(model, recipe.optimizer)
    stepped(model, optimizer)
    tensors = optimizer_state(optimizer, model)
    name = next(iter(tensors)).rpartition("/")[0]
    without = {key: tensor for key, tensor in tensors.items() if key != f"{name}/exp_avg"}
    with pytest.raises(CheckpointError, match=rf"^optimizer state: 1 missing.* {name}/exp_avg$"):
        restore_optimizer(optimizer, model, without)
    with pytest.raises(CheckpointError, match=rf"^optimizer state: 3 missing.* {name}/exp_avg$"):
        restore_optimizer(optimizer, model, {key: value for key, value in tensors.items() if not key.startswith(f"{name}/")})
    short = tensors | {f"{name}/exp_avg": torch.zeros(3)}
    with pytest.raises(CheckpointError, match=rf"{name}/exp_avg: .*\(3,\)"):
        restore_optimizer(optimizer, model, short)


def test_an_unused_optimizer_is_restored(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    model = build(recipe)
    optimizer = build_optimizer(model, recipe.optimizer)
    tensors = optimizer_state(optimizer, model)
    assert not tensors
    restore_optimizer(optimizer, model, tensors)
    assert not optimizer.state


def test_fingerprints_identify_the_base_model(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, lora={"rank": 2})
    model, same, other = build(recipe), build(recipe), build(recipe, seed=2)
    stepped(model, build_optimizer(model, recipe.optimizer))
    assert frozen_fingerprint(model) == frozen_fingerprint(same), "training does not change frozen weights"
    assert frozen_fingerprint(model) != frozen_fingerprint(other)
    assert frozen_fingerprint(build(tiny_recipe(tmp_path))) is None


def test_trap_25_random_generators_are_restored() -> None:
    device = torch.device("cpu")
    saved = rng_tensors(device)
    first = torch.rand(5)
    restore_rng(device, saved)
    assert torch.equal(torch.rand(5), first)
    with pytest.raises(CheckpointError, match=r"^random generators: 1 missing.* cpu$"):
        restore_rng(device, {})


def test_trap_42_new_token_embeddings_resume_exactly(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    base = make_base(tmp_path / "base", tokenizer)
    tokenizer.add_tokens(["<turn>"], special_tokens=True)
    pretrained = PretrainedModel(path=str(base))
    model, other = (build_reward_model(pretrained, Lora(rank=2), tokenizer, seed=1) for _ in range(2))
    optimizer, other_optimizer = (build_optimizer(one, Optimizer(lr=1e-2)) for one in (model, other))
    stepped(model, optimizer)
    saved = model_state_dict(model)
    assert any("trainable_tokens_delta" in name for name in saved), "guard: the new embedding is trained and saved"
    restore_model(other, saved)
    restore_optimizer(other_optimizer, other, optimizer_state(optimizer, model))
    stepped(model, optimizer)
    stepped(other, other_optimizer)
    after = model_state_dict(other)
    assert all(torch.equal(tensor, after[name]) for name, tensor in model_state_dict(model).items())
