"""Sources to tokenized data: read, adapted, split, encoded, checked and cached, so that nothing is tokenized twice."""

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from rmtrain.data.artifact import SCHEMA, StoredRow, TokenizedData, file_hash, record_batch
from rmtrain.data.cache import new_directory
from rmtrain.data.checks import Waterfall, check_overlap
from rmtrain.data.comparison import Comparison, Dropped, TokenizedComparison
from rmtrain.data.hashes import is_held_out, prompt_hash, response_hashes
from rmtrain.data.identity import digest, source_identity, tokenizer_fingerprint
from rmtrain.data.loading import Adapted, load_comparisons
from rmtrain.data.tokenize import check_tokens, encode_comparisons
from rmtrain.errors import DataError, RecipeError
from rmtrain.recipe.schema import Data, Source, TokenizedSource

Progress = Callable[[str, int], None]
"""Called after each batch with a source's tag and the number of its rows read so far."""
SPLITS = ("train", "eval")
MANIFEST, DROPPED = "manifest.json", "dropped.jsonl"
SHAPING_KEYS = ("max_length", "max_prompt_length", "overlong", "allow_rewritten")


@dataclass(frozen=True, slots=True)
class PreparedData:
    """Both splits of a recipe, either may be empty, and the directory of their artifact, which also holds `dropped.jsonl`."""

    train: TokenizedData
    eval: TokenizedData
    directory: Path


def prepare(data: Data, tokenizer: PreTrainedTokenizerBase, progress: Progress | None = None) -> PreparedData:
    """The tokenized comparisons of a recipe, from the cache when nothing that shapes them has changed.

    Args:
        data: the data section.
        tokenizer: one that `load_tokenizer` gave.
        progress: told of every batch while something is tokenized.

    Raises:
        DataError: unreadable or malformed data, too many dropped rows, nothing left, a changed artifact, or overlap of the splits.
        RecipeError: keys that do not go together, or a cache that cannot be written.
        TryAgain: the disk is full.
    """
    prepared = _prepare(data.train, data.eval, data, tokenizer, progress)
    if not data.allow_overlap:
        check_overlap(prepared.train, prepared.eval)
    return prepared


def prepare_evaluation(
    sources: Sequence[Source], data: Data, tokenizer: PreTrainedTokenizerBase, progress: Progress | None = None
) -> TokenizedData:
    """The tokenized comparisons of sources that are only evaluated on; see `prepare`. Of `data` the policies hold, not its sources."""
    return _prepare((), sources, data, tokenizer, progress).eval


def _prepare(
    train: Sequence[Source],
    evaluation: Sequence[Source],
    data: Data,
    tokenizer: PreTrainedTokenizerBase,
    progress: Progress | None,
) -> PreparedData:
    for source in train:
        if isinstance(source, TokenizedSource) and source.holdout:
            raise RecipeError(
                f"{source.label}: holdout goes by prompt, and rows of tokens do not say where theirs ends; remove it"
            )
    identity = {
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "data": data.model_dump(mode="json", include=set(SHAPING_KEYS)),
        "train": [source_identity(source) for source in train],
        "eval": [source_identity(source) for source in evaluation],
    }
    key = digest(identity)
    directory = Path(data.cache_dir).expanduser() / key[:32]
    if not (directory / MANIFEST).exists():
        with new_directory(directory) as temporary:
            _Builder(temporary, data, tokenizer, progress or (lambda source, rows: None)).build(train, evaluation, key)
    prepared = _load(directory, key)
    _check(prepared, train, data.max_drop_fraction)
    return prepared


def _load(directory: Path, key: str) -> PreparedData:
    remedy = f"delete {directory} to have it made again"
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        stored = {split: manifest["splits"][split] for split in SPLITS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{directory / MANIFEST}: damaged; {remedy}") from error
    for split in SPLITS:
        file = directory / f"{split}.arrow"
        if not file.exists() or file_hash(file) != stored[split]["sha256"]:
            raise DataError(f"{file}: not as it was written; {remedy}")
    train, evaluation = (
        TokenizedData(directory / f"{split}.arrow", key, Waterfall.from_json(stored[split]["waterfall"])) for split in SPLITS
    )
    return PreparedData(train, evaluation, directory)


def _check(prepared: PreparedData, train: Sequence[Source], max_drop_fraction: float) -> None:
    problems = [
        f"{source.label}: holdout {source.holdout:g} took none of its prompts; raise it"
        for source in train
        if source.holdout and source.label not in prepared.eval.waterfall.sources
    ]
    for split in (prepared.train, prepared.eval):
        problems.extend(split.waterfall.problems(max_drop_fraction))
    if problems:
        raise DataError(*problems)


class _Builder:
    """Writes the artifact of one key: an Arrow file for each split, the dropped rows, and last the manifest."""

    def __init__(self, directory: Path, data: Data, tokenizer: PreTrainedTokenizerBase, progress: Progress) -> None:
        self.directory, self.data, self.tokenizer, self.progress = directory, data, tokenizer, progress
        self.waterfalls = {split: Waterfall() for split in SPLITS}
        self.writers: dict[str, Any] = {}
        self.dropped: IO[str]

    def build(self, train: Sequence[Source], evaluation: Sequence[Source], key: str) -> None:
        """Write everything."""
        with ExitStack() as files:
            for split in SPLITS:
                self.writers[split] = files.enter_context(pa.ipc.new_file(str(self._file(split)), SCHEMA))
            self.dropped = files.enter_context((self.directory / DROPPED).open("w", encoding="utf-8"))
            for source in train:
                self._add(source, "train")
            for source in evaluation:
                self._add(source, "eval")
        splits = {
            split: {"sha256": file_hash(self._file(split)), "waterfall": self.waterfalls[split].to_json()} for split in SPLITS
        }
        manifest = json.dumps({"key": key, "splits": splits}, indent=2)
        (self.directory / MANIFEST).write_text(manifest + "\n", encoding="utf-8")

    def _file(self, split: str) -> Path:
        return self.directory / f"{split}.arrow"

    def _add(self, source: Source, split: str) -> None:
        self.waterfalls[split].of(source.label)
        read = 0
        for batch in load_comparisons(source):
            for target, rows in split_batch(batch, source, split).items():
                if rows:
                    self._write(target, *encode_batch(rows, self.tokenizer, self.data))
            read += len(batch)
            self.progress(source.label, read)

    def _write(self, split: str, stored: Sequence[StoredRow], dropped: Sequence[Dropped]) -> None:
        for row in stored:
            self.waterfalls[split].of(row.comparison.source).keep()
        for lost in dropped:
            self.waterfalls[split].of(lost.source).drop(lost)
            record = {"split": split, "id": lost.id, "source": lost.source, "reason": lost.reason, "detail": lost.detail}
            self.dropped.write(json.dumps(record) + "\n")
        if stored:
            self.writers[split].write_batch(record_batch(stored))


def split_batch(batch: Sequence[Adapted], source: Source, split: str) -> dict[str, list[Adapted]]:
    """The rows of a batch by the split they go to: the held-out share of prompts to `eval`, everything else to `split`."""
    targets: dict[str, list[Adapted]] = {name: [] for name in SPLITS}
    for row in batch:
        held_out = source.holdout and not isinstance(row, Dropped) and is_held_out(prompt_hash(row), source.holdout)
        targets["eval" if held_out else split].append(row)
    return targets


def encode_batch(
    rows: Sequence[Adapted], tokenizer: PreTrainedTokenizerBase, data: Data
) -> tuple[list[StoredRow], list[Dropped]]:
    """The rows of a batch as they are stored, and those that are dropped. A pure function of its arguments.

    Raises:
        DataError: the chat template fails, or `overlong: error` and rows are too long.
    """
    texts = [row for row in rows if isinstance(row, Comparison)]
    hashes = {row.id: (prompt_hash(row), response_hashes(row)) for row in rows if not isinstance(row, Dropped)}
    encoded: list[TokenizedComparison | Dropped] = encode_comparisons(texts, tokenizer, data)
    came_as_tokens = [row for row in rows if isinstance(row, TokenizedComparison)]
    if came_as_tokens:
        as_they_are = data.model_copy(
            update={"max_prompt_length": None, "overlong": "error" if data.overlong == "error" else "drop"}
        )
        encoded += check_tokens(came_as_tokens, tokenizer, as_they_are)
    dropped = [row for row in (*rows, *encoded) if isinstance(row, Dropped)]
    return [StoredRow(row, *hashes[row.id]) for row in encoded if not isinstance(row, Dropped)], dropped
