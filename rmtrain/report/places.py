"""What others are shown says nothing of this machine: no secret, no home directory, no path to somebody's files."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmtrain.recipe.redact import redact


def without_places(value: Any) -> Any:
    """JSON values in which secrets are hidden, and each text that is an absolute path is only its last part.

    Within other texts the current directory and the home directory are left out and written `~`.
    """
    if isinstance(value, Mapping):
        return {key: without_places(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(inner) for inner in value]
    return _text(value) if isinstance(value, str) else value


def _text(text: str) -> str:
    hidden = redact(text)
    if hidden.startswith(("/", "~")) and len(hidden.split()) == 1 and len(hidden) > 1:
        return f"…/{hidden.rstrip('/').rpartition('/')[2]}"
    here, home = f"{Path.cwd()}/", os.path.expanduser("~").rstrip("/")
    without = hidden.replace(here, "") if len(here) > 2 else hidden
    return without.replace(home, "~") if home not in ("", "~") else without
