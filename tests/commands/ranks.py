"""One rank of `rmtrain eval` and `score`, for tests: `python -m tests.commands.ranks FOLDER`, alone or under torchrun.

Every case calls what the command line calls. Results go to FOLDER, under relative paths, so that folders compare byte for byte. A file
for each rank has its documents, what it opened for writing, the directories it made, and rewards that it computes on its own.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from rmtrain.cli import print_result
from rmtrain.command_line.exits import exit_process
from rmtrain.command_line.model_options import EvalOptions
from rmtrain.command_line.options import CommandResult
from rmtrain.commands.evaluate import run_eval
from rmtrain.commands.score import ScoreOptions, score
from rmtrain.evaluation.scorer import RewardScorer

SIZES = (1, 7, 8, 9)
SMALL = 100
"""Tokens of a micro-batch that holds a pair or two."""


def cases(inputs: Path) -> Iterator[tuple[str, EvalOptions | ScoreOptions]]:
    """Options by the name of where the result goes."""
    model, other = str(inputs / "model"), str(inputs / "other")
    settings = (f"data.cache_dir={inputs / 'cache'}", f"batching.max_tokens={SMALL}", "data.max_length=96")
    for name, path, size in [*(("a", model, size) for size in SIZES), ("b", other, SIZES[-1])]:
        folder = Path(f"{name}{size}")
        data, report = str(inputs / f"pairs{size}.jsonl"), folder / "report.html"
        yield folder.name, EvalOptions(target=path, overrides=settings, data=data, output=folder, report=report)
    for size in SIZES:
        yield f"score{size}", ScoreOptions(model, str(inputs / f"lines{size}.jsonl"), f"score{size}.jsonl", max_tokens=SMALL)
    yield "compare", EvalOptions(compare=(Path("a9/scores.jsonl"), Path("b9/scores.jsonl")))
    yield "scores", EvalOptions(scores=Path("a9/scores.jsonl"), report=Path("again/report.html"))
    yield (
        "benchmarks",
        EvalOptions(
            target=model, benchmark="rewardbench,rm_bench", data_dir=inputs / "data", output=Path("benchmarks"), max_length=200
        ),
    )
    yield "again", EvalOptions(scores=Path("benchmarks/rm_bench/scores.jsonl"))
    many = str(inputs / "many.jsonl.gz")
    yield "many", ScoreOptions(model, many, "made/many.jsonl", skip_bad=True, max_tokens=1000)
    yield (
        "best",
        ScoreOptions(model, many, "best.jsonl", best_of=True, skip_bad=True, cut=True, max_length=64, max_tokens=1000),
    )


def do(wanted: EvalOptions | ScoreOptions) -> CommandResult:
    if isinstance(wanted, ScoreOptions):
        return score(wanted, Console(stderr=True))
    wanted.check()
    return run_eval(wanted, Console(stderr=True))


def main(inputs: Path) -> None:
    rank = os.environ.get("RANK", "0")
    made: list[str] = []
    documents: dict[str, Any] = {}

    def notice(event: str, arguments: tuple[Any, ...]) -> None:
        is_written = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (is_written or event == "os.mkdir") and isinstance(arguments[0], str | os.PathLike):
            path = Path(os.path.abspath(str(arguments[0]).replace(str(os.getpid()), "PID")))
            if path.is_relative_to(Path.cwd()):
                made.append(f"{event} {path.relative_to(Path.cwd())}")

    sys.addaudithook(notice)
    for name, wanted in cases(inputs):
        outcome = do(wanted)
        documents[name] = outcome.document
        print_result(outcome, as_json=True)
        sys.stdout.flush()
    replies = [[{"role": "user", "content": "p"}, {"role": "assistant", "content": f"reply {n}"}] for n in range(int(rank) + 1)]
    record = {"documents": documents, "made": made, "own": RewardScorer(str(inputs / "model"), device="cpu").score(replies)}
    (inputs / f"rank-{rank}-of-{os.environ.get('WORLD_SIZE', '1')}.json").write_text(json.dumps(record))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    exit_process(0)
