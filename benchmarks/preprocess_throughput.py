"""Rows to tokens: `prepare` into an empty cache against RewardTrainer's tokenization, for the same rows, template and tokenizer.

Ours reads the file, splits transcripts into messages, renders, encodes, checks, finds the shared prefix, and writes the artifact. TRL
gets messages in memory and renders, encodes and filters. The tokens of both must be equal.
"""

import sys
import tempfile
import warnings
from argparse import Namespace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import datasets
from datasets import Dataset
from transformers import PreTrainedTokenizerFast
from trl import RewardConfig, RewardTrainer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import figure, finish, machine, median_ratio, now, parser, show, take_turns
from benchmarks.pairs import HH, MAX_LENGTH, hh_rows, llama, read_comparisons, recipe_for
from rmtrain.data.comparison import Comparison
from rmtrain.data.prepare import PreparedData, prepare
from rmtrain.data.text.tokenizer import load_tokenizer
from rmtrain.recipe.schema import Data


def prepare_ours(data: Data, tokenizer: PreTrainedTokenizerFast, folder: Path) -> tuple[float, PreparedData]:
    """Return the seconds and the result of `prepare` into a new cache."""
    fresh = data.model_copy(update={"cache_dir": tempfile.mkdtemp(dir=folder)})
    start = now()
    prepared = prepare(fresh, tokenizer)
    return now() - start, prepared


def prepare_trl(dataset: Dataset, tokenizer: PreTrainedTokenizerFast, processes: int, folder: Path) -> tuple[float, Dataset]:
    """Return the seconds and the result of the work that RewardTrainer does on its dataset when it is created."""
    number = processes if processes > 1 else None
    warnings.simplefilter("ignore", FutureWarning)  # about RewardConfig's own defaults
    arguments = RewardConfig(str(folder / "trl"), max_length=MAX_LENGTH, dataset_num_proc=number, use_cpu=True, bf16=False)
    start = now()
    tokenized = RewardTrainer._prepare_dataset(None, dataset, tokenizer, arguments, "train")
    return now() - start, tokenized


def named(side: str, processes: int) -> str:
    """Return the name of a run."""
    return f"{side}, {processes} process{'es' if processes > 1 else ''}"


def conversational(row: Comparison, label: str) -> dict[str, Any]:
    """Return a row in the form that TRL takes, two whole conversations; its id is that of the same row in the source with this label."""
    chosen, rejected = ([*row.prompt, *response] for response in row.responses)
    return {"id": f"{label}:{row.id.rpartition(':')[2]}", "chosen": chosen, "rejected": rejected}


def check_equal(ours: PreparedData, trl: Dataset) -> int:
    """Check that the rows that both kept have the same tokens; returns their number."""
    theirs = {row["id"]: (row["chosen_ids"], row["rejected_ids"]) for row in trl}
    ids = ours.train.ids
    for number, name in enumerate(ids):
        assert tuple(map(list, ours.train[number].sequences)) == theirs[name], f"{name}: TRL's tokens differ"
    return len(ids)


def measure(arguments: Namespace, folder: Path) -> dict[str, Any]:
    """Return the seconds of both in each round, for each number of processes."""
    file, data_name = hh_rows(arguments.data, folder)
    recipe = recipe_for(file, folder, llama(256))
    tokenizer = load_tokenizer(recipe.model, recipe.data)
    comparisons = read_comparisons(recipe)
    (source,) = recipe.data.train
    sources = tuple(source.model_copy(update={"tag": f"copy{number}"}) for number in range(arguments.copies))
    dataset = Dataset.from_list([conversational(row, source.title) for source in sources for row in comparisons])
    datasets.disable_progress_bars()
    runs = {}
    for processes in arguments.processes:
        data = recipe.data.model_copy(update={"train": sources, "processes": processes})
        runs[named("ours", processes)] = partial(prepare_ours, data, tokenizer, folder)
        runs[named("trl", processes)] = partial(prepare_trl, dataset, tokenizer, processes, folder)
    results = take_turns(runs, arguments.rounds)
    first, second = (results[named(side, arguments.processes[0])][0][1] for side in ("ours", "trl"))
    kept = check_equal(first, second)
    seconds = {name: [spent for spent, _ in result] for name, result in results.items()}
    tokens = int(first.train.total_tokens.sum())
    return {"data": data_name, "pairs": len(dataset), "equal_pairs": kept, "tokens": tokens, "seconds": seconds}


def main() -> None:
    """Measure, print, write."""
    made = parser(__doc__)
    made.add_argument(
        "--data", type=Path, default=HH, help="File of HH transcripts (default: pairs are generated if it is missing)."
    )
    made.add_argument("--copies", type=int, default=1, help="Number of times that the file is read, each time as another source.")
    made.add_argument("--rounds", type=int, default=3, help="Number of rounds; each run takes its turn in each.")
    made.add_argument(
        "--processes",
        type=int,
        nargs="+",
        default=[1],
        help="Numbers of processes; more than one needs many copies to be worth their start.",
    )
    arguments = made.parse_args()
    if arguments.quick:
        arguments.copies, arguments.rounds, arguments.processes = 1, 1, [1]
    about = machine()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(arguments, Path(folder))
    seconds = found["seconds"]
    ratio = {n: median_ratio(seconds[named("trl", n)], seconds[named("ours", n)]) for n in arguments.processes}
    lines = [
        [name, median(spent), found["pairs"] / median(spent), found["tokens"] / median(spent)] for name, spent in seconds.items()
    ]
    show(f"{found['pairs']:,} pairs: {found['data']}", ["run", "seconds", "pairs/s", "tokens/s"], lines)
    figures = [figure(f"preprocessing against {named('TRL', n)}", f"{ratio[n]:.2f} ×", "≥ 2.5 ×") for n in arguments.processes]
    one, *more = arguments.processes
    for n in more:
        gain = median_ratio(seconds[named("ours", one)], seconds[named("ours", n)])
        figures.append(figure(f"preprocessing, {n} processes against {one}", f"{gain:.2f} ×", f"{n / one:g} ×"))
    finish(arguments, {"machine": about, "ratio": ratio, **found}, figures)


if __name__ == "__main__":
    main()
