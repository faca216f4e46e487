"""Sources to tokenized data: read, adapted, split, encoded, checked and cached, so that nothing is tokenized twice."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from rmtrain.data.artifact import TokenizedData
from rmtrain.data.builder import DROPPED, GATHERED, MANIFEST, SPLITS, build_artifact
from rmtrain.data.checks.contamination import Overlap, check_overlap, find_overlap
from rmtrain.data.comparison import Dropped, place_of
from rmtrain.data.rows.dataset import read_rows
from rmtrain.data.rows.fingerprint import Snapshot, digest, tokenizer_fingerprint
from rmtrain.data.rows.loading import Progress, all_problems, no_progress
from rmtrain.data.rows.readers import Line, Malformed, Row, parse
from rmtrain.data.text.renderer import template_variables
from rmtrain.data.text.templates import unread_variable
from rmtrain.data.text.tokenizer import canary_hashes, first_change
from rmtrain.data.waterfall import Waterfall
from rmtrain.errors import DataError, RecipeError
from rmtrain.files import expanded, get_or_build, sha256_file
from rmtrain.recipe.schema import Data, Source, TextSource, TokenizedSource

SHAPING_KEYS = {"max_length", "max_prompt_length", "overlong", "allow_rewritten"}


@dataclass(frozen=True, slots=True)
class PreparedData:
    """The splits of a recipe, either of which may be empty, and the evaluation rows whose prompt is also trained on.

    `directory` is their artifact. It also has `dropped.jsonl`, the rows that are not used, and `gathered.jsonl`, the rows that are part of
    another row's comparison.
    """

    train: TokenizedData
    eval: TokenizedData
    directory: Path
    tokenizer_fingerprint: str
    overlap: Sequence[Overlap]

    @property
    def splits(self) -> dict[str, TokenizedData]:
        """The splits that have rows, by name."""
        return {name: data for name, data in (("train", self.train), ("eval", self.eval)) if len(data)}


def prepare(data: Data, tokenizer: PreTrainedTokenizerBase, progress: Progress = no_progress) -> PreparedData:
    """Return the tokenized comparisons of a recipe, from the cache if nothing that shapes them has changed.

    `tokenizer` is one that `load_tokenizer` returned; `progress` is called after each batch that is tokenized.

    Raises:
        DataError: unreadable or malformed data, too many dropped rows, nothing left, a changed artifact, or overlap of the splits.
        RecipeError: keys that do not go together, or a cache that cannot be written or is another user's.
        TryAgain: the disk is full, or a file changes while it is read.
    """
    prepared = prepare_unchecked(data, tokenizer, progress)
    problems = [
        f"{source.title}: holdout {source.holdout:g} took none of its prompts; raise it"
        if source.fold is None
        else f"{source.title}: fold {source.fold.number} of {source.fold.of} has none of its prompts; set fewer folds"
        for source in data.train
        if source.holds_out and source.title not in prepared.eval.waterfall.sources
    ]
    for split in (prepared.train, prepared.eval):
        problems += split.waterfall.problems(data.max_drop_fraction)
    if problems:
        raise DataError(*problems)
    if not data.allow_overlap:
        check_overlap(prepared.overlap, prepared.eval)
    return prepared


def prepare_evaluation(
    sources: Sequence[Source], data: Data, tokenizer: PreTrainedTokenizerBase, progress: Progress = no_progress
) -> TokenizedData:
    """Return the tokenized comparisons of sources for evaluation only; see `prepare`. The policies of `data` apply, not its sources."""
    return prepare(data.model_copy(update={"train": (), "eval": tuple(sources)}), tokenizer, progress).eval


def prepare_unchecked(data: Data, tokenizer: PreTrainedTokenizerBase, progress: Progress = no_progress) -> PreparedData:
    """Return the same as `prepare` without checks of how much is left and what overlaps: to look at the rows that are dropped."""
    for source in (*data.train, *data.eval):
        for key in ("holdout", "fold", "fraction"):
            if isinstance(source, TokenizedSource) and getattr(source, key):
                raise RecipeError(
                    f"{source.title}: {key} selects by prompt, and rows of tokens do not say where theirs ends; remove {key}"
                )
    check_variables(data, tokenizer)
    fingerprint, sources = tokenizer_fingerprint(tokenizer), (*data.train, *data.eval)
    with all_problems(sources):
        snapshot = Snapshot(sources)
    key = digest(
        {
            "tokenizer": fingerprint,
            "data": data.model_dump(mode="json", include=SHAPING_KEYS),
            "train": snapshot.identities[: len(data.train)],
            "eval": snapshot.identities[len(data.train) :],
        }
    )

    def build(directory: Path) -> None:
        with all_problems(sources), snapshot.unchanged():
            build_artifact(directory, data, tokenizer, {"key": key, "canaries": canary_hashes(tokenizer)}, progress)

    directory = get_or_build(expanded(data.cache_dir, "data.cache_dir") / key[:32], build)
    splits = _load(directory, key, tokenizer)
    return PreparedData(*splits, directory, fingerprint, find_overlap(*splits))


def check_variables(data: Data, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise RecipeError for columns that are passed to a chat template as variables that it does not read."""
    read = template_variables(str(tokenizer.chat_template))
    problems = [
        f"data.{split}.{number}.{name if name == 'tools' else f'template_columns.{name}'}: {unread_variable(name, read)}"
        for split, sources in (("train", data.train), ("eval", data.eval))
        for number, source in enumerate(sources)
        if isinstance(source, TextSource)
        for name in source.variables
        if name not in read
    ]
    if problems:
        raise RecipeError(*problems)


def _load(directory: Path, key: str, tokenizer: PreTrainedTokenizerBase) -> tuple[TokenizedData, TokenizedData]:
    remedy = "delete its directory to rebuild it"
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        hashes = [manifest["splits"][split]["sha256"] for split in SPLITS]
        waterfalls = [Waterfall.from_json(manifest["splits"][split]["waterfall"]) for split in SPLITS]
        canaries, made_for = [str(value) for value in manifest["canaries"]], manifest["key"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{directory / MANIFEST}: damaged; {remedy}") from error
    if made_for != key:
        raise DataError(f"{directory / MANIFEST}: made of other data or settings than its directory is named for; {remedy}")
    changed = first_change(canaries, tokenizer)
    if changed is not None:
        raise DataError(
            f"{directory}: the tokenizer's output has changed since this was cached, such as for {changed!r}; delete it to rebuild it"
        )
    files = [directory / f"{split}.arrow" for split in SPLITS]
    for file, stored_hash in zip(files, hashes, strict=True):
        if not file.exists() or sha256_file(file) != stored_hash:
            raise DataError(f"{file}: checksum mismatch; {remedy}")
    train, evaluation = (TokenizedData(file, key, waterfall) for file, waterfall in zip(files, waterfalls, strict=True))
    return train, evaluation


def dropped_rows(directory: Path, split: str) -> Iterator[Dropped]:
    """Yield the rows of a split that an artifact lists as dropped, in the order in which they were dropped."""
    with (directory / DROPPED).open(encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            if row["split"] == split:
                yield Dropped(row["id"], row["source"], row["reason"], row["detail"])


def drop_reason_of(directory: Path, split: str, row_id: str) -> str | None:
    """Return why a row is not a comparison of its own: dropped, with the reason, or gathered; None: it was not read."""
    for row in dropped_rows(directory, split):
        if row.id == row_id:
            return f"it was dropped ({row.reason}): {row.detail}"
    with (directory / GATHERED).open(encoding="utf-8") as lines:
        for record in map(json.loads, lines):
            if (record["split"], record["id"]) == (split, row_id):
                return f"it is part of comparison {record['comparison']}, which has the same prompt"
    return None


def read_again(data: Data, split: str, rows: Iterable[Dropped]) -> Iterator[tuple[Dropped, Row | str]]:
    """Yield dropped rows with their columns, source by source. A source is read no further than the last of its rows.

    A row that cannot be parsed has its line in place of columns, with bytes that are not UTF-8 escaped, or else the problem.

    Raises:
        DataError: a source that can no longer be read.
    """
    wanted: dict[str, dict[int, list[Dropped]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        wanted[row.source][place_of(row.id)[0]].append(row)
    held_out = [source for source in data.train if source.holds_out]
    for source in data.train if split == "train" else (*data.eval, *held_out):
        missing = wanted.pop(source.title, {})
        for number, raw in read_rows(source) if missing else ():
            if number in missing:
                content = parse(raw)
                shown: Row | str = content if not isinstance(content, Malformed) else content.detail
                if isinstance(content, Malformed) and isinstance(raw, Line):
                    shown = raw.content.decode(errors="backslashreplace")
                yield from ((row, shown) for row in missing.pop(number))
            if not missing:
                break
