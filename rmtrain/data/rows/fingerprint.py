"""Fingerprints of what shapes tokens, which make up the key of the cache: of sources, tokenizers, and versions."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmtrain.data.rows.dataset import data_files, is_on_hub, saved_dataset, suffix_of
from rmtrain.data.rows.hook import hook_of
from rmtrain.data.rows.hub_dataset import hub_builder
from rmtrain.data.rows.suspects import read_suspects
from rmtrain.errors import DataError, TryAgain
from rmtrain.files import sha256_file
from rmtrain.recipe.schema import ComparedSource, Source
from rmtrain.recipe.sources import RESAMPLING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PIPELINE_VERSION = 6
"""Increase it with every change of `rmtrain.data` that changes tokens, row ids or the stored columns: it is part of the cache key."""
PACKAGES = ("rmtrain", "transformers", "tokenizers")


class Snapshot:
    """Sources with what identifies them when a key is made, to check that nothing else was read.

    `identities` are their `source_identity`, in order.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._states = [_file_states(source) for source in sources]
        self.identities = [source_identity(source) for source in sources]

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Raise TryAgain if a local file is written or replaced before the block ends, so that no result is kept under a wrong key."""
        try:
            yield
        except DataError:
            self._check()  # a file that is being written may well be malformed
            raise
        self._check()

    def _check(self) -> None:
        for source, states, identity in zip(self._sources, self._states, self.identities, strict=True):
            try:
                is_same = not states or (_file_states(source) == states and fingerprint(source) == identity["content"])
            except DataError:
                is_same = False
            if not is_same:
                raise TryAgain(f"{source.place}: changed while it was read; repeat the command when nothing writes to it")


def _file_states(source: Source) -> list[tuple[str | int, ...]]:
    """Return the name, number, size and times of each local file: they also tell a change that was undone."""
    states = [] if is_on_hub(source) else [(str(file), file.stat()) for file in _stored_files(source)]
    return [(name, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns) for name, state in states]


def _stored_files(source: Source) -> list[Path]:
    """Return all local files that a source is read from."""
    if (folder := saved_dataset(source)) is None:
        return data_files(source)
    return sorted(file for file in folder.iterdir() if file.suffix in (".arrow", ".json") and file.is_file())


def fingerprint(source: Source) -> str:
    """Return a hash of the content: of the bytes of each local file and of the reader for its name, or of the commit of a Hub dataset."""
    parts: list[Any]
    if is_on_hub(source):
        builder = hub_builder(source)
        parts = [source.path, builder.config_id, builder.hash, source.split]
    else:
        try:
            parts = [(suffix_of(file), sha256_file(file)) for file in _stored_files(source)]
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def source_identity(source: Source) -> dict[str, Any]:
    """Return the settings and the content hash of a source: the bytes of its files and of `prepare` count, their location does not."""
    # keys that were added later do not change the identity of a source that does not set them: what is cached stays valid
    unset = {name for name in RESAMPLING if name not in source.resampling_keys}
    unset |= {name for name in ("fold", "suspects") if getattr(source, name, None) is None}
    settings = source.model_dump(mode="json", exclude={"path", "tag", "streaming", *unset})
    if isinstance(source, ComparedSource) and source.suspects is not None:
        settings["suspects"] = [source.suspects.labels, *sorted(read_suspects(source).items())]
    code = None if source.prepare is None else hashlib.sha256(hook_of(source).code).hexdigest()
    return settings | {"title": source.title, "content": fingerprint(source), "code": code}


def digest(parts: dict[str, Any]) -> str:
    """Return the sha256 of JSON values and of the versions of all packages that turn rows into tokens."""
    versions = {name: version(name) for name in PACKAGES} | {"pipeline": PIPELINE_VERSION}
    return hashlib.sha256(json.dumps({"versions": versions, **parts}, sort_keys=True).encode()).hexdigest()


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the sha256 of all of a fast tokenizer that shapes tokens: its `tokenizer.json`, special tokens and chat template.

    Padding and truncation do not count: each call sets its own, so both are turned off here.
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
