"""RMB (arXiv:2410.09893): pairs, and best-of-n rows with two to six losers, for helpfulness and for harmlessness.

A pair is right where its chosen response has the strictly greater reward, a best-of-n row where the best response beats every loser. The
score of a section is the share of its rows that are right. The total is the mean of the four, as in the paper's table; the script
`eval/scripts/my_run_rm.py` of Zhou-Zoey/RMB-Reward-Model-Benchmark stops at the share of a file.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rmtrain.data.comparison import PAIR, Message
from rmtrain.evaluation.benchmarks.base import (
    Benchmark,
    Floats,
    Item,
    Row,
    Rule,
    credit_of_gaps,
    each_over_each,
    lead,
    shared_first,
)
from rmtrain.evaluation.benchmarks.published import cell, matching, number
from rmtrain.evaluation.scores_file import ScoredComparison

SECTIONS = ("Helpfulness pairs", "Helpfulness best-of-n", "Harmlessness pairs", "Harmlessness best-of-n")


class Rmb(Benchmark):
    """See the module; a subset is a scenario, which is a file of the benchmark."""

    name = "rmb"
    title = "RMB"
    sections = SECTIONS
    published = "RMB_dataset of github.com/Zhou-Zoey/RMB-Reward-Model-Benchmark: Pairwise_set and BoN_set"

    def files(self, found: Sequence[Path]) -> list[Path]:
        return matching(found, ["pairwise_set", "bon_set"], parts=0) or list(found)

    def item(self, row: Row, file: Path, index: int) -> Item:
        prompt = _prompt(cell(row, "conversation_input", list))
        source = _source(row)
        if "loser_list" in row:
            losers = [_answer(value, "loser_list") for value in cell(row, "loser_list", list)]
            if not losers:
                raise ValueError("loser_list is empty")
            best = _answer(row.get("bon_best"), "bon_best")
            return Item(str(row.get("bon_uid", index)), source, prompt, (best, *losers), each_over_each(1, len(losers)))
        responses = (_answer(row.get("chosen"), "chosen"), _answer(row.get("reject"), "reject"))
        return Item(str(row.get("pair_uid", index)), source, prompt, responses, PAIR)

    def output(self, row: Row, file: Path, index: int) -> ScoredComparison:
        """Convert a row that `my_run_rm.py` writes: `chosen_reward` and `reject_reward`."""
        rewards = tuple(number(cell(row, column, object), column) for column in ("chosen_reward", "reject_reward"))
        return ScoredComparison(str(row.get("pair_uid", index)), _source(row), rewards, (), PAIR)

    def section(self, subset: str) -> str:
        return _section(subset)

    def credits(self, scored: Sequence[ScoredComparison], rule: Rule) -> Floats:
        return shared_first(scored) if rule == "half_credit" else credit_of_gaps(lead(scored), rule)


def _source(row: Row) -> str:
    path = cell(row, "category_path", str)
    if _section(path) not in SECTIONS:
        raise ValueError(f"category_path: expected Pairwise_set/ or BoN_set/, then Helpfulness or Harmlessness, got {path!r:.60}")
    return path


def _section(source: str) -> str:
    goal = next((goal for goal in ("Helpfulness", "Harmlessness") if goal.lower() in source.lower()), "?")
    return f"{goal} {'best-of-n' if source.lower().startswith('bon') else 'pairs'}"


def _prompt(turns: list[Any]) -> tuple[Message, ...]:
    if not turns or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError("conversation_input: expected a list of messages")
    return tuple({"role": cell(turn, "role", str), "content": cell(turn, "content", str)} for turn in turns)


def _answer(value: Any, column: str) -> str:
    if not isinstance(value, dict):
        raise ValueError(f"{column}: expected {{llm_name, answer}}, got {value!r:.60}")
    return cell(value, "answer", str)


RMB = Rmb()
