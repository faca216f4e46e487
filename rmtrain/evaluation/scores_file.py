"""`scores.jsonl`, the rewards of each row, and `scores.settings.json`, what they depend on: all numbers come from these two files."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from rmtrain.data.artifact import TokenizedData
from rmtrain.data.comparison import Preference, Target
from rmtrain.data.rows.readers import Line, Malformed, has_lone_surrogate, open_bytes, read_lines
from rmtrain.errors import DataError, NumericError, missing
from rmtrain.files import atomic_write, read_json, write_text
from rmtrain.recipe.schema import BradleyTerry, Data, Objectives

Settings = Mapping[str, Any]
DECISIVE = ("benchmark", "dtype", "max_length", "overlong", "template_sha256", "rows_sha256", "ties")
"""Settings that change rewards. The others, such as how many rows were cut, are only shown."""
TIES = "equal float32 rewards; counted apart, wrong by the strict rule"
NUMBERS = (int, float)
"""Types of the numbers of JSON; `bool` would pass `isinstance`."""
PACKAGES = ("rmtrain", "torch", "transformers")
MAX_PROBLEMS = 10
LARGEST = float(np.finfo(np.float32).max)
Converted = TypeVar("Converted")
OBJECTIVE: TypeAdapter[Objectives] = TypeAdapter(Objectives)


@dataclass(frozen=True, slots=True)
class ScoredComparison:
    """A comparison with a reward for each of its responses.

    `rewards` and `lengths` are in the order of the responses; a pair's chosen response is number 0. Rewards are float32 values
    held as Python floats, which is exact. Lengths are in tokens, prompt included, before anything was cut; empty when they are not known.
    `cut` is how many of these tokens were cut before scoring, empty where none were. `prompt` is the same for rows of the same prompt, in
    any source; empty when it is not known. `weight` is that of the comparison in the loss. `shown` is the place where a benchmark shows
    each response, empty where its rule does not depend on it.
    """

    id: str
    source: str
    rewards: tuple[float, ...]
    lengths: tuple[int, ...]
    preferences: tuple[Preference, ...]
    targets: tuple[Target, ...] = ()
    weight: float = 1.0
    shown: tuple[int, ...] = ()
    prompt: str = ""
    cut: tuple[int, ...] = ()


def prompt_numbers(rows: Iterable[ScoredComparison]) -> NDArray[np.int64]:
    """Number the prompts of rows: equal prompts have one number, and so has each row whose prompt is not known."""
    numbers: dict[str | int, int] = {}
    return np.array([numbers.setdefault(row.prompt or place, len(numbers)) for place, row in enumerate(rows)], np.int64)


def unknown_prompts(rows: Sequence[ScoredComparison]) -> list[str]:
    """Return a warning where the prompts of rows are not known: their intervals take these rows to be independent."""
    unknown = sum(not row.prompt for row in rows)
    if not unknown:
        return []
    return [
        f"{unknown:,} of {len(rows):,} rows do not name their prompt: if rows share prompts, the intervals are too narrow; "
        "score again to add `prompt`"
    ]


def write_scores(path: Path, rows: Iterable[ScoredComparison], settings: Settings | None = None) -> None:
    """Write one JSON object a line, all of them or none, and then the settings, if any; the folder is created.

    A reward is written with all its digits, so that any reader gets back the same float32.

    Raises:
        NumericError: a reward is not finite; names the row, and leaves `path` unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        for row in rows:
            if not all(map(math.isfinite, row.rewards)):
                raise NumericError(f"row {row.id!r} of source {row.source!r}: expected finite rewards, got {list(row.rewards)}")
            fields: dict[str, Any] = {
                "id": row.id,
                "source": row.source,
                "rewards": [float(reward) for reward in row.rewards],
                "lengths": [int(length) for length in row.lengths],
                "preferences": [
                    [edge.winner, edge.loser, edge.margin, edge.probability, edge.weight] for edge in row.preferences
                ],
            }
            if row.targets:
                fields["targets"] = [[target.response, target.value, target.weight] for target in row.targets]
            fields |= {"weight": row.weight} if row.weight != 1 else {}
            fields |= {"prompt": row.prompt} if row.prompt else {}
            fields |= {name: list(values) for name, values in (("cut", row.cut), ("shown", row.shown)) if values}
            file.write((json.dumps(fields, ensure_ascii=False, allow_nan=False) + "\n").encode())
    if settings is not None:
        write_settings(path, settings)


def read_scores(path: Path) -> list[ScoredComparison]:
    """Read what `write_scores` wrote, or minimal lines `{"id", "source", "rewards"}` made elsewhere.

    A line without `preferences` and `targets` is a best-first list: its first response is preferred to each of the others. `prompt` is
    anything that
    is equal for rows of one prompt, such as its text. Rewards may be NaN or infinite here; `summarize` refuses all such rows at once.
    Other keys are ignored. Raises DataError for malformed rows.
    """
    line_of: dict[tuple[str, str], int] = {}

    def row_of(line: Line | Malformed, number: int) -> ScoredComparison:
        if isinstance(line, Malformed):
            raise ValueError(line.detail.partition(": ")[2])
        row = _parse(line.content.decode())
        first = line_of.setdefault((row.source, row.id), number)
        if first != number:
            raise ValueError(f"duplicate row {row.id!r} (source {row.source!r}), first on line {first}; keep one of them")
        return row

    if not path.is_file():
        raise DataError(missing(path))
    with open_bytes(path) as stream:
        lines = ((f"{path}:{number}  ", (line, number)) for number, line in read_lines(path.name, stream))
        rows = convert_rows(row_of, lines)
    if not rows:
        raise DataError(f'{path}: expected one {{"id", "source", "rewards"}} object a line, got an empty file')
    return rows


def convert_rows(convert: Callable[..., Converted], rows: Iterable[tuple[str, tuple[Any, ...]]]) -> list[Converted]:
    """Convert rows, given the place of each and the arguments; raises DataError with the place of each ValueError, the first ten."""
    converted: list[Converted] = []
    problems: list[str] = []
    for place, arguments in rows:
        try:
            converted.append(convert(*arguments))
        except ValueError as problem:
            problems.append(f"{place}{problem}")
        if len(problems) == MAX_PROBLEMS:
            break
    if problems:
        raise DataError(*problems)
    return converted


def _parse(line: str) -> ScoredComparison:
    """Return the row of a line; raises ValueError saying what is wrong with it (a JSONDecodeError is a ValueError)."""
    fields = _object_of(line)
    absent = [key for key in ("id", "source", "rewards") if key not in fields]
    if absent:
        raise ValueError(f"{', '.join(absent)}: missing; the line has {', '.join(fields)[:200] or 'no keys'}")
    for key in ("id", "source"):
        if not isinstance(fields[key], str):
            raise ValueError(f"{key}: expected a string, got {fields[key]!r:.60}")

    rewards = fields["rewards"]
    fewest = 1 if "targets" in fields else 2
    if not isinstance(rewards, list) or len(rewards) < fewest or not all(type(number) in NUMBERS for number in rewards):
        numbers = "numbers" if fewest == 1 else "two or more numbers"
        raise ValueError(f"rewards: expected a list of {numbers}, got {rewards!r:.60}")
    count = len(rewards)
    lengths, cut = (_token_counts(fields, key, count) for key in ("lengths", "cut"))
    shown = fields.get("shown", [])
    if (
        not isinstance(shown, list)
        or not all(type(place) is int for place in shown)
        or sorted(shown) not in ([], list(range(count)))
    ):
        raise ValueError(f"shown: expected a place among 0..{count - 1} for each response, got {shown!r:.60}")

    targets = _targets(fields.get("targets", []), count)
    edges = fields.get("preferences", [] if targets else None)
    if edges is None:
        preferences = tuple(Preference(winner=0, loser=other) for other in range(1, count))
    elif not isinstance(edges, list) or not (edges or targets):
        raise ValueError(f"preferences: expected a list of [winner, loser, margin, probability, weight], got {edges!r:.60}")
    else:
        preferences = tuple(_preference(edge, count) for edge in edges)
    weight = fields.get("weight", 1.0)
    if type(weight) not in NUMBERS or not 0 < weight <= LARGEST:
        raise ValueError(f"weight: expected a finite number above 0, got {weight!r:.60}")
    rest = (lengths, preferences, targets, float(weight), tuple(shown), prompt_of(fields), cut)
    return ScoredComparison(fields["id"], fields["source"], tuple(map(checked_number, rewards)), *rest)


def _targets(targets: Any, count: int) -> tuple[Target, ...]:
    if not isinstance(targets, list):
        raise ValueError(f"targets: expected a list of [response, value, weight], got {targets!r:.60}")
    for target in targets:
        if not isinstance(target, list) or len(target) != 3 or not all(type(n) in NUMBERS and abs(n) <= LARGEST for n in target):
            raise ValueError(f"targets: expected three finite numbers [response, value, weight], got {target!r:.60}")
        response, _, weight = target
        if type(response) is not int or not 0 <= response < count or weight <= 0:
            raise ValueError(f"targets: expected a response among 0..{count - 1} and weight > 0, got {response!r} and {weight!r}")
    return tuple(Target(response, float(value), float(weight)) for response, value, weight in targets)


def _object_of(line: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except RecursionError as error:
        raise ValueError(f"not JSON: {error}") from error
    if has_lone_surrogate(line, fields):
        raise ValueError("lone surrogate (half of a UTF-16 pair)")
    if not isinstance(fields, dict):
        raise ValueError(f"expected a JSON object, got {line.strip()[:60]!r}")
    return fields


def checked_number(value: float) -> float:
    """Return a number of JSON as a float; raises ValueError for one that is finite and beyond float32, on which sums would overflow."""
    if LARGEST < abs(value) < math.inf:
        raise ValueError(f"expected a float32, at most {LARGEST:.4g}, got {value!r:.60}")
    return float(value)


def _token_counts(fields: Mapping[str, Any], key: str, count: int) -> tuple[int, ...]:
    counts = fields.get(key, [])
    if (
        not isinstance(counts, list)
        or len(counts) not in (0, count)
        or not all(type(n) is int and 0 <= n < 2**31 for n in counts)
    ):
        raise ValueError(f"{key}: expected a count of tokens for each of the {count} responses, got {counts!r:.60}")
    return tuple(counts)


def prompt_of(fields: Mapping[str, Any], keys: Sequence[str] = ("prompt",)) -> str:
    """Return what names the prompt of a row, from the first key that does: a text, or other JSON, such as messages, as text."""
    found = next((fields[key] for key in keys if fields.get(key)), "")
    return found if isinstance(found, str) else json.dumps(found, sort_keys=True)


def _preference(edge: Any, count: int) -> Preference:
    if not isinstance(edge, list) or len(edge) != 5 or not all(type(n) in NUMBERS and abs(n) <= LARGEST for n in edge):
        raise ValueError(
            f"preferences: expected five finite numbers [winner, loser, margin, probability, weight], got {edge!r:.60}"
        )
    winner, loser, margin, probability, weight = edge
    if not all(type(index) is int and 0 <= index < count for index in (winner, loser)) or winner == loser:
        raise ValueError(f"preferences: expected two different responses among 0..{count - 1}, got {winner!r} and {loser!r}")
    if margin < 0 or not 0.5 <= probability <= 1 or weight <= 0:
        raise ValueError(
            "preferences: expected margin >= 0, probability in [0.5, 1] (make the likelier side the winner) and weight > 0, "
            f"got {margin!r}, {probability!r} and {weight!r}"
        )
    return Preference(winner, loser, float(margin), float(probability), float(weight))


def settings_file(scores: Path) -> Path:
    """Return the path of the settings of a file of scores: `scores.settings.json` next to `scores.jsonl`."""
    return scores.with_name(f"{Path(scores.name.removesuffix('.gz')).stem}.settings.json")


def write_settings(scores: Path, settings: Settings) -> None:
    """Write the settings of a file of scores next to it, whole or not at all."""
    write_text(settings_file(scores), json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


def read_settings(scores: Path) -> dict[str, Any] | None:
    """Read the settings of a file of scores; None where it has none. Raises DataError where they cannot be read."""
    path = settings_file(scores)
    if not path.is_file():
        return None
    try:
        return read_json(path, dict)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def objective_of(settings: Settings | None, scores: Path) -> Objectives:
    """Return the objective that the settings of a file of scores name, else Bradley-Terry; raises DataError for an unknown one."""
    objective = (settings or {}).get("objective")
    if objective is None:
        return BradleyTerry()
    try:
        return OBJECTIVE.validate_python(objective)
    except ValidationError as error:
        raise DataError(f"{settings_file(scores)}: objective: not an objective of a recipe: {objective!r:.60}") from error


def pair_settings(
    model: str, data: TokenizedData, recipe: Data, objective: Objectives, dtype: str, template_sha256: str | None
) -> dict[str, Any]:
    """Return everything the scores of pairs depend on, JSON-ready.

    Rows count as the same where prompts and responses are the same, whatever the tokenizer. `dtype` is that of matrix products.
    """
    counts = data.waterfall.sources.values()
    return {
        "model": model,
        "objective": objective.model_dump(mode="json", exclude={"router_balance"}),  # which no score depends on
        "dtype": dtype,
        "max_length": recipe.max_length,
        "overlong": recipe.overlong,
        "template_sha256": template_sha256,
        "ties": TIES,
        "rows": len(data),
        "rows_dropped": sum(count.read - count.kept - count.gathered for count in counts),
        "rows_sha256": digest_of([data.prompt_hashes.tolist(), data.response_hashes.tolist()]),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return the versions of the packages that rewards depend on."""
    return {name: version(name) for name in PACKAGES}


def differences(one: Settings, other: Settings, keys: Sequence[str] = DECISIVE) -> list[str]:
    """Return a line for each setting that differs: its name and both values, hashes by their first digits."""

    def shown(value: Any) -> str:
        text = "none" if value is None else str(value)[:80]
        return f"{text[:12]}…" if len(text) == 64 else text

    return [f"{key}: {shown(one.get(key))} against {shown(other.get(key))}" for key in keys if one.get(key) != other.get(key)]


def digest_of(parts: Sequence[Any]) -> str:
    """Return the sha256 of JSON values."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps(part, ensure_ascii=False, sort_keys=True).encode("utf-8", "surrogatepass"))
        digest.update(b"\n")
    return digest.hexdigest()
