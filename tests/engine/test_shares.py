"""Shares of strategies: moments as the optimizer makes them, pieces that add up, and an order that cutting must have."""

import dataclasses
from typing import Any

import pytest
import torch

from rmtrain.engine.memory_trace import NAMES, SHARDING, Sizes, Training, moments, share, traced
from rmtrain.engine.optim import build_optimizer
from rmtrain.recipe.schema import Lora, Optimizer
from tests.model.builders import build, make_batch, make_sequences, make_tokenizer

TOKENIZER = make_tokenizer()
BATCH = make_batch(make_sequences(TOKENIZER), TOKENIZER.pad_token_id)


def training_of(model: Any, **changes: Any) -> Training:
    trace = traced(model, BATCH)
    made = Training(Sizes.of(model, packed=False), trace, trace, trace, 4, Optimizer(lr=1e-4), micro_batches=2, on_gpu=True)
    return dataclasses.replace(made, **changes)


@pytest.mark.parametrize("lora", [None, Lora(rank=2)], ids=["full", "lora"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_moments_are_as_large_as_those_of_the_optimizer_after_a_step(lora: Lora | None, dtype: str) -> None:
    model = build("llama", TOKENIZER, lora=lora, dtype=dtype)
    optimizer = build_optimizer(model, Optimizer(lr=1e-4))
    model(BATCH).sum().backward()
    optimizer.step()
    made = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    assert moments(Sizes.of(model, packed=False), Optimizer(lr=1e-4)) == sum(value.nbytes for value in made) > 0


def test_moments_in_8_bits_take_about_a_quarter() -> None:
    sizes = Sizes.of(build("llama", TOKENIZER, hidden_size=256), packed=False)
    whole, small = (moments(sizes, Optimizer(lr=1e-4, name=name)) for name in ("adamw", "adamw_8bit"))
    assert 0.25 < small / whole < 0.27


def test_pieces_add_up_and_each_stage_of_zero_keeps_no_more_than_the_one_before() -> None:
    training = training_of(build("llama", TOKENIZER, hidden_size=64))
    shares = {name: share(name, 4, training) for name in NAMES}
    whole = shares["single"]
    for name, copies in (("fsdp2", 1), ("zero3", 2)):  # DeepSpeed updates a copy of its piece
        assert 0 <= 4 * shares[name].weights - copies * whole.weights < 8, name
    for name in SHARDING:
        assert 0 <= 4 * shares[name].optimizer - whole.optimizer < 8, name
    assert shares["zero1"].gradients > shares["zero2"].gradients == shares["zero3"].gradients == whole.gradients / 4
    assert shares["zero1"].weights == shares["zero2"].weights > shares["zero3"].weights
    assert shares["ddp"].buffers == whole.gradients, "gradients that add up lie beside their buckets"
    assert share("ddp", 4, dataclasses.replace(training, micro_batches=1)).buffers == 0
    assert all(one.total > one.weights for one in shares.values())


def test_a_single_micro_batch_has_its_gradients_while_activations_go() -> None:
    """What one process takes lies between all that is there at once, and all but the activations."""
    model = build("llama", TOKENIZER, hidden_size=64)
    several, one = (share("single", 1, training_of(model, micro_batches=count)) for count in (2, 1))
    fixed = one.weights + one.gradients + one.optimizer
    assert fixed <= one.total < several.total
    assert torch.tensor(several.activations) > 0


def test_the_room_that_deepspeed_makes_for_gradients_counts_whole_on_a_gpu_and_as_far_as_it_is_filled_on_a_cpu() -> None:
    model = build("llama", TOKENIZER, hidden_size=64)
    on_gpu, on_cpu = (share("zero2", 2, training_of(model, on_gpu=is_gpu)) for is_gpu in (True, False))
    assert on_gpu.buffers == 4 * 500_000_000
    assert on_cpu.buffers == 2 * on_gpu.gradients > 0, "guard: there are gradients, those of two pieces"
