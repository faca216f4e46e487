"""Training on one GPU in bfloat16: pythia-1b's shape, and a 7B llama with LoRA, random weights, ours in each layout against TRL.

TRL runs at batch 32 with gradient checkpointing, which is how it comes, and without; and at its fastest, micro-batches grouped by length.
MFU is model FLOP utilisation on unique tokens: 6 P T + 12 L H A operations (see matmul_efficiency.py; with LoRA the frozen
parameters need no gradient and count 4 P T) over what the GPU can do in dense bfloat16. Ends with one line where there is no GPU.
"""

import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft import LoraConfig, TaskType

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import Trace, figure, finish, machine, parser, show, take_turns
from benchmarks.ours import operations, train_ours
from benchmarks.pairs import HH, encode, hh_rows, read_comparisons, recipe_for, stored, unique_tokens
from benchmarks.peer import Setting, pairs_of, train_trl
from benchmarks.sampling import sample
from rmtrain.batching.plan import order
from rmtrain.data.text.tokenizer import load_tokenizer
from rmtrain.engine.distributed import start
from rmtrain.recipe.schema import Recipe

LAYOUTS = ("shared_prefix", "packed", "padded")
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16 operations a second, from the vendor's data sheets (SXM)."""
SHAPES: dict[str, dict[str, Any]] = {
    "pythia-1b": {
        "scratch": {"architecture": "gpt_neox", "hidden_size": 2048, "layers": 16, "heads": 8, "intermediate_size": 8192},
        "model": {},
    },
    "llama-7b-lora": {
        "scratch": {"architecture": "llama", "hidden_size": 4096, "layers": 32, "heads": 32, "intermediate_size": 11008},
        "model": {"dtype": "bfloat16"},
        "lora": {"rank": 16, "alpha": 32.0},
    },
    "tiny": {"scratch": {"architecture": "gpt_neox", "hidden_size": 128, "layers": 2, "heads": 2}, "model": {}},
}


def recipe_of(shape: str, layout: str, file: Path, folder: Path, arguments: Namespace) -> Recipe:
    """The recipe of a shape in a layout."""
    keys = SHAPES[shape]
    model = {"scratch": {**keys["scratch"], "vocab_size": 8192, "max_positions": 2048}, **keys["model"]}
    sections = {"lora": keys["lora"]} if "lora" in keys else {}
    return recipe_for(
        file,
        folder,
        keys["scratch"],
        model=model,
        batching={"layout": layout, "max_tokens": arguments.max_tokens},
        training={"precision": "bfloat16", "batch_size": arguments.batch_size},
        **sections,
    )


def adapters_for_trl(recipe: Recipe) -> LoraConfig | None:
    """The same LoRA as PEFT's configuration."""
    if recipe.lora is None:
        return None
    lora = {"r": recipe.lora.rank, "lora_alpha": recipe.lora.alpha, "target_modules": "all-linear"}
    return LoraConfig(task_type=TaskType.SEQ_CLS, modules_to_save=["score"], **lora)


def attempted(run: Callable[[], Trace]) -> Trace | None:
    """What a run gives, or None when the GPU's memory does not hold it."""
    try:
        return run()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None


def runs_of(shape: str, arguments: Namespace, folder: Path) -> tuple[dict[str, Callable[[], Trace | None]], dict[str, int]]:
    """Every run of a shape, and the work that all of them do: operations and unique tokens."""
    file, _ = hh_rows(arguments.data, folder)
    recipes = {layout: recipe_of(shape, layout, file, folder, arguments) for layout in LAYOUTS}
    recipe, batch = recipes["shared_prefix"], arguments.batch_size
    strategy = start(recipe)
    accelerator = strategy.accelerator
    tokenizer = load_tokenizer(recipe.model, recipe.data)
    rows = encode(read_comparisons(recipe), tokenizer, recipe)
    measured = sample(rows, arguments.steps, batch, recipe.run.seed)
    warm, timed = (stored(some, folder / f"{shape}-{name}") for name, some in (("warm", rows[:batch]), ("timed", measured)))
    runs = {f"ours {layout}": partial(train_ours, recipes[layout], tokenizer, warm, timed, strategy) for layout in LAYOUTS}
    in_order = [measured[i] for i in order(recipe.run.seed, 0, len(measured))]
    cpu = accelerator.device.type == "cpu"
    for name, setting in {
        "trl default": Setting(batch, batch, gradient_checkpointing=True),
        "trl batch 32, no checkpointing": Setting(batch, batch),
        "trl grouped 8": Setting(batch, 8, grouped=True),
        "trl grouped 4": Setting(batch, 4, grouped=True),
    }.items():
        options = {"cpu": cpu, "peft_config": adapters_for_trl(recipe)}
        runs[name] = partial(train_trl, recipe, tokenizer, pairs_of(rows[:batch]), pairs_of(in_order), setting, **options)
    work = {"operations": operations(recipe, tokenizer, measured, accelerator), "tokens": sum(map(unique_tokens, measured))}
    return {name: partial(attempted, run) for name, run in runs.items()}, work


def measure(shape: str, arguments: Namespace, folder: Path, peak: float | None) -> dict[str, Any]:
    """Seconds, tokens and utilisation of every run of a shape."""
    runs, work = runs_of(shape, arguments, folder)
    rounds = {name: [trace for trace in traces if trace] for name, traces in take_turns(runs, arguments.rounds).items()}
    seconds = {name: median(trace.seconds for trace in traces) for name, traces in rounds.items() if traces}
    rows = {}
    for name, spent in seconds.items():
        mfu = work["operations"] / spent / peak if peak else None
        rows[name] = {"seconds": spent, "unique_tokens_per_second": work["tokens"] / spent, "mfu": mfu}
    raw = {name: [asdict(trace) for trace in traces] for name, traces in rounds.items()}
    return {
        "shape": shape,
        **work,
        "runs": rows,
        "out_of_memory": [name for name in rounds if name not in seconds],
        "rounds": raw,
    }


def show_shape(found: dict[str, Any]) -> None:
    """One line a run."""
    runs, lines = found["runs"], []
    ours = runs["ours shared_prefix"]["seconds"]
    for name, one in runs.items():
        mfu = "-" if one["mfu"] is None else f"{one['mfu']:.1%}"
        lines.append([name, one["seconds"], one["unique_tokens_per_second"], mfu, f"{one['seconds'] / ours:.2f}"])
    lines += [[name, "out of memory", "-", "-", "-"] for name in found["out_of_memory"]]
    show(found["shape"], ["run", "seconds", "unique tokens/s", "MFU", "time against ours"], lines)


def figures_of(found: dict[str, Any]) -> list[dict[str, str]]:
    """What was promised of one GPU, and what it is."""
    runs, shape = found["runs"], found["shape"]
    ours, trl = runs["ours shared_prefix"], {name: one["seconds"] for name, one in runs.items() if name.startswith("trl")}
    figures = [figure(f"{shape}, model FLOP utilisation", "-" if ours["mfu"] is None else f"{ours['mfu']:.0%}", "≥ 50 %")]
    if "trl default" in trl:
        ratio = trl["trl default"] / ours["seconds"]
        figures.append(figure(f"{shape}, against TRL as it comes", f"{ratio:.2f} ×", "≥ 3 ×"))
    if trl:
        figures.append(figure(f"{shape}, against TRL at its fastest", f"{min(trl.values()) / ours['seconds']:.2f} ×", "-"))
    return figures


def main() -> None:
    """Measure, print, write."""
    made = parser(__doc__)
    made.add_argument("--data", type=Path, default=HH, help="file of HH transcripts; where it is absent, pairs are generated")
    made.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["pythia-1b", "llama-7b-lora"], help="what is trained")
    made.add_argument("--steps", type=int, default=8, help="measured steps of a run, after one that is not")
    made.add_argument("--rounds", type=int, default=3, help="times that every run takes its turn")
    made.add_argument("--batch-size", type=int, default=32, help="comparisons of a step")
    made.add_argument("--max-tokens", type=int, default=16384, help="our budget of a micro-batch")
    arguments = made.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("gpu.py needs a CUDA device, and there is none here")
    if arguments.quick:
        arguments.shapes, arguments.steps, arguments.rounds, arguments.batch_size = ["tiny"], 2, 1, 8
    about = machine()
    peak = next((value for name, value in PEAKS.items() if name in (about["gpu"] or "")), None)
    with tempfile.TemporaryDirectory() as folder:
        found = [measure(shape, arguments, Path(folder), peak) for shape in arguments.shapes]
    for one in found:
        show_shape(one)
    finish(arguments, {"machine": about, "peak": peak, "shapes": found}, [line for one in found for line in figures_of(one)])


if __name__ == "__main__":
    main()
