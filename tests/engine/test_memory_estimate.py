"""Memory estimates: the trace against the same model with memory, and the arithmetic of strategies."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor

from rmtrain.batching.layout import Layout, MicroBatch, lay_out
from rmtrain.batching.plan import Costs
from rmtrain.data.comparison import TokenizedComparison
from rmtrain.data.prepare import PreparedData, prepare
from rmtrain.data.text.tokenizer import load_tokenizer
from rmtrain.engine.loop import build_optimizer
from rmtrain.engine.memory_estimate import (
    MemoryModel,
    MemoryTrace,
    ModelSizes,
    meta_model,
    optimizer_bytes,
    record_memory,
    trace_memory,
)
from rmtrain.engine.strategy_kind import SHARDED, STRATEGIES
from rmtrain.errors import RecipeError
from rmtrain.model.build import build_reward_model
from rmtrain.model.reward_model import RewardModel
from rmtrain.recipe.schema import Architecture, Lora, Optimizer, PretrainedModel, Recipe, ScratchModel
from tests.model.builders import build, make_base, make_batch, make_sequences, make_tokenizer
from tests.runs import tiny_recipe

LAYERS = 2
OFFLOADED = [name for name in STRATEGIES if "offload" in name]
TOKENIZER = make_tokenizer()
PAD: int = TOKENIZER.pad_token_id
BATCH = make_batch(make_sequences(TOKENIZER), PAD)


def rows(count: int = 4) -> list[TokenizedComparison]:
    """Pairs with prompts and responses of different lengths."""
    made = []
    for number in range(count):
        prompt = [5] * (20 + number)
        sequences = (prompt + [6] * 30, prompt + [7] * (25 + 3 * number))
        made.append(TokenizedComparison(str(number), "test", sequences, len(prompt), len(prompt)))
    return made


def scratch(architecture: str, layers: int = LAYERS, **model: Any) -> ScratchModel:
    sizes = Architecture(architecture=architecture, hidden_size=64, layers=layers, heads=4, max_positions=128)
    return ScratchModel(scratch=sizes, **model)


def recorded(model: ScratchModel, layout: Layout, autocast: bool = False, lora: Lora | None = None) -> MemoryTrace:
    """The real model's memory."""
    built = build_reward_model(model, lora, TOKENIZER, 1)
    built.computing = "bfloat16" if autocast else "float32"
    built.use_layout(layout)
    return record_memory(built, lay_out(rows(), PAD, layout))


def recorded_batch(model: ScratchModel, batch: MicroBatch, lora: Lora) -> MemoryTrace:
    built = build_reward_model(model, lora, TOKENIZER, 1)
    built.use_layout("padded")
    return record_memory(built, batch)


def traced(
    model: ScratchModel, batch: MicroBatch, layout: Layout, autocast: bool = False, lora: Lora | None = None, on_gpu: bool = False
) -> MemoryTrace:
    meta = meta_model(model, lora, TOKENIZER)
    meta.computing = "bfloat16" if autocast else "float32"
    return trace_memory(meta, batch, layout, narrow=True, on_gpu=on_gpu)


def peak(trace: MemoryTrace) -> int:
    return trace.peak(trace.tokens)


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("layout", ["shared_prefix", "padded"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt_neox", "gpt2", "gemma2", "mixtral"])
def test_a_trace_equals_the_real_model(architecture: str, layout: Layout, autocast: bool) -> None:
    """A forward and backward on fake tensors has the peak of the same model with memory."""
    model, batch = scratch(architecture), lay_out(rows(), PAD, layout)
    real = peak(recorded(model, layout, autocast))
    assert peak(traced(model, batch, layout, autocast)) == pytest.approx(real, rel=0.002 if layout == "padded" else 0.01)
    assert real > 20 * batch.input_ids_RT.numel() * 64 * 2, "guard: activations of several layers were counted"


@pytest.mark.parametrize("lora", [None, Lora(rank=4)], ids=["full", "lora"])
@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_gradient_checkpointing_is_traced(architecture: str, lora: Lora | None) -> None:
    layout: Layout = "shared_prefix" if architecture == "llama" else "padded"
    peaks = {}
    for checkpointing in (False, True):
        model = scratch(architecture, layers=3, gradient_checkpointing=checkpointing)
        peaks[checkpointing] = peak(traced(model, lay_out(rows(), PAD, layout), layout, lora=lora))
        assert peaks[checkpointing] == pytest.approx(peak(recorded(model, layout, lora=lora)), rel=0.05)
    assert peaks[True] < 0.8 * peaks[False], "guard: checkpointing was in force"


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_merged_experts_do_not_grow_with_tokens(checkpointing: bool) -> None:
    """Adapted experts are merged in every layer, and kept until backward unless it recomputes them; each process makes them whole."""
    model, lora = scratch("mixtral", layers=3, gradient_checkpointing=checkpointing), Lora(rank=4)
    small, large = (lay_out(rows()[-1:] * count, PAD, "padded") for count in (1, 5))
    one, five = (traced(model, batch, "padded", lora=lora) for batch in (small, large))
    assert peak(five) == pytest.approx(peak(recorded_batch(model, large, lora)), rel=0.01)
    assert one.experts_M.max() == five.experts_M.max()
    assert 0.95 < one.peak(five.tokens) / peak(five) < 1.1
    experts = [layer for layer in meta_model(model, lora, TOKENIZER).modules() if isinstance(layer, ParamWrapper)]
    merged = sum(layer.get_param().nbytes for layer in experts)
    assert (one.experts_M.max() >= merged) != checkpointing, "guard"


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("layout", ["shared_prefix", "padded"])
@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_one_comparison_predicts_larger_micro_batches(architecture: str, layout: Layout, autocast: bool) -> None:
    """The trace of one comparison, scaled, is the trace of five of them: hardly more, and never less."""
    one, five = (lay_out(rows()[-1:] * count, PAD, layout) for count in (1, 5))
    tokens = five.input_ids_RT.numel()
    scaled = traced(scratch(architecture), one, layout, autocast).peak(tokens)
    assert 0.999 < scaled / traced(scratch(architecture), five, layout, autocast).peak(tokens) < 1.05
    assert tokens == 5 * one.input_ids_RT.numel()


def saved_bytes(model: RewardModel, batch: MicroBatch) -> int:
    """Bytes that autograd keeps of a forward, each storage once and weights not at all."""
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        rewards = model(batch)
    assert rewards.requires_grad
    return sum(tensor.untyped_storage().nbytes() for key, tensor in saved.items() if key not in weights)


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_a_record_holds_what_autograd_saves(autocast: bool) -> None:
    """The forward's own results and one layer of backward come on top, and little more."""
    model = build_reward_model(scratch("llama"), None, TOKENIZER, 1)
    model.computing = "bfloat16" if autocast else "float32"
    model.use_layout("shared_prefix")
    batch = lay_out(rows(), PAD, "shared_prefix")
    saved = saved_bytes(model, batch)
    assert saved <= peak(record_memory(model, batch)) < 1.25 * saved
    assert saved > 100_000, "guard: something was saved"


def test_casts_and_gradients_are_counted_apart() -> None:
    """Casts are those of all matrices; each trained weight has one gradient on its way; at the end all are gone."""
    in_bfloat16, in_float32 = (recorded(scratch("llama"), "shared_prefix", autocast) for autocast in (True, False))
    sizes = ModelSizes.of(build_reward_model(scratch("llama"), None, TOKENIZER, 1), packed=False)
    matrices = LAYERS * sizes.layer
    assert 0.95 * 2 * matrices < in_bfloat16.casts_M.max() < 1.05 * 2 * matrices
    assert in_float32.casts_M.max() == 0
    for trace in (in_bfloat16, in_float32):
        assert np.diff(trace.gradients_M, prepend=0).clip(min=0).sum() == sizes.trained_bytes
        assert trace.gradients_M.max() < sizes.trained_bytes
        assert trace.casts_M[-1] == trace.gradients_M[-1] == 0
    assert in_bfloat16.activations_M.max() < in_float32.activations_M.max(), "guard: activations are narrower in bfloat16"


@pytest.mark.parametrize("autocast", [False, True], ids=["weights", "autocast"])
def test_a_gpu_takes_its_own_kernel(autocast: bool) -> None:
    """On a GPU in half precision one kernel attends for the whole row; on a CPU each response is a call of its own in every layer."""
    model, grown = scratch("llama", dtype="float32" if autocast else "bfloat16"), {}
    for on_gpu in (True, False):
        moments = [
            len(traced(model, lay_out(rows(count), PAD, "shared_prefix"), "shared_prefix", autocast, on_gpu=on_gpu).activations_M)
            for count in (2, 4)
        ]
        grown[on_gpu] = moments[1] - moments[0]
    assert grown[True] < 20, "the index of the keys is gathered once, for all layers"
    assert grown[False] > 60, "guard: more responses, more calls"


def test_a_meta_model_has_the_real_weights() -> None:
    """Names, shapes, types and what trains are those of the built model."""
    for architecture, lora in [(name, lora) for name in ("llama", "gpt2", "bert") for lora in (None, Lora(rank=4))]:
        meta, built = (
            {name: (parameter.shape, parameter.dtype, parameter.requires_grad) for name, parameter in made.named_parameters()}
            for made in (
                meta_model(scratch(architecture), lora, TOKENIZER),
                build_reward_model(scratch(architecture), lora, TOKENIZER, 1),
            )
        )
        assert meta == built
        assert any(trains for _, _, trains in built.values()), "guard: something trains"


@pytest.mark.parametrize("lora", [None, Lora(rank=2)], ids=["full", "lora"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_optimizer_bytes_are_those_after_a_step(lora: Lora | None, dtype: str) -> None:
    model = build("llama", TOKENIZER, lora=lora, dtype=dtype)
    optimizer = build_optimizer(model, Optimizer(lr=1e-4))
    model(BATCH).sum().backward()
    optimizer.step()
    made = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    assert optimizer_bytes(ModelSizes.of(model, packed=False), Optimizer(lr=1e-4)) == sum(value.nbytes for value in made) > 0


def test_eight_bit_moments_take_a_quarter() -> None:
    sizes = ModelSizes.of(build("llama", TOKENIZER, hidden_size=256), packed=False)
    whole, small = (optimizer_bytes(sizes, Optimizer(lr=1e-4, name=name)) for name in ("adamw", "adamw_8bit"))
    assert 0.25 < small / whole < 0.27


@pytest.fixture(scope="module")
def memory() -> MemoryModel:
    """Of a small llama on a GPU."""
    model = build("llama", TOKENIZER, hidden_size=64)
    sizes = ModelSizes.of(model, packed=False)
    return MemoryModel("padded", False, sizes, record_memory(model, BATCH), Optimizer(lr=1e-4), on_gpu=True)


def test_shards_add_up_over_processes(memory: MemoryModel) -> None:
    """Each stage of ZeRO keeps no more than the one before; DeepSpeed also holds a float32 copy of its shard."""
    estimates = {name: memory.estimate(name, 4, 100) for name in STRATEGIES}
    whole = estimates["single"]
    for name, copies in (("fsdp2", 1), ("zero3", 2)):
        assert 0 <= 4 * estimates[name].weights - copies * whole.weights < 8, name
    for name in set(SHARDED) - set(OFFLOADED):
        assert 0 <= 4 * estimates[name].optimizer - whole.optimizer < 8, name
    assert estimates["zero1"].gradients > estimates["zero2"].gradients == estimates["zero3"].gradients == whole.gradients / 4
    assert estimates["zero1"].weights == estimates["zero2"].weights > estimates["zero3"].weights
    assert estimates["ddp"].buffers == whole.gradients, "gradients that accumulate are held next to their buckets"
    assert whole.buffers == 0


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_more_tokens_never_cost_less(memory: MemoryModel, strategy: Any) -> None:
    """Parts add up to the total, which grows with the tokens and not with the processes."""
    estimates = [memory.estimate(strategy, 4, tokens) for tokens in (10, 100, 1000, 10**4, 10**5, 10**6)]
    for one in estimates:
        parts = dataclasses.asdict(one)
        assert one.total == sum(parts[key] for key in ("weights", "gradients", "optimizer", "buffers", "activations"))
        assert memory.estimate(strategy, 8, 100).total <= memory.estimate(strategy, 4, 100).total
    totals = [one.total for one in estimates]
    assert totals == sorted(totals)
    assert totals[-1] > totals[0], "guard: tokens count"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_budget_is_the_largest_that_fits(memory: MemoryModel, strategy: Any) -> None:
    costs = Costs(np.array([50, 70]), np.array([30, 40]), np.array([2, 2]))
    size = round(memory.estimate(strategy, 4, 5000).total / 0.9)
    budget = memory.budget(strategy, 4, size, costs)
    assert abs(budget - 5000) <= 1
    assert memory.estimate(strategy, 4, budget).fits(size)
    assert not memory.estimate(strategy, 4, budget + 2).fits(size)
    assert memory.budget(strategy, 4, size // 100, costs) == 70, "the largest comparison is the least there can be"
    assert memory.budget(strategy, 4, 10**15, costs) == 2**17


def test_start_counts_what_is_held_before_sharding(memory: MemoryModel) -> None:
    """FSDP2 and ZeRO-3 hold a layer before they shard it, other strategies the whole model, which can take more than a step does."""
    whole, estimate = memory.sizes.weight_bytes, memory.estimate("zero2", 1000, 1)
    for strategy in STRATEGIES:
        starts = {
            by_layer: dataclasses.replace(memory, by_layer=by_layer).estimate(strategy, 1000, 1).start
            for by_layer in (True, False)
        }
        assert starts[False] >= whole
        assert (starts[True] < 0.6 * whole) == strategy.startswith(("fsdp2", "zero3")), strategy
    small = dataclasses.replace(estimate, gradients=0, buffers=0, activations=0, weights=0)
    assert small.start > small.total
    assert not small.fits(small.total * 2)
    assert small.fits(small.start * 2)


@pytest.mark.parametrize("strategy", OFFLOADED)
def test_offload_moves_shards_to_main_memory(memory: MemoryModel, strategy: Any) -> None:
    """What leaves the GPU is in main memory, with DeepSpeed's buffers for it; activations stay. A CPU has nothing to offload from."""
    base: Any = strategy.partition("_")[0]
    one, without = (memory.estimate(name, 4, 10**4) for name in (strategy, base))
    moved = sum(getattr(without, part) - getattr(one, part) for part in ("weights", "gradients", "optimizer"))
    assert moved <= one.host <= 2 * moved, "zero1 keeps its gradients"
    assert (one.host == moved) == (base == "fsdp2")
    assert one.optimizer == without.host == 0
    assert (one.gradients == 0) == (base != "zero1")
    assert (one.weights == 0) == (strategy in ("fsdp2_offload", "zero3_offload"))
    assert one.activations == without.activations
    assert one.buffers >= without.buffers
    assert 0 < one.start < without.start
    on_cpu = dataclasses.replace(memory, on_gpu=False)
    alike = dataclasses.replace(on_cpu.estimate(strategy, 4, 100), name=base)
    assert alike == on_cpu.estimate(base, 4, 100)
    assert moved > 0, "guard"


def test_seventy_billion_fit_on_one_node(memory: MemoryModel) -> None:
    """On eight GPUs of 80 GB all weights of a 70B model train with offload alone; main memory takes 16 bytes a weight."""
    layer, outside = 855_000_000, 2_100_000_000
    count = 80 * layer + outside
    held = {"weight_bytes": 4 * count, "trained_bytes": 4 * count, "layer_bytes": 4 * layer, "outside_bytes": 4 * outside}
    sizes = dataclasses.replace(memory.sizes, weights=count, trained=count, layer=layer, outside=outside, **held)
    large = dataclasses.replace(memory, sizes=sizes, computing="bfloat16")
    fitting = {name for name in STRATEGIES if large.estimate(name, 8, 100).fits(80 * 10**9)}
    assert fitting == {"fsdp2_offload", "zero3_offload", "zero3_offload_optimizer"}
    assert large.estimate("fsdp2_offload", 8, 100).host * 8 == pytest.approx(16 * count, rel=1e-6)
    assert large.estimate("zero3_offload", 8, 100).host * 8 == pytest.approx(24 * count, rel=1e-6)
    assert large.estimate("fsdp2", 8, 100).total > 140e9, "guard: shards alone"


def test_4_bit_weights_are_sharded_without_scales(tmp_path: Path) -> None:
    """Each process begins with all of them, since they are quantized before they are sharded."""
    base = make_base(tmp_path / "base", TOKENIZER, hidden_size=128)
    recipe = PretrainedModel(path=str(base), dtype="bfloat16", quantization="nf4")
    meta = meta_model(recipe, Lora(rank=2), TOKENIZER)
    sizes = ModelSizes.of(meta, packed=True)
    linear = sum(p.numel() for p in meta.parameters() if p.dtype == torch.bfloat16)
    assert sizes.scales == pytest.approx(linear * (1 / 64 + 4 / (64 * 256)), abs=1)
    assert sizes.weight_bytes == pytest.approx(linear / 2 + sizes.scales + 4 * (sizes.weights - linear), abs=2)
    trace = MemoryTrace(10, *(np.zeros(1, dtype=np.int64) for _ in range(4)))
    model = MemoryModel("padded", "bfloat16", sizes, trace, Optimizer(lr=1e-4), on_gpu=True, by_layer=False)
    one = model.estimate("fsdp2", 4, 10)
    assert 4 * (one.weights - sizes.scales) == pytest.approx(sizes.weight_bytes - sizes.scales, abs=4)
    assert one.start == sizes.weight_bytes + one.weights
    assert one.buffers <= 4 * sizes.weight_bytes + 6 * sizes.trained, "layers are gathered in 4 bits"
    assert sizes.scales > 0, "guard"


def test_zero_allocates_whole_buckets_on_gpus(memory: MemoryModel) -> None:
    """On a GPU DeepSpeed's bucket counts whole; on a CPU only what is written to."""
    on_gpu, on_cpu = (dataclasses.replace(memory, on_gpu=is_gpu).estimate("zero2", 2, 100) for is_gpu in (True, False))
    assert on_gpu.buffers == 4 * 500_000_000
    assert on_cpu.buffers == 2 * on_gpu.gradients > 0, "guard: there are gradients, those of two shards"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Any, PreparedData]:
    recipe = tiny_recipe(tmp_path_factory.mktemp("prepared"))
    tokenizer = load_tokenizer(recipe.model, recipe.data)
    return recipe, tokenizer, prepare(recipe.data, tokenizer)


@pytest.mark.parametrize(
    ("architecture", "layout"),
    [("llama", "shared_prefix"), ("bloom", "padded"), ("stablelm", "padded"), ("bert", "packed"), ("deberta-v2", "padded")],
)
def test_auto_layout_is_one_the_model_accepts(prepared: Any, architecture: str, layout: Layout) -> None:
    """The layout that a run's probe would try; a layout that the recipe names is refused with its place."""
    recipe, tokenizer, data = prepared
    recipe = recipe.model_copy(update={"model": scratch(architecture)})
    assert MemoryModel.of(recipe, tokenizer, data.train, "auto", on_gpu=False).layout == layout
    if layout != "shared_prefix":
        with pytest.raises(RecipeError) as refused:
            MemoryModel.of(recipe, tokenizer, data.train, "shared_prefix", on_gpu=False)
        assert refused.value.problems[0].startswith("batching.layout: shared_prefix ")
