"""`rmtrain inspect`: comparisons as the model sees them, rows that are not used, and what an optimizer step holds."""

import math
import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.rule import Rule
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from rmtrain.batching.layout import Layout, MicroBatch
from rmtrain.batching.loader import StepLoader
from rmtrain.batching.plan import Costs, Indices, Plan, check_budget, cpu_budget
from rmtrain.commands.options import InspectOptions
from rmtrain.commands.result import CommandResult
from rmtrain.data.artifact import TokenizedData
from rmtrain.data.comparison import Dropped, TokenizedComparison, common_prefix_length, extremes, ranking, ranks
from rmtrain.data.decode import Match, decoded, search
from rmtrain.data.prepare import Content, PreparedData, drop_reason_of, dropped_rows, prepare, prepare_unchecked, read_again
from rmtrain.data.rows.cells import cells
from rmtrain.data.text.tokenizer import load_tokenizer
from rmtrain.errors import DataError, RecipeError
from rmtrain.recipe.schema import Data, Recipe
from rmtrain.report.comparison_view import comparison_view, dropped_view
from rmtrain.report.console import WrapText
from rmtrain.report.progress import ReadingProgress
from rmtrain.report.step_view import step_view
from rmtrain.report.tokens import token_strings

FEW = 3


@dataclass(frozen=True, slots=True)
class RowSelection:
    """Rows by their numbers, how they were chosen as a sentence and as data, and where a text was searched for, its first place in each."""

    numbers: Sequence[int]
    sentence: str
    facts: dict[str, Any]
    matches: Sequence[Match] = ()


def find_row(prepared: PreparedData, data: TokenizedData, query: InspectOptions) -> int:
    """The number of the row that is given by its number among those of a source, or by its id.

    Raises:
        RecipeError: no such source.
        DataError: no such row among the kept ones; with what became of it.
    """
    row, numbers, split = query.row or "0", _of_source(data, query), query.split
    whose = split if query.source is None else f"{query.source} in {split}"
    if row.lstrip("-").isdigit():
        if 0 <= int(row) < len(numbers):
            return numbers[int(row)]
        kept = f"0 to {len(numbers) - 1}" if len(numbers) else "none"
        raise DataError(f"--row {row}: {whose} has {len(numbers)} kept rows, {kept}")
    if row in data.ids and data.ids.index(row) in numbers:
        return data.ids.index(row)
    hint = drop_reason_of(prepared.directory, split, row) or (
        f"ids look like {data.ids[numbers[0]]}" if len(numbers) else "none is kept"
    )
    raise DataError(f"--row {row}: no kept row of {whose} has this id; {hint}")


def choose(data: TokenizedData, tokenizer: PreTrainedTokenizerBase, query: InspectOptions, console: Console) -> RowSelection:
    """The rows of a query in the order it asks for, those that contain its text, and no more than its limit.

    Raises:
        RecipeError: no such source.
    """
    numbers = _of_source(data, query)
    limit = query.limit or (FEW if query.find is not None else 1)
    facts: dict[str, Any] = {"source": query.source, "kept": len(numbers), "limit": limit}
    if query.random:
        facts["seed"] = new_seed(query)
    ordered = _in_order(data, numbers, query.longest, facts.get("seed"))
    rows = f"{len(numbers):,} kept rows of {query.source or query.split}{_how(query, facts)}"
    if query.find is None:
        shown = ordered[:limit]
        return RowSelection(shown, f"{len(shown):,} of {rows}", facts)
    with _searching(console, len(numbers)) as progress:
        found = search(data, ordered, tokenizer, query.find, limit, progress)
    facts |= {"find": query.find, "searched": found.searched}
    count = f"{len(found.matches):,} row{'' if len(found.matches) == 1 else 's'} with {query.find!r}"
    end = f"stopped at the limit of {limit:,}" if found.searched < len(numbers) else "that is all of them"
    sentence = f"{count}; searched {found.searched:,} of {rows}: {end}"
    return RowSelection([match.row for match in found.matches], sentence, facts, found.matches)


def check_source(data: TokenizedData, query: InspectOptions) -> None:
    """Raise RecipeError when a split has no source of the tag that is asked for."""
    tags = list(data.waterfall.sources)
    if query.source is not None and query.source not in tags:
        raise RecipeError(f"--source {query.source}: {query.split} has no such source; it has: {', '.join(tags) or 'none'}")


def new_seed(query: InspectOptions) -> int:
    """The seed of a random choice: the one that is given, or a new one."""
    return query.seed if query.seed is not None else secrets.randbelow(2**32)


def _of_source(data: TokenizedData, query: InspectOptions) -> Sequence[int]:
    check_source(data, query)
    if query.source is None:
        return range(len(data))
    return [number for number, tag in enumerate(data.sources) if tag == query.source]


def _in_order(data: TokenizedData, numbers: Sequence[int], longest: bool, seed: int | None) -> Sequence[int]:
    if longest:
        members = np.asarray(numbers, np.int64)
        return [int(number) for number in members[np.argsort(-data.longest[members], kind="stable")]]
    if seed is not None:
        return [numbers[int(place)] for place in np.random.default_rng(seed).permutation(len(numbers))]
    return numbers


def _how(query: InspectOptions, facts: dict[str, Any]) -> str:
    if query.longest:
        return ", longest first"
    return f" in random order (again with --seed {facts['seed']})" if query.random else ""


@contextmanager
def _searching(console: Console, rows: int) -> Iterator[Callable[[int], None]]:
    """Says in a terminal how far a search has come."""
    if not (console.is_terminal and console.is_interactive):
        yield lambda searched: None
        return
    with console.status("searching") as status:
        yield lambda searched: status.update(f"searched {searched:,} of {rows:,} rows") if searched % 100 == 0 else None


ANY = "all"


def inspect_dropped(data: Data, prepared: PreparedData, query: InspectOptions, reason: str) -> CommandResult:
    """Rows of a split that were dropped for a reason, each with its detail and all that its source has of it.

    Args:
        data: the section that names the sources.
        prepared: what it gave.
        query: which rows, and how many.
        reason: one that rows were dropped for, or `all`.

    Raises:
        RecipeError: no such source, or rows were dropped, but none for this reason; with those there are.
        DataError: a source that cannot be read any more.
    """
    split = prepared.train if query.split == "train" else prepared.eval
    check_source(split, query)
    counts, whose = _counts(split, query.source), query.source or query.split
    if counts and reason not in (ANY, *counts):
        raise RecipeError(f"--dropped {reason}: no row of {whose} is dropped for that; expected {ANY}, or {_listed(counts)}")
    limit, count = query.limit or FEW, counts.total() if reason == ANY else counts[reason]
    document: dict[str, Any] = {"split": query.split, "source": query.source, "dropped": reason, "count": count}
    document |= {"reasons": dict(counts), "limit": limit}
    if query.random:
        document["seed"] = new_seed(query)
    if query.find is not None:
        document["find"] = query.find
    rows = (row for row in dropped_rows(prepared.directory, query.split) if _is_wanted(row, query.source, reason))
    document["rows"] = [
        {"id": row.id, "source": row.source, "reason": row.reason, "detail": row.detail, "row": _plain(content)}
        for row, content in _with_content(data, query, rows, document)
    ]
    return CommandResult(_report(document, whose), document)


def _counts(data: TokenizedData, source: str | None) -> Counter[str]:
    """Dropped rows by reason, the most frequent first."""
    counts: Counter[str] = Counter()
    for tag, count in data.waterfall.sources.items():
        if source in (None, tag):
            counts.update(count.dropped)
    return Counter(dict(counts.most_common()))


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} ({count:,})" for reason, count in counts.items())


def _is_wanted(row: Dropped, source: str | None, reason: str) -> bool:
    return source in (None, row.source) and reason in (ANY, row.reason)


def _with_content(
    data: Data, query: InspectOptions, rows: Iterator[Dropped], document: Mapping[str, Any]
) -> list[tuple[Dropped, Content | None]]:
    """The rows that are shown; where a text is searched for, rows are read again until enough have it."""
    limit, seed = document["limit"], document.get("seed")
    if query.find is None:
        shown = list(islice(rows, limit)) if seed is None else _at(rows, _permutation(document["count"], seed)[:limit])
        contents = dict(read_again(data, query.split, shown))
        return [(row, contents.get(row)) for row in shown]
    found = _containing(data, query.split, rows, query.find)
    if seed is None:
        return [*islice(found, limit)]
    matching = list(found)
    return [matching[place] for place in _permutation(len(matching), seed)[:limit]]


def _permutation(count: int, seed: int) -> list[int]:
    return [int(place) for place in np.random.default_rng(seed).permutation(count)]


def _at(rows: Iterator[Dropped], places: Sequence[int]) -> list[Dropped]:
    """The rows at these places, in the order of the places."""
    wanted = set(places)
    found = {place: row for place, row in enumerate(rows) if place in wanted}
    return [found[place] for place in places]


def _containing(data: Data, split: str, rows: Iterable[Dropped], text: str) -> Iterator[tuple[Dropped, Content]]:
    pattern = re.compile(re.escape(text), re.IGNORECASE)
    for row, content in read_again(data, split, rows):
        if any(pattern.search(cell) for _, cell in cells(content) if isinstance(cell, str)):
            yield row, content


def _plain(value: Any) -> Any:
    """A cell as a JSON value: what JSON does not have, such as a date, is text."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    is_json = value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
    return value if is_json else str(value)


def _report(document: Mapping[str, Any], whose: str) -> RenderableType:
    if not document["reasons"]:
        return Text(f"no row of {whose} is dropped")
    rows, reason = document["rows"], document["dropped"]
    why = "" if reason == ANY else f" for {reason}"
    order = f", in random order (again with --seed {document['seed']})" if "seed" in document else ""
    having = f" with {document['find']!r}" if "find" in document else ""
    parts: list[RenderableType] = [
        WrapText(Text(f"{len(rows):,}{having} of the {document['count']:,} rows of {whose} that are dropped{why}{order}"))
    ]
    if reason == ANY:
        parts.append(WrapText(Text(_listed(document["reasons"]), style="dim")))
    for place, row in enumerate(rows, start=1):
        parts += [Text(), Rule(Text(f"{place} of {len(rows)}"), style="dim"), Text(), dropped_view(row)]
    return Group(*parts)


EDGE_VALUES = ("winner", "loser", "margin", "probability", "weight")


def inspect_rows(
    prepared: PreparedData, tokenizer: PreTrainedTokenizerBase, query: InspectOptions, console: Console
) -> CommandResult:
    """The kept rows that are asked for, one after the other; as data a list of them, or the row itself where one is named.

    Raises:
        RecipeError: no such source.
        DataError: no such row.
    """
    data = prepared.train if query.split == "train" else prepared.eval
    if query.names_one:
        number = find_row(prepared, data, query)
        document = row_document(data[number], number, query.split, tokenizer)
        return CommandResult(_view(document, tokenizer, query), document)
    chosen = choose(data, tokenizer, query, console)
    matches = {match.row: match for match in chosen.matches}
    rows = [row_document(data[number], number, query.split, tokenizer, matches.get(number)) for number in chosen.numbers]
    parts: list[RenderableType] = [WrapText(Text(chosen.sentence))]
    for place, row in enumerate(rows, start=1):
        parts += [Text(), Rule(Text(f"{place} of {len(rows)}"), style="dim"), Text(), _view(row, tokenizer, query)]
    return CommandResult(Group(*parts), {"split": query.split, **chosen.facts, "rows": rows})


def row_document(
    row: TokenizedComparison, number: int, split: str, tokenizer: PreTrainedTokenizerBase, match: Match | None = None
) -> dict[str, Any]:
    """A comparison as JSON values.

    Args:
        row: the comparison.
        number: of the row among the kept ones of its split.
        split: `train` or `eval`.
        tokenizer: gives its tokens back as text.
        match: where the text that was searched for is.
    """
    prompt, compared = decoded(row.sequences[0][: row.prompt_length], tokenizer), extremes(row)
    names = _names(row)
    document: dict[str, Any] = {
        "id": row.id,
        "source": row.source,
        "split": split,
        "row": number,
        "prompt": prompt,
        "prompt_length": row.prompt_length,
        "prefix_length": row.prefix_length,
        "preferences": [{name: getattr(edge, name) for name in EDGE_VALUES} for edge in row.preferences],
        "margin": row.preferences[0].margin,
        "ranking": ranking(row),
        "compared": list(compared),
        "first_difference": common_prefix_length([row.sequences[number] for number in compared]),
        "responses": [
            {"name": name, "rank": rank, **_response([int(token) for token in sequence], row.prompt_length, prompt, tokenizer)}
            for name, rank, sequence in zip(names, ranks(row), row.sequences, strict=True)
        ],
    }
    if match is not None:
        document["found"] = {"in": _place(match, len(prompt), names), **_span(match)}
    return document


def _names(row: TokenizedComparison) -> Sequence[str]:
    edges = [(edge.winner, edge.loser) for edge in row.preferences]
    if len(row.sequences) == 2 and edges == [(0, 1)]:
        return ("chosen", "rejected")
    return [f"response {place}" for place in range(len(row.sequences))]


def _place(match: Match, prompt_end: int, names: Sequence[str]) -> str:
    if match.end <= prompt_end:
        return "prompt"
    return f"prompt and {names[match.response]}" if match.begin < prompt_end else names[match.response]


def _span(match: Match) -> dict[str, int]:
    return {"response": match.response, "begin": match.begin, "end": match.end}


def _response(ids: list[int], prompt_length: int, prompt: str, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    text = decoded(ids, tokenizer)
    own = text[len(prompt) :] if text.startswith(prompt) else decoded(ids[prompt_length:], tokenizer)
    return {
        "length": len(ids),
        "reward_index": len(ids) - 1,
        "ids": ids,
        "tokens": token_strings(ids, tokenizer),
        "text": text,
        "own_text": own,
    }


def _view(document: dict[str, Any], tokenizer: PreTrainedTokenizerBase, query: InspectOptions) -> RenderableType:
    return comparison_view(document, tokenizer, show_ids=query.ids, side_by_side=query.side_by_side)


FIRST_LAYOUT: Layout = "shared_prefix"
FIRST_STEP = InspectOptions(step=0)

Run = tuple[str, int]
"""A kind of token and how many of it follow one another."""


def inspect_step(recipe: Recipe, console: Console, query: InspectOptions = FIRST_STEP) -> CommandResult:
    """Show the micro-batches of an optimizer step on every rank, and their comparisons.

    No model is built: `batching.layout: auto` is taken to be `shared_prefix`, and `batching.max_tokens: auto` what it is on a CPU.

    Args:
        recipe: its data section is used, and those that the plan follows from.
        console: shows progress.
        query: which step, and of how many processes.

    Raises:
        RecipeError: options that do not go together, no such step, or a comparison that is above the budget.
        DataError: the data is refused.
    """
    query.check()
    tokenizer = load_tokenizer(recipe.model, recipe.data)
    with ReadingProgress(console) as progress:
        data = prepare(recipe.data, tokenizer, progress).train
    document = step_document(recipe, data, tokenizer, query.step or 0, query.world_size or 1)
    return CommandResult(step_view(document, query.limit), document)


def step_document(
    recipe: Recipe, data: TokenizedData, tokenizer: PreTrainedTokenizerBase, number: int, world: int
) -> dict[str, Any]:
    """A step of so many processes as JSON values; see `step_view`. Raises RecipeError when there is no such step."""
    layout = FIRST_LAYOUT if recipe.batching.layout == "auto" else recipe.batching.layout
    plan = step_plan(recipe, data, layout, world)
    if number >= plan.total_steps:
        raise RecipeError(f"--step {number}: the run has {plan.total_steps} steps, 0 to {plan.total_steps - 1}")
    step = plan.step(number)
    batches = [
        _batch_document(rank, place, indices, batch, data, plan.costs)
        for rank in range(world)
        for place, (indices, batch) in enumerate(
            zip(step.micro_batches[rank], _laid_out(data, plan, layout, tokenizer, rank, number), strict=True)
        )
    ]
    return {
        "step": number,
        "steps": plan.total_steps,
        "epoch": step.epoch,
        "step_of_epoch": number % plan.steps_per_epoch,
        "steps_per_epoch": plan.steps_per_epoch,
        "layout": layout,
        "layout_is_auto": recipe.batching.layout == "auto",
        "max_tokens": plan.max_tokens,
        "max_tokens_is_auto": recipe.batching.max_tokens == "auto",
        "world_size": world,
        "comparisons": len(step.indices),
        "tokens": sum(batch["tokens"] for batch in batches),
        "padded_tokens": sum(batch["padded_tokens"] for batch in batches),
        "micro_batches": batches,
    }


def step_plan(recipe: Recipe, data: TokenizedData, layout: Layout, world: int) -> Plan:
    """The plan of a recipe on so many processes without a GPU; raises RecipeError when a comparison is above the budget."""
    costs = Costs.of(data, layout)
    max_tokens = cpu_budget(costs) if recipe.batching.max_tokens == "auto" else recipe.batching.max_tokens
    check_budget(costs, data.ids, max_tokens)
    return Plan.of(recipe, costs, max_tokens, world)


def _laid_out(
    data: TokenizedData, plan: Plan, layout: Layout, tokenizer: PreTrainedTokenizerBase, rank: int, number: int
) -> Sequence[MicroBatch]:
    return StepLoader(data, plan, layout, tokenizer.pad_token_id, rank).step(number).micro_batches


def _batch_document(
    rank: int, place: int, indices: Indices, batch: MicroBatch, data: TokenizedData, costs: Costs
) -> dict[str, Any]:
    rows = [_row_document(int(index), data[int(index)], runs) for index, runs in zip(indices, _runs(batch), strict=False)]
    tokens = sum(row["tokens"] for row in rows)
    longest = max((max(map(len, data[int(index)].sequences)) for index in indices), default=0)
    return {
        "rank": rank,
        "number": place,
        "tokens": tokens,
        "padding": sum(count for row in rows for kind, count in row["runs"] if kind == "padding"),
        "padded_tokens": longest * int(costs.responses[indices].sum()),
        "comparisons": rows,
    }


def _row_document(number: int, row: TokenizedComparison, runs: Sequence[Sequence[int]]) -> dict[str, Any]:
    named = list(_named(row, runs))
    return {
        "id": row.id,
        "source": row.source,
        "row": number,
        "prompt_length": row.prompt_length,
        "prefix_length": row.prefix_length,
        "response_lengths": [len(sequence) - row.prompt_length for sequence in row.sequences],
        "tokens": sum(count for _, count in named),
        "margin": row.preferences[0].margin if len(row.preferences) == 1 else None,
        "runs": named,
    }


def _runs(batch: MicroBatch) -> Iterator[list[list[int]]]:
    """Of each comparison its prefix, then for each response its tokens and its padding, as they lie in a micro-batch."""
    if batch.segments is not None:
        for prefix, responses in zip(batch.segments.prefixes, batch.segments.responses, strict=True):
            yield [[prefix], *([length, 0] for length in responses)]
        return
    assert batch.attention_mask_RT is not None, "rows that are padded have a mask"
    real = batch.attention_mask_RT.sum(1).tolist()
    begin, width = 0, batch.input_ids_RT.shape[1]
    for count in batch.response_counts:
        yield [[0], *([length, width - length] for length in real[begin : begin + count])]
        begin += count


def _named(row: TokenizedComparison, runs: Sequence[Sequence[int]]) -> Iterator[Run]:
    (prefix,), *responses = runs
    best, worst = extremes(row)
    kinds = {best: "chosen", worst: "rejected"}
    yield from [("prefix", prefix)] if prefix else []
    for number, (length, padding) in enumerate(responses):
        yield kinds.get(number, "other"), length
        yield from [("padding", padding)] if padding else []


FIRST_ROW = InspectOptions()


def inspect(recipe: Recipe, console: Console, query: InspectOptions = FIRST_ROW) -> CommandResult:
    """Show what a recipe makes of its data.

    Args:
        recipe: its data and model sections are used, and for a step those that the plan follows from.
        console: shows progress.
        query: what to show.

    Raises:
        RecipeError: options that do not go together, or a step, source or reason that there is not.
        DataError: no such row, or the data is refused; rows that are dropped can be looked at nevertheless.
    """
    query.check()
    if query.step is not None:
        return inspect_step(recipe, console, query)
    tokenizer = load_tokenizer(recipe.model, recipe.data)
    read = prepare if query.dropped is None else prepare_unchecked
    with ReadingProgress(console) as progress:
        prepared = read(recipe.data, tokenizer, progress)
    if query.dropped is not None:
        return inspect_dropped(recipe.data, prepared, query, query.dropped)
    return inspect_rows(prepared, tokenizer, query, console)
