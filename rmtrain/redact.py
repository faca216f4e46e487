"""Secrets and local paths in recipes and messages: recognise them, and hide them."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HIDDEN = "<hidden>"
ADVICE = "no secrets in a recipe; use `hf auth login` or the HF_TOKEN environment variable"
WANDB_ADVICE = "no secrets in a recipe; use `wandb login` or the WANDB_API_KEY environment variable"

_SECRET_NAME = re.compile(r"(?:.*[_.-])?(?:token|api[_-]?key|secret|password|passwd|credentials)", re.IGNORECASE)
# Names that end in "token" and mean a token of text.
_TEXT_TOKEN = re.compile(r"(?:.*[_.-])?(?:max|pad|eos|bos|unk|sep|cls|mask|image|special)_token", re.IGNORECASE)
# Names of variables by which tools of clouds, databases and hubs take secrets, in addition to those above.
_SECRET_VARIABLE = re.compile(
    r"SECRET|CREDENTIAL|ACCESS_KEY|PASSW(?:OR)?D$|PASSPHRASE$|(?:^|_)(?:KEY|PASS|PAT|AUTH|COOKIE|BEARER)$", re.IGNORECASE
)
_CREDENTIALS = r"(?<=://)[^\s/:@]+:[^\s/@]+(?=@)"
# A recipe is refused only for certain secrets; messages also hide likely ones, such as a part of a token.
_CERTAIN = re.compile(rf"\bhf_[A-Za-z0-9]{{30,}}|(?<![\w-])sk-[\w-]{{30,}}|{_CREDENTIALS}")
_LIKELY = re.compile(rf"\bhf_[A-Za-z0-9]{{10,}}|(?<![\w-])sk-[\w-]{{10,}}|{_CREDENTIALS}")
_WANDB_KEY = re.compile(r"(wandb.{0,80}?)\b[0-9a-f]{40}\b", re.IGNORECASE)


def asks_for_secret(name: str) -> str | None:
    """Return the advice for a key that other trainers use for a token, key or password; None for other names."""
    if not _SECRET_NAME.fullmatch(name) or _TEXT_TOKEN.fullmatch(name):
        return None
    return WANDB_ADVICE if "wandb" in name.lower() else ADVICE


def names_secret(variable: str) -> bool:
    """Return True for a variable of the environment whose name says that it holds a token, key or password."""
    return _SECRET_VARIABLE.search(variable) is not None or asks_for_secret(variable) is not None


def is_secret(text: str) -> bool:
    """Return True if `text` certainly contains a secret: a full `hf_...` or `sk-...` token, or `user:password@` in a URL."""
    return _CERTAIN.search(text) is not None


def redact(text: str) -> str:
    """Replace everything in `text` that looks like a token or password by `<hidden>`; when in doubt, hide it."""
    return _WANDB_KEY.sub(rf"\g<1>{HIDDEN}", _LIKELY.sub(HIDDEN, text))


def redact_paths(value: Any) -> Any:
    """Hide secrets in JSON values, and shorten each absolute path to its last part.

    Within other texts, the current directory is removed and the home directory becomes `~`.
    """
    if isinstance(value, Mapping):
        return {key: redact_paths(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redact_paths(inner) for inner in value]
    if not isinstance(value, str):
        return value
    text = redact(value)
    if text.startswith(("/", "~")) and len(text.split()) == 1 and len(text) > 1:
        return f"…/{text.rstrip('/').rpartition('/')[2]}"
    here, home = f"{Path.cwd()}/", os.path.expanduser("~").rstrip("/")
    text = text.replace(here, "") if len(here) > 2 else text
    return text.replace(home, "~") if home not in ("", "~") else text
