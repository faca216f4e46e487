"""Sources to tokenized data: read, adapted, split, encoded, checked and cached, so that nothing is tokenized twice."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from rmtrain.data.cache import made_once
from rmtrain.data.claim import Claim
from rmtrain.data.raw.identity import digest, source_identity, tokenizer_fingerprint
from rmtrain.data.rows.reading import Progress, Reading
from rmtrain.data.stored.artifact import TokenizedData, file_hash
from rmtrain.data.stored.builder import DROPPED, GATHERED, MANIFEST, Builder
from rmtrain.data.stored.overlap import check_overlap
from rmtrain.data.stored.processes import in_order
from rmtrain.data.stored.row_encoder import SPLITS, RowEncoder
from rmtrain.data.text.probes import first_change, probe
from rmtrain.data.waterfall import Waterfall
from rmtrain.errors import DataError, RecipeError
from rmtrain.recipe.schema import Data, Source, TokenizedSource

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
    prepared = prepare_unchecked(data, tokenizer, progress)
    _check(prepared, data.train, data.max_drop_fraction)
    if not data.allow_overlap:
        check_overlap(prepared.train, prepared.eval)
    return prepared


def prepare_unchecked(data: Data, tokenizer: PreTrainedTokenizerBase, progress: Progress | None = None) -> PreparedData:
    """What `prepare` gives, however little is left and whatever overlaps: to look at the rows that are not used."""
    return _prepare(data.train, data.eval, data, tokenizer, progress)


def prepare_evaluation(
    sources: Sequence[Source], data: Data, tokenizer: PreTrainedTokenizerBase, progress: Progress | None = None
) -> TokenizedData:
    """The tokenized comparisons of sources that are only evaluated on; see `prepare`. Of `data` the policies hold, not its sources."""
    prepared = _prepare((), sources, data, tokenizer, progress)
    _check(prepared, (), data.max_drop_fraction)
    return prepared.eval


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
    for source in (*train, *evaluation):
        _refuse_by_prompt(source)
    identity = {
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "data": data.model_dump(mode="json", include=set(SHAPING_KEYS)),
        "train": [source_identity(source) for source in train],
        "eval": [source_identity(source) for source in evaluation],
    }
    key, progress = digest(identity), progress or _quiet

    def build(directory: Path, held: Claim) -> None:
        def report(reading: Reading) -> None:
            held.said = reading.to_line()
            progress(reading)

        with in_order(partial(RowEncoder, tokenizer, data), data.processes) as encode:
            Builder(directory, report).build(train, evaluation, encode, {"key": key, "probes": probe(tokenizer)})

    directory = made_once(Path(data.cache_dir).expanduser() / key[:32], build, partial(_tell, progress))
    return _load(directory, key, tokenizer)


def _refuse_by_prompt(source: Source) -> None:
    for name in ("holdout", "fraction"):
        if isinstance(source, TokenizedSource) and getattr(source, name):
            raise RecipeError(
                f"{source.title}: {name} goes by prompt, and rows of tokens do not say where theirs ends; remove it"
            )


def _tell(progress: Progress, said: str) -> None:
    reading = Reading.of_line(said)
    if reading is not None:
        progress(reading)


def _quiet(reading: Reading) -> None:
    """Tell nobody."""


def _load(directory: Path, key: str, tokenizer: PreTrainedTokenizerBase) -> PreparedData:
    remedy = f"delete {directory} to have it made again"
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        stored = {split: manifest["splits"][split] for split in SPLITS}
        probes = [str(value) for value in manifest["probes"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{directory / MANIFEST}: damaged; {remedy}") from error
    changed = first_change(probes, tokenizer)
    if changed is not None:
        raise DataError(f"{directory}: made with other tokens than the tokenizer gives now, such as for {changed!r}; {remedy}")
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
        f"{source.title}: holdout {source.holdout:g} took none of its prompts; raise it"
        for source in train
        if source.holdout and source.title not in prepared.eval.waterfall.sources
    ]
    for split in (prepared.train, prepared.eval):
        problems.extend(split.waterfall.problems(max_drop_fraction))
    if problems:
        raise DataError(*problems)
