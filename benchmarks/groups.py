"""Scoring prompts with six responses each: ours, which computes a prompt once and pads nothing, against padded forwards.

The padded forwards are transformers' own, on the same weights, in the order of the data:
1. all pairs: the nine (chosen, rejected) pairs of a prompt, eight pairs at a time, as a trainer of pairs evaluates them;
2. responses: each response once, those of eight prompts at a time;
3. one by one: each response alone, which pads nothing and shares nothing.
The second knows that a response has one reward, and its tokens bound the ratio: RM-Bench's prompts are short, so it is padding alone.
Rewards must be equal to 1e-5, or the benchmark fails.
"""

import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import figure, finish, machine, median_ratio, now, parser, show, take_turns
from benchmarks.pairs import HH, RMBENCH, encode, groups_of_six, hh_rows, llama, recipe_for, stored, unique_tokens
from rmtrain.batching.plan import Costs
from rmtrain.data.comparison import TokenizedComparison
from rmtrain.data.prepare import PreparedData
from rmtrain.data.text.tokenizer import load_tokenizer
from rmtrain.evaluation.scoring import ScoringPlan, score
from rmtrain.model.build import build_reward_model
from rmtrain.model.reward_model import RewardModel, evaluating

AT_A_TIME = 8
TOLERANCE = 1e-5
Rewards = list[tuple[float, ...]]


def score_ours(
    model: RewardModel, data: PreparedData, pad: int, max_tokens: int, accelerator: Accelerator
) -> tuple[float, Rewards]:
    """Seconds and rewards of `rmtrain.evaluation.scoring` in the shared_prefix layout."""
    model.use_layout("shared_prefix")
    start = now()
    costs = Costs.of(data.train, "shared_prefix")
    scored = score(model, ScoringPlan.of(data.train, "shared_prefix", costs, max_tokens, pad), accelerator)
    return now() - start, [row.rewards for row in scored]


def score_padded(
    model: RewardModel,
    rows: Sequence[TokenizedComparison],
    tokenizer: PreTrainedTokenizerFast,
    as_pairs: bool,
    size: int | None = None,
) -> tuple[float, Rewards]:
    """Seconds and rewards of padded batches in the order of the data, of `size` sequences where it is given."""
    model.use_layout("padded")
    wanted = [_needed(row, as_pairs) for row in rows]
    sequences = [row.sequences[k] for row, numbers in zip(rows, wanted, strict=True) for k in numbers]
    size = size or AT_A_TIME * (2 if as_pairs else len(rows[0].sequences))
    start = now()
    with evaluating(model):
        pieces = [_forward(model, sequences[begin : begin + size], tokenizer) for begin in range(0, len(sequences), size)]
    flat = iter(torch.cat(pieces).tolist())
    rewards = [dict(zip(numbers, [next(flat) for _ in numbers], strict=True)) for numbers in wanted]
    return now() - start, [tuple(of_row[k] for k in sorted(of_row)) for of_row in rewards]


def _needed(row: TokenizedComparison, as_pairs: bool) -> list[int]:
    """The responses that are computed, in order; a response is in three pairs."""
    if as_pairs:
        return [k for edge in row.preferences for k in (edge.winner, edge.loser)]
    return list(range(len(row.sequences)))


def _forward(model: RewardModel, sequences: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerFast) -> Tensor:
    batch = tokenizer.pad({"input_ids": [list(map(int, sequence)) for sequence in sequences]}, return_tensors="pt")
    logits: Tensor = model.backbone(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return logits[:, 0].float()


def padded_tokens(rows: Sequence[TokenizedComparison], as_pairs: bool) -> int:
    """Tokens that the padded forward computes."""
    lengths = [len(row.sequences[k]) for row in rows for k in _needed(row, as_pairs)]
    size = AT_A_TIME * (2 if as_pairs else len(rows[0].sequences))
    pieces = [lengths[begin : begin + size] for begin in range(0, len(lengths), size)]
    return sum(len(piece) * max(piece) for piece in pieces)


def measure(arguments: Namespace, folder: Path) -> dict[str, Any]:
    """Seconds of each run in each round, tokens, and the largest difference of a reward from ours."""
    file, _ = hh_rows(HH, folder)
    recipe = recipe_for(file, folder, llama(arguments.hidden))
    tokenizer = load_tokenizer(recipe.model, recipe.data)
    rows = encode(groups_of_six(arguments.data)[: arguments.prompts], tokenizer, recipe)
    model = build_reward_model(recipe.model, None, tokenizer, 1)
    data, accelerator = stored(rows, folder / "groups"), Accelerator(cpu=True)
    score_padded(model, rows[:1], tokenizer, True)  # the first forward of a process is slower
    results = take_turns(
        {
            "ours": partial(score_ours, model, data, tokenizer.pad_token_id, arguments.max_tokens, accelerator),
            "padded, all pairs": partial(score_padded, model, rows, tokenizer, True),
            "padded, responses": partial(score_padded, model, rows, tokenizer, False),
            "one by one": partial(score_padded, model, rows, tokenizer, False, 1),
        },
        arguments.rounds,
    )
    seconds = {name: [spent for spent, _ in runs] for name, runs in results.items()}
    ours = torch.tensor(results["ours"][0][1])
    tokens = {"ours": sum(map(unique_tokens, rows))}
    tokens |= {f"padded, {name}": padded_tokens(rows, name == "all pairs") for name in ("all pairs", "responses")}
    tokens["one by one"] = sum(len(sequence) for row in rows for sequence in row.sequences)
    differences = {name: float((torch.tensor(runs[0][1]) - ours).abs().max()) for name, runs in results.items()}
    return {"prompts": len(rows), "seconds": seconds, "tokens": tokens, "max_difference": differences}


def main() -> None:
    """Measure, print, write."""
    made = parser(__doc__)
    made.add_argument("--data", type=Path, default=RMBENCH, help="RM-Bench file; where it is absent, groups are generated")
    made.add_argument("--hidden", type=int, default=256, help="width of the llama")
    made.add_argument("--prompts", type=int, default=64, help="prompts that are scored")
    made.add_argument("--rounds", type=int, default=3, help="times that every run takes its turn")
    made.add_argument("--max-tokens", type=int, default=8192, help="our budget of a micro-batch")
    arguments = made.parse_args()
    if arguments.quick:
        arguments.hidden, arguments.prompts, arguments.rounds = 64, 8, 1
    about = machine()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(arguments, Path(folder))
    seconds = found["seconds"]
    ratio = {name: median_ratio(spent, seconds["ours"]) for name, spent in seconds.items() if name != "ours"}
    lines = [
        [name, median(spent), found["tokens"][name], f"{ratio.get(name, 1):.2f}", f"{found['max_difference'][name]:.1e}"]
        for name, spent in seconds.items()
    ]
    name = arguments.data.name if arguments.data.exists() else f"{arguments.data.name} is absent: generated groups"
    columns = ["run", "seconds", "tokens computed", "time against ours", "largest difference"]
    show(f"{found['prompts']} prompts with six responses: {name}", columns, lines)
    figures = [
        figure("scoring six responses a prompt, against all pairs padded", f"{ratio['padded, all pairs']:.2f} ×", "≥ 6 ×"),
        figure("scoring six responses a prompt, against each response padded", f"{ratio['padded, responses']:.2f} ×", "-"),
        figure("scoring six responses a prompt, against one by one", f"{ratio['one by one']:.2f} ×", "-"),
    ]
    finish(arguments, {"machine": about, "ratio": ratio, **found}, figures)
    worst = max(found["max_difference"], key=found["max_difference"].__getitem__)
    if not found["max_difference"][worst] <= TOLERANCE:
        raise SystemExit(
            f"rewards of {worst!r} differ by {found['max_difference'][worst]:.2g} from ours; at most {TOLERANCE:g} is allowed"
        )


if __name__ == "__main__":
    main()
