"""Everything that is measured on one GPU, within some minutes: `make gpu`, or `python benchmarks/gpu.py --json FILE`.

1. equality: rewards, losses and gradients of every layout and kernel against padded written-out attention, in three types;
2. parity: 20 steps in float32 against the CPU;
3. memory: the automatic budget, running out of memory, and the estimate against what is allocated;
4. speed: pythia-1b's shape and a 7B llama with LoRA, random weights, bfloat16, in each layout, and TRL where it is installed.

Where there is no GPU it is a rehearsal: the same code on the CPU with tiny sizes. What only a GPU can tell is then not measured.
Exits with 1 where something is out of its bounds, ended with an error, or did not finish in time. It needs no network, TRL or pytest.

TRL runs at batch 32 with gradient checkpointing, which is how it comes, and without; and at its fastest, micro-batches grouped by length.
MFU is model FLOP utilisation on unique tokens: 6 P T + 12 L H A operations (see matmul_efficiency.py; with LoRA the frozen
parameters need no gradient and count 4 P T) over what the GPU can do in dense bfloat16.
"""

import signal
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.state import AcceleratorState
from peft import LoraConfig, TaskType
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import Trace, figure, finish, installed, machine, parser, show, write
from benchmarks.gpu_checks import Inputs, Line, equality, freed, guarded, memory, parity
from benchmarks.ours import operations, train_ours
from benchmarks.pairs import HH, encode, hh_rows, read_comparisons, recipe_for, stored, unique_tokens
from benchmarks.sampling import sample
from rmtrain.batching.layout import Layout
from rmtrain.batching.plan import order
from rmtrain.data.comparison import TokenizedComparison
from rmtrain.data.text.tokenizer import load_tokenizer
from rmtrain.engine.distributed import start
from rmtrain.recipe.schema import Recipe

BEGAN = time.monotonic()
LAYOUTS: tuple[Layout, ...] = ("shared_prefix", "packed", "padded")
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
    "tiny": {"scratch": {"architecture": "gpt_neox", "hidden_size": 64, "layers": 2, "heads": 2}, "model": {}},
}
LEAST_SECONDS = 15
"""A part that has less time is skipped."""


class Workload(NamedTuple):
    """What the runs of a shape share: recipes by layout, the steps before the clock and those on it, operations and unique tokens."""

    recipes: dict[str, Recipe]
    tokenizer: PreTrainedTokenizerFast
    warm: list[TokenizedComparison]
    timed: list[TokenizedComparison]
    work: dict[str, int]


def workload(shape: str, inputs: Inputs, arguments: Namespace) -> Workload:
    """Choose the comparisons that a shape is measured with, and count the work."""
    keys, batch = SHAPES[shape], 8 if inputs.quick else 32
    sections = {name: section for name, section in keys.items() if name not in ("scratch", "model")}
    sections["model"] = {"scratch": {**keys["scratch"], "vocab_size": 8192, "max_positions": 2048}, **keys["model"]}
    sections["training"] = {"precision": "bfloat16", "batch_size": batch}
    recipes = {
        layout: recipe_for(
            inputs.file, inputs.folder, {}, batching={"layout": layout, "max_tokens": arguments.max_tokens}, **sections
        )
        for layout in LAYOUTS
    }
    recipe = recipes["shared_prefix"]
    tokenizer = load_tokenizer(recipe.model, recipe.data)
    rows = encode(read_comparisons(recipe), tokenizer, recipe)
    timed = sample(rows, 2 if inputs.quick else arguments.steps, batch, recipe.run.seed)
    work = {
        "operations": operations(recipe, tokenizer, timed, start(recipe).accelerator),
        "tokens": sum(map(unique_tokens, timed)),
    }
    return Workload(recipes, tokenizer, rows[:batch], timed, work)


def ours(load: Workload, folder: Path) -> dict[str, Callable[[], Trace]]:
    """Our run in each layout."""
    strategy = start(load.recipes["shared_prefix"])
    warm, timed = (stored(rows, folder / name) for name, rows in (("warm", load.warm), ("timed", load.timed)))
    return {
        f"ours {layout}": partial(train_ours, recipe, load.tokenizer, warm, timed, strategy)
        for layout, recipe in load.recipes.items()
    }


def trl(load: Workload, quick: bool) -> dict[str, Callable[[], Trace]]:
    """TRL's run in each setting, on the same comparisons in the order of our plan; none where it is not installed."""
    if installed("trl") is None:
        return {}
    from benchmarks.peer import Setting, pairs_of, train_trl

    recipe, batch = load.recipes["shared_prefix"], len(load.warm)
    in_order = [load.timed[i] for i in order(recipe.run.seed, 0, len(load.timed))]
    settings = {"trl default": Setting(batch, batch, gradient_checkpointing=True)}
    if not quick:
        settings["trl grouped 8"] = Setting(batch, 8, grouped=True)
        settings["trl batch 32, no checkpointing"] = Setting(batch, batch)
        settings["trl grouped 4"] = Setting(batch, 4, grouped=True)
    peft = None
    if recipe.lora is not None:
        lora = {"r": recipe.lora.rank, "lora_alpha": recipe.lora.alpha, "target_modules": "all-linear"}
        peft = LoraConfig(task_type=TaskType.SEQ_CLS, modules_to_save=["score"], **lora)
    options = {"cpu": not torch.cuda.is_available(), "peft_config": peft}
    warm, timed = pairs_of(load.warm), pairs_of(in_order)
    return {
        name: partial(train_trl, recipe, load.tokenizer, warm, timed, setting, **options) for name, setting in settings.items()
    }


def speed(inputs: Inputs, arguments: Namespace) -> Iterator[Line]:
    """Unique tokens a second and utilisation of every run: ours of every shape, then TRL's."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    peak = next((value for name, value in PEAKS.items() if name in gpu), None)
    shapes = ["tiny"] if inputs.quick else arguments.shapes
    loads = {shape: freed(workload, shape, inputs, arguments) for shape in shapes}
    for side in ("ours", "trl"):
        for shape, load in loads.items():
            runs = ours(load, inputs.folder / shape) if side == "ours" else trl(load, inputs.quick)
            for name, run in runs.items():
                yield from guarded(shape, rate(shape, name, run, load.work, peak))


def rate(shape: str, name: str, run: Callable[[], Trace], work: dict[str, int], peak: float | None) -> Iterator[Line]:
    """The line of a run; without a value where the memory does not hold it."""
    details: dict[str, Any] = {"run": name, "mfu": None, **work}
    try:
        trace = freed(run)
    except torch.OutOfMemoryError:
        yield Line(shape, f"{name}: unique tokens/s", None, details={**details, "not_measured": "out of memory"})
        return
    if peak:
        details["mfu"] = work["operations"] / trace.seconds / peak
    yield Line(shape, f"{name}: unique tokens/s", work["tokens"] / trace.seconds, details={**details, **asdict(trace)})


PARTS: dict[str, tuple[Callable[..., Iterator[Line]], float]] = {
    "equality": (equality, 0.30),
    "parity": (parity, 0.05),
    "memory": (memory, 0.20),
    "speed": (speed, 0.45),
}
"""Each part, and its share of the time; what a part leaves goes to those after it."""


class TimeIsUp(BaseException):
    """The part has used up its time. No Exception, or libraries would catch it."""


def carry_out(lines: Iterator[Line], limit: float) -> dict[str, Any]:
    """Run a part for at most `limit` seconds; return its lines, whatever ended it."""
    found: list[Line] = []
    began, problem, status = time.monotonic(), None, "finished"

    def ring(*_: Any) -> None:
        raise TimeIsUp

    AcceleratorState._reset_state(
        reset_partial_state=True
    )  # accelerate holds on to its first device, which may be another part's
    before = signal.signal(signal.SIGALRM, ring)
    try:
        if limit < LEAST_SECONDS:
            raise TimeIsUp
        signal.setitimer(signal.ITIMER_REAL, limit)
        for line in lines:
            found.append(line)
            print(f"{time.monotonic() - began:4.0f} s  {line.case}  {line.what}", file=sys.stderr, flush=True)
    except TimeIsUp:
        status = "out of time" if limit >= LEAST_SECONDS else "skipped"
    except Exception as error:
        status, problem = "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    rows = [{**asdict(line), "passed": line.passed} for line in found]
    return {"status": status, "problem": problem, "seconds": time.monotonic() - began, "limit": limit, "lines": rows}


def failures(parts: dict[str, dict[str, Any]]) -> list[str]:
    """One line for each number out of its bounds, and for each part that did not finish."""
    found = []
    for name, part in parts.items():
        for line in part["lines"]:
            if line["passed"] is False:
                found.append(f"{name}: {line['case']}: {line['what']}: {line['value']:.3g}, expected {bounds(line)}")
        if part["status"] != "finished":
            found.append(
                f"{name}: {part['status']} after {part['seconds']:.0f} of {part['limit']:.0f} s {part['problem'] or ''}".strip()
            )
    return found


def bounds(line: dict[str, Any]) -> str:
    """What a value must keep, in words; a dash where there is nothing."""
    least, most = line["least"], line["most"]
    words = [*([] if least is None else [f"≥ {least:.3g}"]), *([] if most is None else [f"≤ {most:.3g}"])]
    return " and ".join(words) or "-"


def show_parts(parts: dict[str, dict[str, Any]]) -> None:
    """One table of everything; of what was compared in a type, the line nearest to its bound, and each beyond it."""
    rows: list[Sequence[Any]] = []
    for name, part in parts.items():
        for line in nearest(part["lines"]):
            value = "not measured" if line["value"] is None else line["value"]
            kept = {True: "yes", False: "NO", None: "-"}[line["passed"]]
            rows.append([f"{name}: {line['case']}: {line['what']}", value, bounds(line), kept])
        rows.append([f"{name}: {part['status']}", f"{part['seconds']:.0f} s", f"≤ {part['limit']:.0f} s", ""])
    show("one GPU", ["", "value", "expected", "kept"], rows)


def nearest(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines without a type, those that failed, and of each case and type the nearest to its bound, with every kernel that was taken."""
    groups: dict[Any, list[dict[str, Any]]] = {}
    for number, line in enumerate(lines):
        alone = line["passed"] is False or "dtype" not in line["details"]
        groups.setdefault(number if alone else (line["case"], line["details"]["dtype"]), []).append(line)
    shown = []
    for group in groups.values():
        line = group[0]
        if len(group) > 1:
            line = max(group, key=lambda one: one["value"] / one["most"])
            kernels = sorted({one["details"]["kernel"] for one in group})
            line = {**line, "what": f"{line['what']} (nearest of {len(group)}: {', '.join(kernels)})"}
        shown.append(line)
    return shown


def figures_of(lines: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """What was promised of one GPU, and what it is; against our own padded layout where there is no TRL."""
    figures = []
    for shape in dict.fromkeys(str(line["case"]) for line in lines):
        mine = (line for line in lines if line["case"] == shape and line["value"] is not None)
        runs = {line["details"]["run"]: line for line in mine if "run" in line["details"]}
        if "ours shared_prefix" not in runs:
            continue
        rate, mfu = runs["ours shared_prefix"]["value"], runs["ours shared_prefix"]["details"]["mfu"]
        figures.append(figure(f"{shape}, model FLOP utilisation", "-" if mfu is None else f"{mfu:.0%}", "≥ 50 %"))
        peers = {name: line["value"] for name, line in runs.items() if name.startswith("trl")}
        if "trl default" in peers:
            figures.append(figure(f"{shape}, against TRL as it comes", f"{rate / peers['trl default']:.2f} ×", "≥ 3 ×"))
        if peers:
            figures.append(figure(f"{shape}, against TRL at its fastest", f"{rate / max(peers.values()):.2f} ×", "-"))
        elif "ours padded" in runs:
            figures.append(
                figure(f"{shape}, against our padded layout, without TRL", f"{rate / runs['ours padded']['value']:.2f} ×", "-")
            )
    return figures


def main(argv: Sequence[str] | None = None) -> None:
    """Run the parts, print, write after each part, and exit with 1 where something failed."""
    made = parser(__doc__)
    made.add_argument("--data", type=Path, default=HH, help="file of HH transcripts; where it is absent, pairs are generated")
    made.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="what is run")
    made.add_argument("--minutes", type=float, default=8.0, help="time for all parts; what does not fit is left out")
    made.add_argument(
        "--shapes", nargs="+", choices=list(SHAPES), default=["pythia-1b", "llama-7b-lora"], help="what speed trains"
    )
    made.add_argument("--steps", type=int, default=8, help="steps that speed measures in each run, after one that it does not")
    made.add_argument("--max-tokens", type=int, default=16384, help="our budget of a micro-batch, for speed")
    arguments = made.parse_args(argv)
    quick = arguments.quick or not torch.cuda.is_available()
    began = time.monotonic() if argv is not None else BEGAN
    document: dict[str, Any] = {"machine": machine(), "rehearsal": quick, "parts": {}}
    parts = document["parts"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file, document["data"] = hh_rows(folder / "absent" if quick else arguments.data, folder, 100 if quick else 1800)
        inputs = Inputs(file, folder, quick)
        waiting = [part for part in PARTS if part in arguments.parts]
        for number, part in enumerate(waiting):
            left = 60 * arguments.minutes - (time.monotonic() - began)
            run, share = PARTS[part]
            limit = left * share / sum(PARTS[later][1] for later in waiting[number:])
            lines = run(inputs, arguments) if run is speed else run(inputs)
            parts[part] = carry_out(lines, limit)
            document["failures"] = failures(parts)
            write(arguments, document, [])
    show_parts(parts)
    if quick:
        print("a rehearsal: sizes are tiny, and the numbers mean nothing")
    elif "speed" in parts:
        finish(arguments, document, figures_of(parts["speed"]["lines"]))
    if document["failures"]:
        raise SystemExit("\n".join(document["failures"]))


if __name__ == "__main__":
    main()
