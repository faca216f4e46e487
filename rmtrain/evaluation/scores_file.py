"""Scored comparisons, and the file `scores.jsonl` from which every number of an evaluation can be computed again."""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmtrain.data.comparison import Preference
from rmtrain.errors import DataError, NumericError

Settings = Mapping[str, Any]
DECISIVE = ("benchmark", "dtype", "max_length", "overlong", "template_sha256", "rows_sha256", "ties")
"""Settings that change numbers; others, such as how many rows were cut, are told."""
TIES = "equal float32 rewards; counted apart, wrong by the strict rule"


def settings_file(scores: Path) -> Path:
    """Where the settings of a file of scores are: `scores.settings.json` beside `scores.jsonl`."""
    return scores.with_name(f"{Path(scores.name.removesuffix('.gz')).stem}.settings.json")


def write_settings(scores: Path, settings: Settings) -> None:
    """Write the settings of a file of scores, under a temporary name that then takes the place of the file."""
    path = settings_file(scores)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_settings(scores: Path) -> dict[str, Any] | None:
    """The settings of a file of scores; None where there are none. Raises DataError where they cannot be read."""
    path = settings_file(scores)
    if not path.is_file():
        return None
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise DataError(f"{path}: expected an object, got {type(settings).__name__}")
    return settings


def differences(one: Settings, other: Settings, keys: Sequence[str] = DECISIVE) -> list[str]:
    """A line for each setting that differs: its name, and both values."""
    return [f"{key}: {_told(one.get(key))} against {_told(other.get(key))}" for key in keys if one.get(key) != other.get(key)]


def _told(value: Any) -> str:
    text = "none" if value is None else str(value)
    return f"{text[:12]}…" if len(text) == 64 else text


def digest_of(parts: Sequence[Any]) -> str:
    """sha256 of JSON values."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps(part, ensure_ascii=False, sort_keys=True).encode("utf-8", "surrogatepass"))
        digest.update(b"\n")
    return digest.hexdigest()


MAX_PROBLEMS = 10


@dataclass(frozen=True, slots=True)
class ScoredComparison:
    """A comparison with a reward for each of its responses.

    `rewards` and `lengths` are in the order of the responses; a pair's chosen response is number 0. Rewards are float32 values
    held as Python floats, which is exact. Lengths are in tokens, prompt included; empty when they are not known. `shown` is where a
    benchmark shows each response, empty where its rule does not go by that.
    """

    id: str
    source: str
    rewards: tuple[float, ...]
    lengths: tuple[int, ...]
    preferences: tuple[Preference, ...]
    shown: tuple[int, ...] = ()


def write_scores(path: Path, rows: Iterable[ScoredComparison]) -> None:
    """Write one JSON object a line, under a temporary name that then takes the place of `path`.

    A reward is written with all its digits, so that any reader gets back the same float32.

    Raises:
        NumericError: a reward is not finite; names the row, and leaves what was at `path` as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(_to_line(row))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_scores(path: Path) -> list[ScoredComparison]:
    """Read what `write_scores` wrote, or minimal lines `{"id", "source", "rewards"}` made elsewhere.

    A line without `preferences` is a best-first list: its first response is preferred to each of the others. Rewards may be NaN or
    infinite here; `summarize` refuses them, all rows at once. Other keys are ignored.

    Raises:
        DataError: one line for each malformed row (the first ten), with the file and line number.
    """
    rows: list[ScoredComparison] = []
    problems: list[str] = []
    seen: dict[tuple[str, str], int] = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = _from_line(line)
                first = seen.setdefault((row.source, row.id), number)
                if first != number:
                    raise ValueError(f"row {row.id!r} of source {row.source!r} stands already on line {first}; keep one of them")
                rows.append(row)
            except ValueError as error:
                problems.append(f"{path}:{number}  {error}")
            if len(problems) == MAX_PROBLEMS:
                break
    if problems:
        raise DataError(*problems)
    if not rows:
        raise DataError(f'{path}: expected one {{"id", "source", "rewards"}} object a line, got an empty file')
    return rows


def _to_line(row: ScoredComparison) -> str:
    if not all(map(math.isfinite, row.rewards)):
        raise NumericError(f"row {row.id!r} of source {row.source!r}: expected finite rewards, got {list(row.rewards)}")
    fields = {
        "id": row.id,
        "source": row.source,
        "rewards": [float(reward) for reward in row.rewards],
        "lengths": [int(length) for length in row.lengths],
        "preferences": [[edge.winner, edge.loser, edge.margin, edge.probability, edge.weight] for edge in row.preferences],
    }
    if row.shown:
        fields["shown"] = list(row.shown)
    return json.dumps(fields, ensure_ascii=False, allow_nan=False) + "\n"


def _from_line(line: str) -> ScoredComparison:
    """One row; ValueError says what is wrong with it (a JSONDecodeError is one, too)."""
    fields = json.loads(line)
    if not isinstance(fields, dict):
        raise ValueError(f"expected a JSON object, got {line.strip()[:60]!r}")
    missing = [key for key in ("id", "source", "rewards") if key not in fields]
    if missing:
        raise ValueError(f"{', '.join(missing)}: missing; the line has {', '.join(fields) or 'no keys'}")
    rewards = _rewards(fields["rewards"])
    preferences = fields.get("preferences")
    return ScoredComparison(
        id=_text("id", fields["id"]),
        source=_text("source", fields["source"]),
        rewards=rewards,
        lengths=_lengths(fields.get("lengths", []), len(rewards)),
        preferences=_best_first(len(rewards)) if preferences is None else _preferences(preferences, len(rewards)),
        shown=_shown(fields.get("shown", []), len(rewards)),
    )


def _shown(value: Any, responses: int) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(map(_is_index, value)) or sorted(value) not in ([], list(range(responses))):
        raise ValueError(f"shown: expected a place among 0..{responses - 1} for each response, got {value!r}")
    return tuple(value)


def _best_first(responses: int) -> tuple[Preference, ...]:
    return tuple(Preference(winner=0, loser=k) for k in range(1, responses))


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{key}: expected a string, got {value!r}")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _rewards(value: Any) -> tuple[float, ...]:
    if not isinstance(value, list) or len(value) < 2 or not all(map(_is_number, value)):
        raise ValueError(f"rewards: expected a list of two or more numbers, got {value!r}")
    return tuple(map(float, value))


def _lengths(value: Any, responses: int) -> tuple[int, ...]:
    if (
        not isinstance(value, list)
        or not all(_is_index(length) and length >= 0 for length in value)
        or len(value) not in (0, responses)
    ):
        raise ValueError(f"lengths: expected a count of tokens for each of the {responses} responses, got {value!r}")
    return tuple(value)


def _preferences(value: Any, responses: int) -> tuple[Preference, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"preferences: expected a list of [winner, loser, margin, probability, weight], got {value!r}")
    return tuple(_preference(edge, responses) for edge in value)


def _preference(edge: Any, responses: int) -> Preference:
    if not isinstance(edge, list) or len(edge) != 5 or not all(_is_number(number) and math.isfinite(number) for number in edge):
        raise ValueError(f"preferences: expected five finite numbers [winner, loser, margin, probability, weight], got {edge!r}")
    winner, loser, margin, probability, weight = edge
    if not all(_is_index(index) and 0 <= index < responses for index in (winner, loser)) or winner == loser:
        raise ValueError(f"preferences: expected two different responses among 0..{responses - 1}, got {winner!r} and {loser!r}")
    if margin < 0 or not 0.5 <= probability <= 1 or weight <= 0:
        raise ValueError(
            "preferences: expected margin >= 0, probability in [0.5, 1] (name the likelier side the winner) and weight > 0, "
            f"got {margin!r}, {probability!r} and {weight!r}"
        )
    return Preference(winner, loser, float(margin), float(probability), float(weight))
