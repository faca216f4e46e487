"""What must be equal on a GPU, and its memory: layouts and kernels, the same steps on a CPU, budgets and estimates. gpu.py runs them.

Each check is a generator of lines, so that what was found before time ran out is kept.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from benchmarks.memory_estimate import LEAST, MOST, measure_here
from benchmarks.ours import FewSteps, few_steps
from benchmarks.pairs import recipe_for
from rmtrain.batching.layout import Layout, lay_out
from rmtrain.data.comparison import TokenizedComparison
from rmtrain.data.prepare import prepare
from rmtrain.data.text.tokenizer import load_tokenizer
from rmtrain.engine.distributed import start
from rmtrain.engine.strategy import Strategy
from rmtrain.model import attention
from rmtrain.model.layout_probe import LARGEST_NOISE, choose_layout
from rmtrain.model.reward_model import RewardModel
from rmtrain.objective import compute_objective
from rmtrain.recipe.schema import BradleyTerry, Lora, Recipe
from tests.model.builders import amplified, build, comparisons, make_tokenizer
from tests.model.zoo import tiny_model


@dataclass(frozen=True, slots=True)
class Line:
    """One finding: a number, and the bounds that it must keep. A value of None was not measured, and `details` says why."""

    case: str
    what: str
    value: float | None
    least: float | None = None
    most: float | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool | None:
        """None: there is nothing to keep, or nothing was measured. A value that is not a number keeps no bound."""
        if self.value is None or (self.least is None and self.most is None):
            return None
        return (self.least is None or self.value >= self.least) and (self.most is None or self.value <= self.most)


class Inputs(NamedTuple):
    """What the parts are given: a file of HH transcripts, a folder to write into, and whether this is a rehearsal with tiny sizes."""

    file: Path
    folder: Path
    quick: bool


LORA, MIXTURE_LORA = "llama with LoRA", "mixtral with LoRA"
REHEARSED = ("gemma3_text", "gpt_oss", "modernbert", MIXTURE_LORA)
ARCHITECTURES = (
    *(
        "llama",
        "qwen3",
        "mistral",
        "gemma2",
        "gemma3_text",
        "gemma4_text",
        "gpt_oss",
        "mixtral",
        "qwen3_moe",
        "granite",
        "gpt_neox",
    ),
    *("bert", "modernbert", LORA, MIXTURE_LORA),
)
"""Grouped heads, windows, soft caps, sinks, experts, partial rotary embeddings, encoders with and without windows, adapters."""
EXACT = 1e-4
"""Largest relative difference in float32; in lower types their epsilon, or LARGEST_NOISE times what they change in padded rows."""
FLOORS = {"float32": 2e-3, "bfloat16": 0.1, "float16": 0.1}
"""Gradients below this share of the largest are compared with that: some, as of key biases, are nothing but rounding."""
LONGER = 12
"""Factor on the lengths of the tests' comparisons: several blocks of a kernel, and many windows."""


def equality(inputs: Inputs) -> Iterator[Line]:
    """Rewards, loss and every gradient of each layout and kernel against padded rows with transformers' own written-out attention."""
    for name in REHEARSED if inputs.quick else ARCHITECTURES:
        yield from guarded(name, _layouts(name, 1 if inputs.quick else LONGER))


def guarded(case: str, lines: Iterator[Line]) -> Iterator[Line]:
    """The lines of a check; where it ends with an error, also one that fails and names it, and the next check can run."""
    try:
        yield from lines
    except Exception as error:
        yield Line(case, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", float("nan"), most=0.0)


def _layouts(name: str, longer: int) -> Iterator[Line]:
    tokenizer = make_tokenizer()
    model = _tiny(name, tokenizer).to("cuda" if torch.cuda.is_available() else "cpu")
    rows = comparisons(len(tokenizer), tokenizer.eos_token_id, longer if model.max_positions is None else 1)
    compute = partial(_results, model, rows, tokenizer.pad_token_id)
    chosen, wanted = choose_layout(model, "auto", rows[:3], tokenizer.pad_token_id), "packed"
    layouts: tuple[Layout, ...] = ("padded", "packed")
    if model.pools_last_token:
        layouts, wanted = (*layouts, "shared_prefix"), "shared_prefix"
    yield Line(name, f"`auto` is {chosen}, expected {wanted}", float(chosen == wanted), least=1.0)
    exact = compute("float32", "padded", "eager")
    for dtype in ("float32", "bfloat16", "float16"):
        eager = exact if dtype == "float32" else compute(dtype, "padded", "eager")
        against = partial(_differences, floor=FLOORS[dtype])
        noise = against(eager, exact)
        for layout in layouts:
            with _kernels() as taken:
                found = compute(dtype, layout)
            yield _compared(name, dtype, layout, taken, against(found, eager), noise)
            if "varlen" in taken:  # what GPUs without this kernel take, and torch 2.10 where there are windows
                with _kernels() as taken, patch.object(attention, "VARLEN_TYPES", ()):
                    found = compute(dtype, layout)
                yield _compared(name, dtype, layout, taken, against(found, eager), noise)


def _tiny(name: str, tokenizer: Any) -> RewardModel:
    """Build a tiny model with large weights. Each expert computes every token: rounding must not send one elsewhere."""
    architecture, _, adapters = name.partition(" ")
    if adapters:
        model = build(architecture, tokenizer, lora=Lora(rank=4, alpha=1.0), hidden_size=64, key_value_heads=2)
    else:
        model = tiny_model(architecture, tokenizer)
    for module in model.modules():
        if hasattr(module, "top_k") and hasattr(module, "num_experts"):
            module.top_k = module.num_experts
    return amplified(model)


def _results(
    model: RewardModel, rows: list[TokenizedComparison], pad: int, dtype: str, layout: Layout, implementation: str | None = None
) -> dict[str, Tensor]:
    """Rewards, loss and gradients by name, float32, on the CPU."""
    model.computing = dtype
    model.use_layout(layout)
    if implementation is not None:
        model.backbone.set_attn_implementation(implementation)
    model.zero_grad()
    batch = lay_out(rows, pad, layout).to(model.device)
    rewards = model(batch)
    loss = compute_objective(BradleyTerry(center_rewards=0.01), rewards, batch).loss
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {
        name: tensor.detach().float().cpu().clone() for name, tensor in {"rewards": rewards, "loss": loss, **gradients}.items()
    }


def _differences(found: dict[str, Tensor], expected: dict[str, Tensor], floor: float) -> dict[str, float]:
    """Relative differences of the rewards, the loss, and the gradient that differs most."""
    assert found.keys() == expected.keys()
    gradients = [name for name in expected if name not in ("rewards", "loss")]
    smallest = floor * max(float(expected[name].norm()) for name in gradients)

    def relative(name: str, smallest: float = 0.0) -> float:
        return float((found[name] - expected[name]).norm() / expected[name].norm().clamp(min=smallest))

    worst = torch.tensor([relative(name, smallest) for name in gradients]).max()  # NaN where one is
    return {"rewards": relative("rewards"), "loss": relative("loss"), "gradients": float(worst)}


def _compared(
    case: str, dtype: str, layout: Layout, taken: set[str], differences: dict[str, float], noise: dict[str, float]
) -> Line:
    """The line of a layout: of rewards, loss and gradients the one that is nearest to its bound, or furthest beyond."""
    least = max(EXACT, torch.finfo(getattr(torch, dtype)).eps)
    noise = {**noise, "loss": max(noise["loss"], noise["rewards"])}  # one number may be right by luck
    most = {name: max(least, LARGEST_NOISE * noise[name]) for name in differences}
    worst = max(
        differences, key=lambda name: float("inf") if differences[name] != differences[name] else differences[name] / most[name]
    )
    kernel = "+".join(sorted(taken)) or "the model's own"
    details = {"dtype": dtype, "layout": layout, "kernel": kernel, "differences": differences, "rounding": noise}
    return Line(case, f"{dtype}, {layout}, {kernel}: {worst}", differences[worst], most=most[worst], details=details)


@contextmanager
def _kernels() -> Iterator[set[str]]:
    """Collect the kernels that our attention takes: varlen, SDPA (response by response), or the written-out formula."""
    taken: set[str] = set()

    def noting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            taken.add(name)
            return function(*arguments, **options)

        return call

    with ExitStack() as stack:
        for name, owner, attribute in (
            ("varlen", attention, "_varlen"),
            ("written out", attention, "_explicit"),
            ("SDPA", attention.F, "scaled_dot_product_attention"),
        ):
            stack.enter_context(patch.object(owner, attribute, noting(name, getattr(owner, attribute))))
        yield taken


STEPS, PARITY = 20, 1e-3
"""Steps of the comparison with a CPU, and its tolerance: AdamW makes rounding of small gradients as large as the learning rate."""


def parity(inputs: Inputs) -> Iterator[Line]:
    """Some steps in float32, in the layout of a GPU here, and with padded rows on the CPU."""
    scratch = {"architecture": "llama", "hidden_size": 32 if inputs.quick else 128, "layers": 2, "heads": 4, "key_value_heads": 2}
    runs: dict[Layout, FewSteps] = {}
    for layout, on_cpu in (("padded", True), ("shared_prefix", False)):
        batching = {"layout": layout, "max_tokens": 2048}
        recipe = _recipe(inputs, scratch, batching, batch_size=8, max_steps=STEPS, precision="float32")
        AcceleratorState._reset_state(reset_partial_state=True)  # accelerate holds on to the first device of a process
        strategy = Strategy(Accelerator(cpu=True)) if on_cpu else start(recipe)
        runs[layout] = _trained(recipe, strategy)
    expected, found = runs["padded"], runs["shared_prefix"]
    device = strategy.accelerator.device.type
    for what in ("losses", "grad_norms"):
        pairs = list(zip(getattr(found, what), getattr(expected, what), strict=True))
        worst = max(abs(here - there) / abs(there) for here, there in pairs)
        details = {"steps": len(pairs), device: [here for here, _ in pairs], "cpu": [there for _, there in pairs]}
        yield Line(f"{STEPS} steps, float32", f"{what}, {device} against cpu", worst, most=PARITY, details=details)


def _recipe(
    inputs: Inputs, scratch: dict[str, Any], batching: dict[str, Any], precision: str = "bfloat16", **sections: Any
) -> Recipe:
    """The recipe of a few steps; `sections` has `batch_size`, `max_steps`, and whole sections."""
    training = {"precision": precision, **{key: sections.pop(key) for key in ("batch_size", "max_steps")}}
    return recipe_for(inputs.file, inputs.folder, scratch, batching=batching, training=training, **sections)


def _trained(recipe: Recipe, strategy: Strategy | None = None) -> FewSteps:
    tokenizer = load_tokenizer(recipe.model, recipe.data)
    return few_steps(recipe, tokenizer, prepare(recipe.data, tokenizer), strategy or start(recipe))


PYTHIA_410M = {"architecture": "gpt_neox", "hidden_size": 1024, "layers": 24, "heads": 16, "intermediate_size": 4096}
LLAMA_100M = {
    "architecture": "llama",
    "hidden_size": 1024,
    "layers": 8,
    "heads": 16,
    "key_value_heads": 8,
    "intermediate_size": 2816,
}
TINY = {"architecture": "llama", "hidden_size": 32, "layers": 2, "heads": 2}
ADAPTED = {"lora": {"rank": 16}}
ESTIMATED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "pythia-410m, all weights": (PYTHIA_410M, {}),
    "pythia-410m, LoRA": (PYTHIA_410M, {**ADAPTED, "model": {"dtype": "bfloat16"}}),
    "the same, recomputed": (PYTHIA_410M, {**ADAPTED, "model": {"dtype": "bfloat16", "gradient_checkpointing": True}}),
}
NOT_MEASURED = {"not_measured": "a rehearsal, whose process holds more than the steps take"}


def memory(inputs: Inputs) -> Iterator[Line]:
    """The estimate against what is allocated, the automatic budget against the memory of the GPU, and a budget that is too large."""
    on_gpu = torch.cuda.is_available() and not inputs.quick
    for name, (scratch, sections) in {"tiny": (TINY, ADAPTED)}.items() if inputs.quick else ESTIMATED.items():
        yield from guarded(name, _estimate(name, scratch, sections, inputs, on_gpu))
    yield from guarded("automatic budget", _automatic_budget(inputs, on_gpu))
    yield from guarded("budget too large", _too_large_budget(inputs, on_gpu))


def _estimate(name: str, scratch: dict[str, Any], sections: dict[str, Any], inputs: Inputs, on_gpu: bool) -> Iterator[Line]:
    sizes = {"scratch": {"vocab_size": 8192, "max_positions": 2048, **scratch}}
    sections = {**sections, "model": {**sizes, **sections.get("model", {})}}
    batching = {"layout": "shared_prefix", "max_tokens": 2048 if inputs.quick else 16384}
    recipe = _recipe(inputs, scratch, batching, batch_size=16 if inputs.quick else 256, max_steps=2, **sections)
    found = freed(measure_here, recipe)
    ratio = found["estimated"] / found["measured"] if on_gpu else None
    details = found if on_gpu else {"estimated": found["estimated"], **NOT_MEASURED}
    yield Line(name, "memory, estimated / allocated", ratio, LEAST, MOST, details)


def freed(run: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function with what earlier ones held given back, and the peak set to zero."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return run(*arguments)


def _automatic_budget(inputs: Inputs, on_gpu: bool) -> Iterator[Line]:
    batching = {"layout": "shared_prefix", "max_tokens": "auto"}
    scratch, batch_size = (TINY, 16) if inputs.quick else (PYTHIA_410M, 1024)
    found = freed(_trained, _recipe(inputs, scratch, batching, batch_size=batch_size, max_steps=1 if inputs.quick else 2))
    details = {"budget": found.first_budget, "last_budget": found.last_budget}
    yield Line("automatic budget", "share of the budget that fits", found.last_budget / found.first_budget, 1.0, 1.0, details)
    if on_gpu:
        allocated, whole = torch.cuda.max_memory_allocated(), torch.cuda.mem_get_info()[1]
        share, found_here = (
            allocated / whole,
            {"allocated": allocated, "reserved": torch.cuda.max_memory_reserved(), "memory": whole},
        )
    else:
        share, found_here = None, NOT_MEASURED
    details = {**details, **found_here}
    yield Line("automatic budget", "share of the GPU's memory that tensors take", share, most=1.0, details=details)


FITTING, TOO_LARGE = 4096, 16
"""A budget that fits, and the factor of one that does not."""
ROOM = 1.3
"""Memory that the process may take then, as a multiple of what the budget that fits has taken."""


def _too_large_budget(inputs: Inputs, on_gpu: bool) -> Iterator[Line]:
    scratch, batch_size = (TINY, 16) if inputs.quick else (LLAMA_100M, 512)
    fitting = FITTING // 2 if inputs.quick else FITTING

    def recipe(max_tokens: int) -> Recipe:
        batching = {"layout": "shared_prefix", "max_tokens": max_tokens}
        return _recipe(inputs, scratch, batching, batch_size=batch_size, max_steps=2)

    expected = freed(_trained, recipe(fitting))
    with _little_memory(fitting, on_gpu):
        found = freed(_trained, recipe(TOO_LARGE * fitting))
    how = "the GPU memory of this process is limited" if on_gpu else "simulated, in a rehearsal"
    details = {"how": how, "budget": found.first_budget, "last_budget": found.last_budget}
    yield Line("budget too large", "halved to, as a share", found.last_budget / found.first_budget, most=0.5, details=details)
    worst = max(abs(here - there) / there for here, there in zip(found.losses, expected.losses, strict=True))
    yield Line("budget too large", "losses against a budget that fits", worst, most=5e-3, details=details)


@contextmanager
def _little_memory(fitting: int, on_gpu: bool) -> Iterator[None]:
    """Limit the memory to little more than micro-batches of this many tokens need. In a rehearsal, larger ones raise what a GPU would."""
    forward = RewardModel.forward

    def limited(self: RewardModel, batch: Any, balance: bool = False) -> Any:
        if batch.input_ids_RT.numel() > fitting:
            raise torch.OutOfMemoryError("simulated")
        return forward(self, batch, balance)

    if not on_gpu:
        with patch.object(RewardModel, "forward", limited):
            yield
        return
    share = ROOM * torch.cuda.max_memory_reserved() / torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(min(1.0, share))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
