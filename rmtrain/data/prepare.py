"""Sources to tokenized data: read, adapted, split, encoded, checked and cached, so that nothing is tokenized twice."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import tee
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from rmtrain.data.artifact import SCHEMA, TokenizedData, file_hash
from rmtrain.data.cache import new_directory
from rmtrain.data.checks import Waterfall
from rmtrain.data.identity import digest, source_identity, tokenizer_fingerprint
from rmtrain.data.loading import read_batches
from rmtrain.data.overlap import check_overlap
from rmtrain.data.processes import in_order
from rmtrain.data.row_encoder import SPLITS, EncodedRows, RowEncoder, RowTask
from rmtrain.errors import DataError, RecipeError
from rmtrain.recipe.schema import Data, Source, TokenizedSource

Progress = Callable[[str, int], None]
"""Called after each batch with a source's tag and the number of its rows read so far."""
Encode = Callable[[Iterable[RowTask]], Iterator[dict[str, EncodedRows]]]
MANIFEST, DROPPED, GATHERED = "manifest.json", "dropped.jsonl", "gathered.jsonl"
SHAPING_KEYS = ("max_length", "max_prompt_length", "overlong", "allow_rewritten")


@dataclass(frozen=True, slots=True)
class PreparedData:
    """Both splits of a recipe, either may be empty, and the directory of their artifact.

    It also holds `dropped.jsonl`, the rows that are not used, and `gathered.jsonl`, those that are part of another row's comparison.
    """

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


def fate(directory: Path, split: str, row_id: str) -> str | None:
    """What became of a row that is no comparison of its own: dropped, with the reason, or gathered; None: it was not read."""
    for name in (DROPPED, GATHERED):
        with (directory / name).open(encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                if (row["split"], row["id"]) == (split, row_id):
                    gathered = f"it is part of comparison {row.get('comparison')}, which has the same prompt"
                    return gathered if name == GATHERED else f"it is dropped ({row['reason']}): {row['detail']}"
    return None


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
        builder = partial(RowEncoder, tokenizer, data)
        with new_directory(directory) as temporary, in_order(builder, data.processes) as encode:
            _Builder(temporary, progress or (lambda source, rows: None)).build(train, evaluation, key, encode)
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


def _tasks(sources: Iterable[tuple[Source, str]]) -> Iterator[RowTask]:
    for source, split in sources:
        for rows in read_batches(source):
            yield RowTask(rows, source.label, split, source.holdout)


class _Builder:
    """Writes the artifact of one key: an Arrow file for each split, the rows that are dropped or gathered, and last the manifest."""

    def __init__(self, directory: Path, progress: Progress) -> None:
        self.directory, self.progress = directory, progress
        self.waterfalls = {split: Waterfall() for split in SPLITS}
        self.writers: dict[str, Any] = {}
        self.lists: dict[str, IO[str]] = {}

    def build(self, train: Sequence[Source], evaluation: Sequence[Source], key: str, encode: Encode) -> None:
        """Write everything."""
        with ExitStack() as files:
            for split in SPLITS:
                self.writers[split] = files.enter_context(pa.ipc.new_file(str(self._file(split)), SCHEMA))
            for name in (DROPPED, GATHERED):
                self.lists[name] = files.enter_context((self.directory / name).open("w", encoding="utf-8"))
            sources = [(source, split) for split, members in zip(SPLITS, (train, evaluation), strict=True) for source in members]
            self._write_all(_tasks(sources), encode)
            for source, split in sources:
                self.waterfalls[split].of(source.label)  # those without rows, too
        splits = {
            split: {"sha256": file_hash(self._file(split)), "waterfall": self.waterfalls[split].to_json()} for split in SPLITS
        }
        manifest = json.dumps({"key": key, "splits": splits}, indent=2)
        (self.directory / MANIFEST).write_text(manifest + "\n", encoding="utf-8")

    def _file(self, split: str) -> Path:
        return self.directory / f"{split}.arrow"

    def _write_all(self, tasks: Iterator[RowTask], encode: Encode) -> None:
        read: Counter[tuple[str, str]] = Counter()
        tasks, given_out = tee(tasks)
        for task, encoded in zip(tasks, encode(given_out), strict=True):
            for split, rows in encoded.items():
                self._write(split, task.source, rows)
                read[task.split, task.source] += rows.read
            self.progress(task.source, read[task.split, task.source])

    def _write(self, split: str, source: str, rows: EncodedRows) -> None:
        self.waterfalls[split].of(source).add(rows.kept, len(rows.gathered), rows.dropped)
        where = {"split": split, "source": source}
        for row in rows.dropped:
            self._list(DROPPED, {**where, "id": row.id, "reason": row.reason, "detail": row.detail})
        for row_id, comparison_id in rows.gathered:
            self._list(GATHERED, {**where, "id": row_id, "comparison": comparison_id})
        if rows.stored is not None:
            self.writers[split].write_batch(rows.stored)

    def _list(self, name: str, record: dict[str, str]) -> None:
        self.lists[name].write(json.dumps(record) + "\n")
