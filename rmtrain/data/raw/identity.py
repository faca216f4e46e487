"""What makes tokenized data the same data: the parts of a cache key."""

import hashlib
import json
from importlib.metadata import version
from typing import Any

from transformers import PreTrainedTokenizerBase

from rmtrain.data.raw.hooks import hook_of
from rmtrain.data.raw.sources import fingerprint
from rmtrain.recipe.schema import Source

PIPELINE_VERSION = 3
"""Raise it with every change of this folder that changes tokens, row ids or what is stored."""
PACKAGES = ("rmtrain", "transformers", "tokenizers")


def digest(parts: dict[str, Any]) -> str:
    """sha256 of JSON values and of the versions of everything that turns rows into tokens."""
    versions = {name: version(name) for name in PACKAGES} | {"pipeline": PIPELINE_VERSION}
    return hashlib.sha256(json.dumps({"versions": versions, **parts}, sort_keys=True).encode()).hexdigest()


def source_identity(source: Source) -> dict[str, Any]:
    """A source by content and reading: where its file lies does not matter, its bytes and its row ids do, and those of `prepare`."""
    said = source.model_dump(mode="json", exclude={"path", "tag", "streaming"})
    code = None if source.prepare is None else hashlib.sha256(hook_of(source).code).hexdigest()
    return said | {"title": source.title, "content": fingerprint(source), "code": code}


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of everything in a fast tokenizer that shapes tokens: its `tokenizer.json`, special tokens and chat template.

    Padding and truncation do not: every call sets them anew, and they are turned off here.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    parts = [
        backend.to_str(),
        {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        tokenizer.chat_template,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
