"""Training steps per second, ours in each layout against TRL's RewardTrainer, on the same pairs from the same weights.

TRL runs as it comes (micro-batches of 32 in random order) and at its fastest (micro-batches of 4 and of 8, grouped by length).
With --model the weights are those of a pretrained model in a directory: a causal one, or an encoder, which shares no prefixes.
With --responses 4 each prompt has four responses and all six pairs: we compute each response once, TRL trains on six pairs a prompt.
Everything takes turns for some rounds; a ratio is the median over rounds of seconds against seconds. Runs that see the same batches
must show the same losses and gradient norms.
"""

import sys
import tempfile
from argparse import Namespace
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from accelerate import Accelerator

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import Trace, console, figure, finish, machine, median_ratio, parser, show, take_turns
from benchmarks.ours import train_ours
from benchmarks.pairs import (
    HH,
    encode,
    groups_of_four,
    hh_rows,
    llama,
    read_comparisons,
    recipe_for,
    stored,
    unique_tokens,
)
from benchmarks.peer import Setting, pairs_of, train_trl
from benchmarks.sampling import sample
from rmtrain.batching.plan import order
from rmtrain.data.text.tokenizer import load_tokenizer
from rmtrain.engine.strategy import Strategy

LAYOUTS = ("shared_prefix", "packed", "padded")
TOLERANCE = 1e-5


def settings_of_trl(batch: int, edges: int) -> dict[str, Setting]:
    """TRL as it comes and at its best. A step is `batch` prompts with `edges` pairs each, for TRL as for us."""
    pairs = batch * edges
    in_order = {"trl by prompt": Setting(pairs, edges)} if edges > 1 else {"trl default": Setting(pairs, pairs)}
    return in_order | {f"trl grouped {size}": Setting(pairs, size, grouped=True) for size in (4, 8)}


def measure(arguments: Namespace, folder: Path) -> dict[str, Any]:
    """Run everything and return what came out, by name of the run."""
    file, data_name = hh_rows(arguments.data, folder)
    training = {"precision": "float32", "batch_size": arguments.batch_size}
    sections: dict[str, dict[str, Any]] = {"training": training, "optimizer": {"lr": arguments.lr}}
    if arguments.model is not None:
        sections |= {"model": {"path": str(arguments.model)}, "data": {"max_length": arguments.max_length}}
    layouts = LAYOUTS[1:] if arguments.encoder else LAYOUTS
    recipes = {
        layout: recipe_for(
            file, folder, llama(arguments.hidden), batching={"max_tokens": arguments.max_tokens, "layout": layout}, **sections
        )
        for layout in layouts
    }
    recipe = recipes[layouts[0]]
    tokenizer = load_tokenizer(recipe.model, recipe.data)
    comparisons = read_comparisons(recipe)
    rows = encode(groups_of_four(comparisons) if arguments.responses == 4 else comparisons, tokenizer, recipe)
    measured = sample(rows, arguments.steps, arguments.batch_size, recipe.run.seed)
    warm, timed = (stored(some, folder / name) for name, some in (("warm", rows[: arguments.batch_size]), ("timed", measured)))
    in_order = [measured[i] for i in order(recipe.run.seed, 0, len(measured))]
    accelerator = Accelerator(cpu=True)
    runs = {
        f"ours {layout}": partial(train_ours, recipes[layout], tokenizer, warm, timed, Strategy(accelerator))
        for layout in layouts
    }
    warm_pairs, timed_pairs = pairs_of(rows[: arguments.batch_size]), pairs_of(in_order)
    for name, setting in settings_of_trl(arguments.batch_size, len(rows[0].preferences)).items():
        runs[name] = partial(train_trl, recipe, tokenizer, warm_pairs, timed_pairs, setting)
    return {
        "data": data_name,
        "prompts": len(measured),
        "unique_tokens": sum(map(unique_tokens, measured)),
        "rounds": take_turns({name: runs[name] for name in runs if name in (arguments.only or runs)}, arguments.rounds),
    }


def ratios_of(rounds: dict[str, list[Trace]]) -> dict[str, float]:
    """How many times as long as ours each run of TRL takes; `trl_best` is the fastest of them."""
    seconds = {name: [trace.seconds for trace in traces] for name, traces in rounds.items()}
    ours = seconds.get("ours shared_prefix", seconds.get("ours packed", []))
    ratios = {name: median_ratio(seconds[name], ours) for name in seconds if ours and name.startswith("trl")}
    named = {name.replace(" ", "_"): ratio for name, ratio in ratios.items()}
    return named | ({"trl_best": min(ratios.values())} if ratios else {})


def same_batches(rounds: dict[str, list[Trace]]) -> dict[str, Trace]:
    """The first trace of each run that goes through the data in the order of our plan."""
    return {name: traces[0] for name, traces in rounds.items() if "grouped" not in name}


def compare_traces(traces: dict[str, Trace]) -> dict[str, dict[str, float]]:
    """Largest differences of loss (absolute) and gradient norm (relative) from the first of some runs."""
    differences = {}
    for name, trace in list(traces.items())[1:]:
        reference = next(iter(traces.values()))
        losses = [abs(a - b) for a, b in zip(trace.losses, reference.losses, strict=True)]
        norms = [abs(a / b - 1) for a, b in zip(trace.grad_norms, reference.grad_norms, strict=True)]
        differences[name] = {"loss": max(losses), "grad_norm": max(norms)}
    return differences


def show_runs(found: dict[str, Any], ratios: dict[str, float], batch_size: int) -> None:
    """One line a run, and the losses and gradient norms of the runs that saw the same batches, side by side."""
    rounds: dict[str, list[Trace]] = found["rounds"]
    lines = []
    for name, traces in rounds.items():
        seconds, computed = median(trace.seconds for trace in traces), traces[0].computed
        ratio = f"{ratios[name.replace(' ', '_')]:.2f}" if name.replace(" ", "_") in ratios else ""
        padding = 1 - traces[0].real / computed
        saved = f"{computed / found['unique_tokens']:.2f}"
        busy = f"{median(trace.cpu_seconds / trace.seconds for trace in traces):.2f}"
        lines.append([name, seconds, busy, found["prompts"] / seconds, computed, f"{padding:.0%}", saved, ratio])
    columns = ["run", "seconds", "cores busy", "prompts/s", "tokens computed", "padding", "of those needed", "time against ours"]
    show(f"{found['prompts']} prompts in steps of {batch_size}: {found['data']}", columns, lines)
    same = same_batches(rounds)
    steps = range(found["prompts"] // batch_size)
    cells = [[i + 1, *(f"{trace.losses[i]:.6f}  {trace.grad_norms[i]:.5f}" for trace in same.values())] for i in steps]
    show("loss and gradient norm of each step", ["step", *same], cells)
    apart = [[name, f"{values['loss']:.1e}", f"{values['grad_norm']:.1e}"] for name, values in compare_traces(same).items()]
    columns = ["run", "loss, absolute", "gradient norm, relative"]
    show(f"largest difference from {next(iter(same), 'the first run')}; at most {TOLERANCE:.0e}", columns, apart)


def figures_of(ratios: dict[str, float], arguments: Namespace) -> list[dict[str, str]]:
    """What was promised of training speed, and what it is."""
    model = f"hidden {arguments.hidden}" if arguments.model is None else arguments.model.name
    what = f"training, {arguments.responses} responses a prompt, {model}, against TRL"
    default, best = (10.0, 8.0 if arguments.responses == 4 else 2.1)
    if arguments.model is not None:
        default, best = (1.8, 1.2) if arguments.encoder else (None, 2.0)
    promised = {
        "trl_default": (f"{what} at batch {arguments.batch_size}", default),
        "trl_best": (f"{what} at its fastest", best),
    }
    return [
        figure(text, f"{ratios[name]:.2f} ×", "-" if promise is None else f"≥ {promise:g} ×")
        for name, (text, promise) in promised.items()
        if name in ratios
    ]


def main() -> None:
    """Measure, print, write, and fail if the losses of equal batches differ."""
    made = parser(__doc__)
    made.add_argument("--data", type=Path, default=HH, help="file of HH transcripts; where it is absent, pairs are generated")
    made.add_argument("--hidden", type=int, default=256, help="width of the llama: 256 (4 layers) or 512 (6 layers)")
    made.add_argument("--model", type=Path, metavar="DIR", help="a pretrained model in place of the llama")
    made.add_argument("--encoder", action="store_true", help="the model is an encoder")
    made.add_argument("--max-length", type=int, default=512, help="longest response of pairs for a pretrained model, in tokens")
    made.add_argument("--lr", type=float, default=1e-4, help="learning rate")
    made.add_argument("--responses", type=int, choices=[2, 4], default=2, help="responses of a prompt")
    made.add_argument("--steps", type=int, default=6, help="measured steps of a run, after one that is not")
    made.add_argument("--rounds", type=int, default=3, help="times that every run takes its turn")
    made.add_argument("--batch-size", type=int, help="prompts of a step; 32, and 8 with four responses")
    made.add_argument("--max-tokens", type=int, default=4096, help="our budget of a micro-batch")
    made.add_argument("--only", action="append", metavar="NAME", help="leave out all runs but this one; may be repeated")
    arguments = made.parse_args()
    arguments.batch_size = arguments.batch_size or (8 if arguments.responses == 4 else 32)
    if arguments.quick:
        arguments.hidden, arguments.steps, arguments.rounds, arguments.batch_size = 64, 2, 1, 8
    about = machine()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(arguments, Path(folder))
    ratios, differences = ratios_of(found["rounds"]), compare_traces(same_batches(found["rounds"]))
    show_runs(found, ratios, arguments.batch_size)
    raw = {name: [asdict(trace) for trace in traces] for name, traces in found["rounds"].items()}
    document = {"machine": about, "ratio": ratios, "differences": differences, **found, "rounds": raw}
    finish(arguments, document, figures_of(ratios, arguments))
    wrong = {name: values for name, values in differences.items() if max(values.values()) > TOLERANCE}
    if wrong:
        console.print(f"[bold red]the same batches gave other numbers: {wrong}")
        raise SystemExit(1)


if __name__ == "__main__":
    main()
