"""What a number depends on beside the model, written next to the scores: two numbers compare only where it is the same."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rmtrain.errors import DataError

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
    return [f"{key}: {_shown(one.get(key))} against {_shown(other.get(key))}" for key in keys if one.get(key) != other.get(key)]


def _shown(value: Any) -> str:
    text = "none" if value is None else str(value)
    return f"{text[:12]}…" if len(text) == 64 else text


def digest_of(parts: Sequence[Any]) -> str:
    """sha256 of JSON values."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps(part, ensure_ascii=False, sort_keys=True).encode("utf-8", "surrogatepass"))
        digest.update(b"\n")
    return digest.hexdigest()
