"""`rmtrain init`: from a file, a folder or a Hub dataset to a recipe that runs, with a comment for each choice."""

import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from rmtrain.command_line.options import InitOptions
from rmtrain.commands.init_files import refuse_existing, write_new
from rmtrain.commands.init_model import Settings, Trial, settle
from rmtrain.data.comparison import is_held_out, place_of, prompt_hash
from rmtrain.data.rows.dataset import is_on_hub, split_names
from rmtrain.data.rows.examine import GOOD, PLACE_KEYS, SAMPLE_ROWS, Fit, Guess, RowSample, examine, fit, take_sample
from rmtrain.data.rows.messages import find_cell
from rmtrain.data.rows.proposals import Question
from rmtrain.data.waterfall import SourceCount
from rmtrain.errors import DataError, TryAgain
from rmtrain.files import expanded, temporary_folder
from rmtrain.recipe.datasets import CONFIGS, Entry, as_source, find_entries
from rmtrain.recipe.library import SCHEMA_LINE
from rmtrain.recipe.load import parse_recipe
from rmtrain.recipe.variables import escape_variables
from rmtrain.recipe.yaml import one_line, shorten, write_value

logger = logging.getLogger("rmtrain")

TEST_WORDS = ("test", "validation", "valid", "val", "dev", "eval", "evaluation")
HOLDOUTS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
"""Values of `holdout` to choose from."""
HELD_OUT = 500
"""Rows to hold out, where they are at most a tenth of all."""
INTERVALS = (5, 10, 20, 25, 50, 100)
"""Values of `evaluation.every` to choose from."""
UNKNOWN_TOTAL = 10_000
"""Rows that a dataset is taken to have where nothing says how many."""
KEYS = (
    *(
        "path",
        "name",
        "data_dir",
        "revision",
        "split",
        "tag",
        "format",
        "prompt",
        "system",
        "chosen",
        "rejected",
        "lists",
        "a",
        "b",
    ),
    *("label", "responses", "group_by", "response", "score", "lower_is_better", "target", "values"),
)
"""Order of the keys of a source; others follow."""
LONGEST_LINE = 100
SHOWN_CELL = 200


@dataclass(frozen=True, slots=True)
class Found:
    """What is known of a dataset: its place as keys of a source, its splits, and its first rows.

    known: the documented entry of it, with its place.
    """

    place: Entry
    splits: Sequence[str]
    sample: RowSample | None
    known: Entry | None = None


def init(options: InitOptions, console: Console) -> str:
    """Return a recipe for a dataset, as text; it is also written to `options.output` if that is set.

    On a terminal, asks what the rows do not say; otherwise the guess has a comment that begins with CHECK.

    Raises:
        RecipeError: the output exists. DataError: unreadable rows, or rows that no format fits.
        CheckpointError: no such model. TryAgain: the Hub fails.
    """
    if options.output is not None:
        refuse_existing(options.output)
    text = _draft(options, console)
    if options.output is not None:
        write_new(options.output, text)
    return text


def _draft(options: InitOptions, console: Console) -> str:
    """Return the text of a recipe for `options.data`."""
    with temporary_folder() as folder:
        found = _find(str(options.data), folder)
        guess = _guess(found, str(options.data))
        guess = _answered(guess, found.sample, console)
        source = found.place | guess.fit.entry
        sample = found.sample or RowSample([], {}, None, False)
        train, evaluation, comments = _split(source, found, guess, sample, folder)
        objective = objective_of(guess)
        settings = settle(Trial(guess, train, sample, objective, folder), options.model)
    sections = escape_variables(_sections(train, evaluation, settings, objective, sample))
    file = str(options.output or "recipe.yaml")
    header = _header(str(options.data), guess, sample, file)
    text = render(header, sections, settings.comments | comments, guess.questions, file)
    text = text if options.output is None else f"{SCHEMA_LINE}\n{text}"
    parse_recipe(text, file)
    return text


def _find(data: str, folder: Path) -> Found:
    """Find a dataset and read its first rows. Rows of a documented one need not be within reach."""
    path, config = data, None
    if not os.path.lexists(expanded(data)) and re.fullmatch(r"[\w.-]+/[\w.-]+:[\w./-]+", data):
        path, _, config = data.partition(":")
    known = [] if os.path.lexists(expanded(path)) else find_entries(path, config)
    for entry in known[1:]:
        logger.info(
            "docs/DATASETS.md has another entry for %s: rmtrain init %s:%s",
            path,
            path,
            next(entry[key] for key in CONFIGS if key in entry),
        )
    base: Entry = {"path": path} | ({"name": config} if config else {})
    if known:
        base = {key: value for key, value in known[0].items() if key in PLACE_KEYS}
    try:
        splits = split_names(as_source({key: value for key, value in base.items() if key != "split"}))
        if "split" not in base and splits:
            base["split"] = training_split(splits)
        if not splits or splits == [base.get("split")]:
            base = {key: value for key, value in base.items() if known or key != "split"}
        source = as_source(base)
        if is_on_hub(source):
            source = as_source(base | {"streaming": True, "limit": SAMPLE_ROWS + 1})
        return Found(base, splits, take_sample(source, folder), known[0] if known else None)
    except (DataError, TryAgain) as error:
        if not known:
            hint = f"; name one, as in rmtrain init {path}:CONFIG" if "Config name is missing" in str(error) else ""
            raise type(error)(*(f"{problem}{hint}" for problem in error.problems)) from error
        logger.warning("%s; the recipe is the documented entry, and lengths are not known", error.problems[0])
        return Found(base, [], None, known[0])


def training_split(splits: Sequence[str]) -> str:
    """Return the split to train on."""
    named = [split for split in splits if split.lower() == "train"] or [split for split in splits if "train" in split.lower()]
    others = [split for split in splits if not any(word in split.lower() for word in TEST_WORDS)]
    return (named or others or splits)[0]


def evaluation_split(train: str, splits: Sequence[str]) -> str | None:
    """Return the split to evaluate on next to the one to train on; None: there is none."""
    wanted = [name for word in TEST_WORDS for name in (train.lower().replace("train", word), word)]
    by_name = {split.lower(): split for split in splits if split != train}
    return next((by_name[name] for name in wanted if name in by_name), None)


def _guess(found: Found, data: str) -> Guess:
    """Return the documented entry where it fits, or else the best guess."""
    known = None if found.known is None else {key: value for key, value in found.known.items() if key not in PLACE_KEYS}
    if found.sample is None:
        assert known is not None, "only documented datasets come without rows"
        return Guess(Fit(known, SourceCount()), (), str(found.place["path"]))
    if known is not None:
        fitted = fit(known, found.sample)
        if fitted.share >= GOOD:
            return Guess(fitted, (), str(found.place["path"]))
        logger.warning("the documented entry does not fit these rows: %s", fitted.reason)
    guess = examine(found.sample, data)
    if len(found.splits) > 1 and "train" not in str(found.place.get("split")).lower():
        choices = [str(found.place["split"]), *(split for split in found.splits if split != found.place["split"])]
        question = Question(
            "split", f"is {choices[0]} the split to train on?", f"set split to {' or '.join(choices[1:])}",
            tuple((split, {"split": split}) for split in choices),
        )  # fmt: skip
        guess = replace(guess, questions=(question, *guess.questions))
    return guess


def _answered(guess: Guess, sample: RowSample | None, console: Console) -> Guess:
    """Ask the questions of a guess on a terminal; those without an answer remain."""
    if sample is None or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return guess
    for question in guess.questions:
        for name, cell in _example(guess, sample):
            console.print(f"  {name}: {shorten(one_line(str(cell)), SHOWN_CELL)}", soft_wrap=True)
        choice = _ask(question, console)
        if choice is None:
            return guess
        guess = guess.answered(question, choice, sample)
    return guess


def _example(guess: Guess, sample: RowSample) -> list[tuple[str, Any]]:
    """Return the cells of the first row that is kept, of the columns that the guess reads."""
    number = place_of(guess.fit.comparisons[0].id)[0]
    columns = as_source(guess.fit.entry | {"path": "rows"}).columns
    target = guess.fit.entry.get("target")
    names = dict.fromkeys([*columns, *([target] if target else [])])
    row = sample.rows[min(number, len(sample.rows) - 1)]
    return [(name, cell) for name in names if (cell := find_cell(row, name)) is not None]


def _ask(question: Question, console: Console) -> int | None:
    """Return the number of the answer; None where the input ends. An empty line is the first one."""
    names = [name.lower() for name, _ in question.choices]
    while True:
        try:
            typed = console.input(f"{question.text} [{'/'.join(names)}] ", markup=False, emoji=False).strip().lower()
        except EOFError:
            return None
        matches = [number for number, name in enumerate(names) if name.startswith(typed)]
        if typed in names or len(matches) == 1 or not typed:
            return names.index(typed) if typed in names else matches[0]
        console.print(f"expected one of {', '.join(names)}")


def objective_of(guess: Guess) -> Entry:
    """Return the objective that the rows need: for targets of 0 and 1 `binary`, for other targets `regression`, otherwise the default."""
    if guess.fit.entry.get("format") != "scored":
        return {}
    values = {target.value for row in guess.fit.comparisons for target in row.targets}
    return {"type": "binary" if values <= {0.0, 1.0} else "regression"}


Comments = dict[tuple[str, ...], str]


def _split(source: Entry, found: Found, guess: Guess, sample: RowSample, folder: Path) -> tuple[Entry, Entry | None, Comments]:
    """Return the entries to train and to evaluate on, with comments: the dataset's own test split, or a share that is held out."""
    other: Entry | None = None
    name = evaluation_split(str(source.get("split", "train")), found.splits)
    if name is not None:
        other = source | {"split": name}
    elif not found.splits and (sibling := _sibling(str(source["path"]))):
        other = source | {"path": sibling}
    if other is not None and _fits(other, found, guess, folder):
        return source, other, {}
    share = holdout_of(guess, sample)
    if share is None:
        logger.warning("the rows have too few different prompts to hold some out; nothing is evaluated")
        return source, None, {}
    comment = f"{100 * share:g} % of the prompts are kept for evaluation"
    return source | {"holdout": share}, None, {("data", "train", "holdout"): comment}


def _sibling(path: str) -> str | None:
    """Return the test file next to a file for training, such as `test.jsonl` next to `train.jsonl`."""
    folder, slash, name = path.rpartition("/")
    names = [f"{folder}{slash}{name.replace('train', word)}" for word in TEST_WORDS if "train" in name]
    return next((name for name in names if expanded(name).is_file()), None)


def _fits(other: Entry, found: Found, guess: Guess, folder: Path) -> bool:
    """Return whether the rows of a test split are like those to train on; True where no rows can be read."""
    if found.sample is None:
        return True
    below = folder / "test"
    below.mkdir()
    try:
        source = as_source({key: value for key, value in other.items() if key in PLACE_KEYS})
        if is_on_hub(source):
            source = source.model_copy(update={"streaming": True, "limit": SAMPLE_ROWS + 1})
        share = fit(guess.fit.entry, take_sample(source, below)).share
    except (DataError, TryAgain) as error:
        logger.info("%s; it is not used", error.problems[0])
        return False
    if share < GOOD:
        logger.info("%s: its rows are unlike those to train on; it is not used", source.place)
    return share >= GOOD


def holdout_of(guess: Guess, sample: RowSample) -> float | None:
    """Return the share of prompts to hold out, about 500 rows or a tenth; None where the prompts of the sample cannot be divided."""
    total = sample.total or UNKNOWN_TOTAL
    hashes = [prompt_hash(row) for row in guess.fit.comparisons]
    for share in HOLDOUTS:
        held_out = sum(is_held_out(number, share) for number in hashes)
        if share * total >= min(HELD_OUT, total / 10) and (not hashes or 0 < held_out < len(hashes)):
            return share
    return None


def _sections(train: Entry, evaluation: Entry | None, settings: Settings, objective: Entry, sample: RowSample) -> Entry:
    """Return the recipe as plain data."""
    name = re.sub(r"[^\w.-]+", "-", as_source(train).title).strip("-") or "rewards"
    rows = sample.total or UNKNOWN_TOTAL
    batch = 64 if rows >= 20_000 else 32 if rows >= 1000 else 8
    steps = max(rows // batch, 1)
    sections: Entry = {
        "run": {"name": name, "output_dir": f"runs/{name}"},
        "data": {"train": [train], **({"eval": [evaluation]} if evaluation else {}), **settings.data},
        "model": settings.model,
    }
    sections |= {"lora": settings.lora} if settings.lora else {}
    sections |= {"objective": objective} if objective else {}
    sections["optimizer"] = {"lr": settings.lr, "warmup": 0.05, "schedule": "cosine"}
    sections["training"] = {"epochs": 1, "batch_size": batch}
    kind = "adapters" if settings.lora else "training all weights" if "path" in settings.model else "so small a model"
    settings.comments["optimizer",] = f"usual for {kind}"
    settings.comments["training",] = "batch_size: comparisons in a step, over all GPUs"
    if evaluation or "holdout" in train:
        sections["evaluation"] = {"every": max(number for number in INTERVALS if number <= max(steps / 5, 5))}
        settings.comments["evaluation",] = "in steps, and once at the end"
    return sections


def _header(data: str, guess: Guess, sample: RowSample, file: str) -> list[str]:
    """Return the first lines of a recipe: what it was made of, and what to do with it."""
    count = guess.fit.count
    lines = [f"Made by `rmtrain init {data}`."]
    if guess.fit.comparisons:
        many = f" of about {sample.total:,}" if sample.total else ""
        rows = f"all {len(sample.rows):,} rows" if sample.is_whole else f"the first {len(sample.rows):,}{many} rows"
        lines = [f"Made by `rmtrain init {data}` from {rows}: {count.kept:,} comparisons."]
        dropped = ", ".join(f"{reason} ({number})" for reason, number in count.dropped.items())
        lines += [f"Rows that are left out: {dropped}. `rmtrain inspect {file} --dropped all` shows them."] if dropped else []
    if guess.alike:
        is_itself = guess.alike.lower() == data.partition(":")[0].lower()
        whose = "" if is_itself else f"The columns are those of {guess.alike}. "
        lines.append(f"{whose}This is the tested entry of docs/DATASETS.md.")
    return [
        *lines,
        "",
        f"rmtrain inspect {file} --row 0    a comparison as the model sees it",
        f"rmtrain preprocess {file}         all rows: what is kept, lengths, suspicious rows",
        f"rmtrain train {file}              add --dry-run for steps and memory",
    ]


def render(
    header: Sequence[str], sections: Mapping[str, Any], comments: Comments, questions: Sequence[Question], file: str
) -> str:
    """Return a recipe as YAML with comments, which are never read as anything else."""
    lines = [f"# {one_line(line)}".rstrip() for line in header] + [""]
    for name, section in sections.items():
        if name != "data":
            lines += _line("", name, section, comments.get((name,), ""))
            continue
        lines.append("data:")
        for key, value in section.items():
            if key in ("train", "eval"):
                lines.append(f"  {key}:")
                for entry in value:
                    asked = questions if key == "train" else ()
                    lines += _entry(
                        entry, {path[2]: text for path, text in comments.items() if path[:2] == ("data", key)}, asked, file
                    )
            else:
                lines += _line("  ", key, value, comments.get(("data", key), ""))
    return "\n".join(lines) + "\n"


def _entry(entry: Entry, comments: Mapping[str, str], questions: Sequence[Question], file: str) -> list[str]:
    """Return a source: in one line if it is short and has no comment, or else a line for each key."""
    whole = f"    - {write_value(entry)}"
    if len(whole) <= LONGEST_LINE and not comments and not questions:
        return [whole]
    lines: list[str] = []
    for key, value in sorted(entry.items(), key=lambda item: KEYS.index(item[0]) if item[0] in KEYS else len(KEYS)):
        for question in questions:
            if question.key == key:
                lines.append(f"      # CHECK: {one_line(question.text)} If not, {one_line(question.fix)}.")
                lines.append(f"      # A row shows it: rmtrain inspect {one_line(file)} --row 0")
        lines += _line("      ", key, value, comments.get(key, ""))
    first = next(number for number, line in enumerate(lines) if not line.lstrip().startswith("#"))
    lines[first] = f"    - {lines[first].lstrip()}"
    return lines


def _line(indent: str, key: str, value: Any, comment: str) -> list[str]:
    """Return a key with its value, and its comment behind it or, where that is too long, above it."""
    text = f"{indent}{key}: {write_value(value)}"
    if not comment:
        return [text]
    comment = one_line(comment)
    return [f"{text}    # {comment}"] if len(text) + len(comment) + 6 <= LONGEST_LINE else [f"{indent}# {comment}", text]
