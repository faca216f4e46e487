"""Lines of a file to what is scored: a conversation, or a prompt with its responses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rmtrain.data.comparison import Comparison, Turns
from rmtrain.data.rows.readers import Line, Malformed, Row, parse
from rmtrain.errors import DataError
from rmtrain.evaluation.scorer import ending_with_reply, turns

ONE, SEVERAL = ("response", "completion"), ("responses", "completions")
CONVERSATION = "messages"
WRITTEN = ("reward", "rewards", "best", "input_line", "truncated")
"""Keys that we add."""


@dataclass(frozen=True, slots=True)
class Question:
    """A line of the input: where it stands, its keys, what is scored of it, and the key of its responses, if it has several."""

    number: int
    row: Row
    asked: Comparison
    several: str | None


def read_question(line: Line, number: int) -> Question:
    """What is to be scored of a line.

    It has `messages` that end with the assistant's turn, or `prompt` and one of `response`, `completion`, `responses`, `completions`;
    prompts and responses are texts or messages.

    Raises:
        DataError: it is neither; one line that begins with the file and the number of the line.
    """
    row = parse(line)
    if isinstance(row, Malformed):
        raise DataError(row.detail)
    taken = [key for key in WRITTEN if key in row]
    if taken:
        raise DataError(f"{line.where}: it has {', '.join(taken)} already, which is written here; rename it")
    if CONVERSATION in row:
        return Question(number, row, _conversation(row, line.where), None)
    keys = [key for key in (*ONE, *SEVERAL) if key in row]
    if "prompt" not in row or len(keys) != 1:
        expected = f"{CONVERSATION}, or prompt and one of {', '.join((*ONE, *SEVERAL))}"
        raise DataError(f"{line.where}: expected {expected}; it has: {', '.join(map(str, row)) or 'nothing'}")
    (key,) = keys
    prompt = turns(row["prompt"], f"{line.where}: prompt", "user")
    if key in ONE:
        return Question(number, row, Comparison(line.where, "", prompt, (_reply(row[key], f"{line.where}: {key}"),), ()), None)
    if not isinstance(row[key], list) or not row[key]:
        raise DataError(f"{line.where}: {key}: expected a list of one or more responses")
    replies = tuple(_reply(value, f"{line.where}: {key}[{place}]") for place, value in enumerate(row[key]))
    return Question(number, row, Comparison(line.where, "", prompt, replies, ()), key)


def _conversation(row: Row, where: str) -> Comparison:
    messages = turns(row[CONVERSATION], f"{where}: {CONVERSATION}", "user")
    return Comparison(where, "", messages[:-1], (ending_with_reply(messages, f"{where}: {CONVERSATION}")[-1:],), ())


def _reply(value: Any, name: str) -> Turns:
    return ending_with_reply(turns(value, name, "assistant"), name)


def format_response(question: Question, rewards: Sequence[float], is_cut: bool, best_of: bool) -> Mapping[str, Any]:
    """The line of the output: the keys of the input, then `reward`, or `rewards` in the order of the responses, and `input_line`.

    Args:
        question: the line of the input.
        rewards: of its responses.
        is_cut: whether some sequence was cut.
        best_of: in place of the responses write the best one, the first of several, as `response`, with its `reward` and number `best`.
    """
    row = dict(question.row)
    if question.several is None:
        row["reward"] = rewards[0]
    elif best_of:
        best = max(range(len(rewards)), key=rewards.__getitem__)
        row["response"] = row.pop(question.several)[best]
        row |= {"reward": rewards[best], "best": best, "rewards": list(rewards)}
    else:
        row["rewards"] = list(rewards)
    if is_cut:
        row["truncated"] = True
    return {**row, "input_line": question.number}
