"""Lines of a file to what is scored (a conversation, or a prompt with its responses), and back to lines with rewards."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rmtrain.data.comparison import Comparison, Turns
from rmtrain.data.rows.readers import Line, Malformed, Row, parse
from rmtrain.errors import DataError
from rmtrain.evaluation.scorer import ending_with_reply, turns

ONE, SEVERAL = ("response", "completion"), ("responses", "completions")
CONVERSATION = "messages"
WRITTEN = ("reward", "rewards", "best", "input_line", "truncated")
"""Keys that scoring adds to a line."""


@dataclass(frozen=True, slots=True)
class InputRow:
    """A line of the input: its number, its keys, what is scored, and the key of its responses where it has several."""

    number: int
    row: Row
    request: Comparison
    several: str | None


def parse_input(line: Line, number: int) -> InputRow:
    """Parse a line to score.

    It has `messages` that end with the assistant's turn, or `prompt` and one of `response`, `completion`, `responses`, `completions`;
    prompts and responses are texts or messages.

    Raises:
        DataError: the line is neither; one problem, which begins with the file and the line number.
    """
    row = parse(line)
    where = line.where
    if isinstance(row, Malformed):
        raise DataError(row.detail)
    taken = [key for key in WRITTEN if key in row]
    if taken:
        raise DataError(f"{where}: {', '.join(taken)}: rmtrain score writes this key itself; rename it")

    if CONVERSATION in row:
        name = f"{where}: {CONVERSATION}"
        messages = ending_with_reply(turns(row[CONVERSATION], name, "user"), name)
        return InputRow(number, row, Comparison(where, "", messages[:-1], (messages[-1:],), ()), None)

    keys = [key for key in (*ONE, *SEVERAL) if key in row]
    if "prompt" not in row or len(keys) != 1:
        expected = f"{CONVERSATION}, or prompt and one of {', '.join((*ONE, *SEVERAL))}"
        raise DataError(f"{where}: expected {expected}; it has: {', '.join(map(str, row)) or 'nothing'}")
    (key,) = keys
    prompt = turns(row["prompt"], f"{where}: prompt", "user")
    if key in ONE:
        return InputRow(number, row, Comparison(where, "", prompt, (_reply(row[key], f"{where}: {key}"),), ()), None)
    if not isinstance(row[key], list) or not row[key]:
        raise DataError(f"{where}: {key}: expected a list of one or more responses")
    replies = tuple(_reply(value, f"{where}: {key}[{place}]") for place, value in enumerate(row[key]))
    return InputRow(number, row, Comparison(where, "", prompt, replies, ()), key)


def _reply(value: Any, name: str) -> Turns:
    return ending_with_reply(turns(value, name, "assistant"), name)


def format_response(line: InputRow, rewards: Sequence[float], is_cut: bool, best_of: bool) -> dict[str, Any]:
    """Return a line of the output: the keys of the input, then `reward`, or `rewards` in the order of the responses, and `input_line`.

    Args:
        line: the line of the input.
        rewards: one for each of its responses.
        is_cut: some sequence was cut; adds `truncated`.
        best_of: replace the responses by the best one (the first of several) as `response`, with its `reward` and number `best`.
    """
    row = dict(line.row)
    if line.several is None:
        row["reward"] = rewards[0]
    elif best_of:
        best = max(range(len(rewards)), key=rewards.__getitem__)
        row["response"] = row.pop(line.several)[best]
        row |= {"reward": rewards[best], "best": best, "rewards": list(rewards)}
    else:
        row["rewards"] = list(rewards)
    if is_cut:
        row["truncated"] = True
    return {**row, "input_line": line.number}
