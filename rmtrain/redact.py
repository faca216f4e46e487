"""Secrets stay out of recipes and messages: which names ask for one, which texts look like one, and how a message hides it."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HIDDEN = "<hidden>"
ADVICE = "no secrets in a recipe; use `hf auth login` or the HF_TOKEN environment variable"
WANDB_ADVICE = "no secrets in a recipe; use `wandb login` or the WANDB_API_KEY environment variable"

_NAME = re.compile(r"(?:.*[_.-])?(?:token|api[_-]?key|secret|password|passwd|credentials)", re.IGNORECASE)
_TEXT_TOKEN = re.compile(r"(?:.*[_.-])?(?:max|pad|eos|bos|unk|sep|cls|mask|image|special)_token", re.IGNORECASE)
_CREDENTIALS = r"(?<=://)[^\s/:@]+:[^\s/@]+(?=@)"
_CERTAIN = re.compile(rf"\bhf_[A-Za-z0-9]{{30,}}|(?<![\w-])sk-[\w-]{{30,}}|{_CREDENTIALS}")
_LIKELY = re.compile(rf"\bhf_[A-Za-z0-9]{{10,}}|(?<![\w-])sk-[\w-]{{10,}}|{_CREDENTIALS}")
_WANDB_KEY = re.compile(r"(wandb.{0,80}?)\b[0-9a-f]{40}\b", re.IGNORECASE)


def asks_for_secret(name: str) -> str | None:
    """What to do instead, if `name` is what peers call a token, key or password; None otherwise."""
    if not _NAME.fullmatch(name) or _TEXT_TOKEN.fullmatch(name):
        return None
    return WANDB_ADVICE if "wandb" in name.lower() else ADVICE


def is_secret(text: str) -> bool:
    """Whether `text` surely holds a token or password: a full `hf_...` or `sk-...` token, or `user:password@` in a URL."""
    return _CERTAIN.search(text) is not None


def redact(text: str) -> str:
    """`text` with everything that looks like a token or password replaced by `<hidden>`; rather too much than too little."""
    return _WANDB_KEY.sub(rf"\g<1>{HIDDEN}", _LIKELY.sub(HIDDEN, text))


def redact_paths(value: Any) -> Any:
    """JSON values in which secrets are hidden, and each text that is an absolute path is only its last part.

    Within other texts the current directory and the home directory are left out and written `~`.
    """
    if isinstance(value, Mapping):
        return {key: redact_paths(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redact_paths(inner) for inner in value]
    return _text(value) if isinstance(value, str) else value


def _text(text: str) -> str:
    hidden = redact(text)
    if hidden.startswith(("/", "~")) and len(hidden.split()) == 1 and len(hidden) > 1:
        return f"…/{hidden.rstrip('/').rpartition('/')[2]}"
    here, home = f"{Path.cwd()}/", os.path.expanduser("~").rstrip("/")
    without = hidden.replace(here, "") if len(here) > 2 else hidden
    return without.replace(home, "~") if home not in ("", "~") else without
