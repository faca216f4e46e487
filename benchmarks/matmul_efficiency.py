"""How much of the machine's matrix-multiplication rate a training step reaches, counted on unique tokens.

A step does 6 P T + 12 L H A floating-point operations: P parameters that are no embedding, T unique tokens, L layers, H the hidden size,
and A the pairs of a token and an earlier or equal one that it sees (arXiv:2001.08361, 2.1: two matmuls of 2 A H forward in each layer,
twice that backward). Of the last layer, only keys and values count for all tokens, the rest where rewards are read. Work that is
repeated, padding, softmax, norms and the optimizer count as nothing. The rate is that of torch.mm on square float32 matrices, measured
before and after every few steps of training in the same process.
"""

import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import figure, finish, machine, now, parser, show
from benchmarks.ours import operations, train_ours
from benchmarks.pairs import (
    HH,
    encode,
    hh_rows,
    llama,
    read_comparisons,
    recipe_for,
    stored,
)
from benchmarks.sampling import sample
from rmtrain.data.text.tokenizer import load_tokenizer
from rmtrain.engine.strategy import Strategy


def matmul_rate(size: int, repeats: int = 5) -> float:
    """Floating-point operations a second of square float32 matrix products; the median of some."""
    a, b, out = torch.randn(size, size), torch.randn(size, size), torch.empty(size, size)
    seconds = []
    for _ in range(repeats):
        start = now()
        torch.mm(a, b, out=out)
        seconds.append(now() - start)
    return 2 * size**3 / median(seconds)


def measure(hidden: int, arguments: Namespace, folder: Path) -> dict[str, Any]:
    """Rates of training and of matmul, round by round, for one size."""
    batch = arguments.batch_size
    file, data_name = hh_rows(arguments.data, folder)
    batching, training = {"layout": "shared_prefix", "max_tokens": arguments.max_tokens}, {"batch_size": batch}
    recipe = recipe_for(file, folder, llama(hidden), batching=batching, training={"precision": "float32", **training})
    tokenizer = load_tokenizer(recipe.model, recipe.data)
    rows = encode(read_comparisons(recipe), tokenizer, recipe)
    measured = sample(rows, arguments.steps, batch, recipe.run.seed)
    warm, timed = (stored(some, folder / f"{name}{hidden}") for name, some in (("warm", rows[:batch]), ("timed", measured)))
    accelerator, rounds = Accelerator(cpu=True), []
    work = operations(recipe, tokenizer, measured, accelerator)
    for _ in range(arguments.rounds):
        before = matmul_rate(arguments.size)
        training_rate = work / train_ours(recipe, tokenizer, warm, timed, Strategy(accelerator)).seconds
        rate = (before + matmul_rate(arguments.size)) / 2
        rounds.append({"training": training_rate, "matmul": rate, "efficiency": training_rate / rate})
    efficiency = median(one["efficiency"] for one in rounds)
    return {"data": data_name, "hidden": hidden, "operations": work, "efficiency": efficiency, "rounds": rounds}


def main() -> None:
    """Measure, print, write."""
    made = parser(__doc__)
    made.add_argument("--data", type=Path, default=HH, help="file of HH transcripts; where it is absent, pairs are generated")
    made.add_argument("--hidden", type=int, nargs="+", default=[256, 512], help="widths of the llamas")
    made.add_argument("--steps", type=int, default=4, help="measured steps of a round, after one that is not")
    made.add_argument("--rounds", type=int, default=3, help="rounds of matmul, training, matmul")
    made.add_argument("--batch-size", type=int, default=32, help="comparisons of a step")
    made.add_argument("--max-tokens", type=int, default=4096, help="budget of a micro-batch")
    made.add_argument("--size", type=int, default=2048, help="side of the matrices")
    arguments = made.parse_args()
    if arguments.quick:
        arguments.hidden, arguments.steps, arguments.rounds, arguments.batch_size, arguments.size = [64], 2, 1, 8, 512
    about = machine()
    with tempfile.TemporaryDirectory() as folder:
        found = [measure(hidden, arguments, Path(folder)) for hidden in arguments.hidden]
    lines = []
    for one in found:
        rates = [median(round_[name] for round_ in one["rounds"]) / 1e9 for name in ("training", "matmul")]
        lines.append([one["hidden"], *rates, f"{one['efficiency']:.0%}"])
    show(found[0]["data"], ["hidden", "training, GFLOP/s", "matmul, GFLOP/s", "efficiency"], lines)
    figures = [
        figure(
            f"matmul efficiency, hidden {one['hidden']}", f"{one['efficiency']:.0%}", "≥ 75 %" if one["hidden"] >= 512 else "-"
        )
        for one in found
    ]
    finish(arguments, {"machine": about, "sizes": found}, figures)


if __name__ == "__main__":
    main()
