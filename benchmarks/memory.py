"""Peak memory of training against the number of comparisons in a step, at one token budget, and TRL's at batch 32.

Every measurement is a process of its own: resident memory at its peak minus resident memory before the model is built, so that libraries
and data do not count. Weights, gradients and AdamW's state do; they are the same for both, 16 bytes a parameter. The C library must
return large blocks at once: by default it keeps what was freed, the more the longer a process runs, on either side. Needs Linux.
"""

import json
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from statistics import median

from accelerate import Accelerator

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import figure, finish, in_fresh_processes, machine, parser, peak_bytes, reset_peak, rss_bytes, show
from benchmarks.ours import train_ours
from benchmarks.pairs import HH, encode, hh_rows, llama, read_comparisons, recipe_for, stored
from benchmarks.peer import Setting, pairs_of, train_trl
from benchmarks.sampling import sample
from rmtrain.data.text.tokenizer import load_tokenizer
from rmtrain.engine.strategy import Strategy
from rmtrain.model.build import build_reward_model

MEGABYTE = 10**6


def measure_here(side: str, batch: int, arguments: Namespace) -> dict[str, int]:
    """Train a few steps in this process; return the growth of its memory, and the bytes of weights, gradients and optimizer state."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file, _ = hh_rows(arguments.data, folder)
        batching = {"layout": arguments.layout, "max_tokens": arguments.max_tokens}
        training = {"precision": "float32", "batch_size": batch}
        recipe = recipe_for(file, folder, llama(arguments.hidden), batching=batching, training=training)
        tokenizer = load_tokenizer(recipe.model, recipe.data)
        rows = encode(read_comparisons(recipe), tokenizer, recipe)
        measured = sample(rows, max(1, arguments.comparisons // batch), batch, recipe.run.seed)
        warm, timed = (stored(some, folder / part) for part, some in (("warm", rows[:batch]), ("timed", measured)))
        state = 16 * sum(parameter.numel() for parameter in build_reward_model(recipe.model, None, tokenizer, 1).parameters())
        reset_peak()
        before = rss_bytes()
        if side == "ours":
            train_ours(recipe, tokenizer, warm, timed, Strategy(Accelerator(cpu=True)))
        else:
            pairs = pairs_of(measured)
            train_trl(recipe, tokenizer, pairs[:batch], pairs, Setting(batch, batch))
        return {"growth": peak_bytes() - before, "state": state}


def measure(side: str, batch: int, arguments: Namespace) -> list[dict[str, int]]:
    """Measure in fresh processes."""
    names = ("data", "hidden", "layout", "max_tokens", "comparisons")
    options = [f"--{name.replace('_', '-')}={getattr(arguments, name)}" for name in names]
    command = [sys.executable, __file__, f"--child={side}:{batch}", *options]
    return in_fresh_processes(command, arguments.repeats, MALLOC_MMAP_THRESHOLD_=str(2**20))


def main() -> None:
    """Measure, print and write; or be the process that is measured."""
    made = parser(__doc__)
    made.add_argument("--data", type=Path, default=HH, help="file of HH transcripts; pairs are generated where it is missing")
    made.add_argument("--hidden", type=int, default=256, help="width of the llama")
    made.add_argument("--layout", default="shared_prefix", help="our layout")
    made.add_argument("--max-tokens", type=int, default=4096, help="our token budget of a micro-batch")
    made.add_argument("--comparisons", type=int, default=128, help="comparisons to train on in each process")
    made.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 32, 128], help="comparisons of one of our steps")
    made.add_argument("--repeats", type=int, default=3, help="processes for each line, of which the median counts")
    made.add_argument("--child", help="side:batch to measure in this process")
    arguments = made.parse_args()
    if arguments.child:
        side, _, batch = arguments.child.partition(":")
        print(json.dumps(measure_here(side, int(batch), arguments)))
        return
    if not Path("/proc/self/clear_refs").exists():
        raise SystemExit("memory.py reads /proc, which only Linux has")
    if arguments.quick:
        arguments.hidden, arguments.comparisons, arguments.repeats, arguments.batch_sizes = 64, 32, 1, [8, 16]
    about = machine()
    runs = [("ours", batch) for batch in arguments.batch_sizes] + [("trl", 16 if arguments.quick else 32)]
    found = {f"{side}, batch {batch}": measure(side, batch, arguments) for side, batch in runs}
    growth = {name: median(one["growth"] for one in results) for name, results in found.items()}
    state = next(iter(found.values()))[0]["state"]
    lines = [[name, round(value / MEGABYTE), round((value - state) / MEGABYTE)] for name, value in growth.items()]
    show(
        f"hidden {arguments.hidden}, {arguments.layout}, {arguments.max_tokens:,} tokens",
        ["run", "MB", "MB of activations"],
        lines,
    )
    *ours, trl = growth.values()
    figures = [
        figure("peak memory, largest batch against smallest", f"{max(ours) / min(ours):.2f} ×", "1 ×"),
        figure("peak memory against TRL's at batch 32", f"{max(ours) / trl:.2f} ×", "< 0.1 ×"),
    ]
    finish(arguments, {"machine": about, "peak_growth_bytes": growth, "state_bytes": state, "runs": found}, figures)


if __name__ == "__main__":
    main()
