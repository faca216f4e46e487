"""`rmtrain inspect`: rows as the model sees them, dropped rows as their sources have them, and the contents of an optimizer step."""

import math
import re
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.rule import Rule
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from rmtrain.batching.layout import Layout, lay_out
from rmtrain.batching.plan import Costs, Indices, Plan, check_budget, cpu_budget
from rmtrain.command_line.options import CommandResult, InspectOptions
from rmtrain.data.artifact import TokenizedData
from rmtrain.data.comparison import TokenizedComparison, common_prefix_length, extremes, ranking, ranks
from rmtrain.data.prepare import drop_reason_of, dropped_rows, prepare, prepare_unchecked, read_again
from rmtrain.data.rows.messages import cells
from rmtrain.data.text.tokenizer import Match, decoded, load_tokenizer, search
from rmtrain.errors import DataError, RecipeError
from rmtrain.evaluation.scorer import RewardScorer
from rmtrain.evaluation.token_rewards import parting
from rmtrain.model.saved_model import tokenizer_for_data
from rmtrain.recipe.schema import Data, Recipe
from rmtrain.report.comparison_view import comparison_view, dropped_view
from rmtrain.report.console import WrapText
from rmtrain.report.progress import ReadingProgress
from rmtrain.report.step_view import step_view
from rmtrain.report.token_strip import token_strings

Item = TypeVar("Item")
ANY_REASON = "all"
FEW = 3
"""Rows shown without `--limit`, where one alone would say little: of a search, and of dropped rows."""


def inspect(recipe: Recipe, console: Console, options: InspectOptions | None = None) -> CommandResult:
    """Show rows of a recipe's data, by default the first, or an optimizer step.

    Raises:
        RecipeError: options that cannot be combined; no such step, source or reason; a comparison above the budget of a step.
        DataError: no such row, or the data is refused. Dropped rows can be shown even then.
        CheckpointError: no such model, or one that is made for another chat template. NumericError: a reward that is not finite.
    """
    options = options or InspectOptions()
    options.check()
    if options.random and options.seed is None:
        options = replace(options, seed=secrets.randbelow(2**32))
    scorer = None if options.model is None else _load_model(options.model, recipe, options.allow_template_change)
    if scorer is None:
        tokenizer = load_tokenizer(recipe.model, recipe.data)
    else:
        tokenizer = tokenizer_for_data(str(scorer.path), scorer.tokenizer, recipe.data, options.allow_template_change)
    with ReadingProgress(console) as progress:
        prepared = (prepare if options.dropped is None else prepare_unchecked)(recipe.data, tokenizer, progress)
    if options.step is not None:
        document = _step_document(recipe, prepared.train, options.step, options.world_size or 1)
        return CommandResult(step_view(document, options.limit), document)

    data = prepared.train if options.split == "train" else prepared.eval
    if options.source is not None and options.source not in data.waterfall.sources:
        tags = ", ".join(data.waterfall.sources) or "none"
        raise RecipeError(f"--source {options.source}: {options.split} has no such source; it has: {tags}")
    if options.dropped is not None:
        return _show_dropped(recipe.data, data, prepared.directory, options, options.dropped)

    def describe(number: int, match: Match | None = None) -> dict[str, Any]:
        document = _row_document(data[number], number, options.split, tokenizer, match)
        return document if scorer is None else _with_rewards(document, data[number], scorer, console)

    view = partial(comparison_view, tokenizer=tokenizer, show_ids=options.ids, side_by_side=options.side_by_side)
    return _show_kept(data, prepared.directory, tokenizer, options, console, describe, view)


def _load_model(model: str, recipe: Recipe, allow_template_change: bool) -> RewardScorer:
    """Load the model whose rewards are shown, to compute as `rmtrain eval` with this recipe does.

    Raises CheckpointError as `load_reward_model`, and RecipeError where rows could have more tokens than the model has positions.
    """
    scorer = RewardScorer(model, precision=recipe.training.precision, allow_template_change=allow_template_change)
    positions, max_length = scorer.model.max_positions, recipe.data.max_length
    if positions is not None and max_length > positions:
        raise RecipeError(f"data.max_length: {model} has {positions} positions, got {max_length}; set {positions} or less")
    return scorer


def _show_kept(
    data: TokenizedData,
    directory: Path,
    tokenizer: PreTrainedTokenizerBase,
    options: InspectOptions,
    console: Console,
    describe: Callable[..., dict[str, Any]],
    view: Callable[[dict[str, Any]], RenderableType],
) -> CommandResult:
    """Show kept rows. The document is the row itself if one is named, and otherwise has a list of rows."""
    numbers: Sequence[int] = range(len(data))
    if options.source is not None:
        numbers = [number for number, tag in enumerate(data.sources) if tag == options.source]
    if options.names_one:
        number = _find_row(data, directory, numbers, options)
        document = describe(number)
        return CommandResult(view(document), document)

    limit = options.limit or (1 if options.find is None else FEW)
    document = {"split": options.split, "source": options.source, "kept": len(numbers), "limit": limit}
    document |= {} if options.seed is None else {"seed": options.seed}
    if options.longest:
        members = np.asarray(numbers, np.int64)
        ordered: Sequence[int] = members[np.argsort(-data.longest[members], kind="stable")].tolist()
    else:
        ordered = _in_order(numbers, options.seed)
    whole = f"{len(numbers):,} kept rows of {options.source or options.split}{_order_note(options)}"

    if options.find is None:
        matches: dict[int, Match | None] = dict.fromkeys(ordered[:limit])
        heading = f"{len(matches):,} of {whole}"
    else:
        matches, searched = {}, 0
        with console.status("searching") as status:
            for searched, match in enumerate(search(data, ordered, tokenizer, options.find), start=1):
                if match is not None:
                    matches[match.row] = match
                if len(matches) >= limit:
                    break
                if searched % 100 == 0:
                    status.update(f"searched {searched:,} of {len(numbers):,} rows")
        document |= {"find": options.find, "searched": searched}
        end = f"stopped at the limit of {limit:,}" if searched < len(numbers) else "no more rows"
        heading = f"{len(matches):,} with {options.find!r}; searched {searched:,} of {whole}: {end}"
    rows = [describe(number, match) for number, match in matches.items()]
    return CommandResult(_listing(Text(heading), [view(row) for row in rows]), document | {"rows": rows})


def _find_row(data: TokenizedData, directory: Path, numbers: Sequence[int], options: InspectOptions) -> int:
    """Return the number of the row given by its number within its source, or by its id; raise DataError if it was not kept."""
    row = options.row or "0"
    where = options.split if options.source is None else f"{options.source} in {options.split}"
    if row.lstrip("-").isdigit():
        if 0 <= int(row) < len(numbers):
            return numbers[int(row)]
        valid = f"0 to {len(numbers) - 1}" if len(numbers) else "none"
        raise DataError(f"--row {row}: {where} has {len(numbers)} kept rows, {valid}")
    if row in data.ids and data.ids.index(row) in numbers:
        return data.ids.index(row)
    hint = drop_reason_of(directory, options.split, row)
    if hint is None:
        hint = f"ids look like {data.ids[numbers[0]]}" if len(numbers) else "none is kept"
    raise DataError(f"--row {row}: no kept row of {where} has this id; {hint}")


def _listing(heading: Text, views: Sequence[RenderableType]) -> RenderableType:
    parts: list[RenderableType] = [WrapText(heading)]
    for place, view in enumerate(views, start=1):
        parts += [Text(), Rule(Text(f"{place} of {len(views)}"), style="dim"), Text(), view]
    return Group(*parts)


def _in_order(items: Sequence[Item], seed: int | None) -> Sequence[Item]:
    return items if seed is None else [items[place] for place in np.random.default_rng(seed).permutation(len(items)).tolist()]


def _order_note(options: InspectOptions) -> str:
    if options.longest:
        return ", longest first"
    return "" if options.seed is None else f", in random order (repeat with --seed {options.seed})"


def _row_document(
    row: TokenizedComparison, number: int, split: str, tokenizer: PreTrainedTokenizerBase, match: Match | None = None
) -> dict[str, Any]:
    """Return a comparison as JSON values, see `comparison_view`; `match` is the place of the text that was searched for."""
    prompt, compared = decoded(row.sequences[0][: row.prompt_length], tokenizer), extremes(row)
    names = [f"response {place}" for place in range(len(row.sequences))]
    if len(row.sequences) == 2 and [(edge.winner, edge.loser) for edge in row.preferences] == [(0, 1)]:
        names = ["chosen", "rejected"]
    responses = []
    for name, rank, sequence in zip(names, ranks(row), row.sequences, strict=True):
        ids = [int(token) for token in sequence]
        text = decoded(ids, tokenizer)
        # A tokenizer may decode the first characters of a response differently after its prompt.
        own_text = text[len(prompt) :] if text.startswith(prompt) else decoded(ids[row.prompt_length :], tokenizer)
        response = {"name": name, "rank": rank, "length": len(ids), "reward_index": len(ids) - 1, "ids": ids}
        responses.append(response | {"tokens": token_strings(ids, tokenizer), "text": text, "own_text": own_text})

    values = ("winner", "loser", "margin", "probability", "weight")
    document: dict[str, Any] = {
        "id": row.id,
        "source": row.source,
        "split": split,
        "row": number,
        "prompt": prompt,
        "prompt_length": row.prompt_length,
        "prefix_length": row.prefix_length,
        "preferences": [{name: getattr(edge, name) for name in values} for edge in row.preferences],
        "targets": [{name: getattr(target, name) for name in ("response", "value", "weight")} for target in row.targets],
        "weight": row.weight,
        "margin": row.preferences[0].margin if row.preferences else None,
        "ranking": ranking(row),
        "compared": list(compared),
        "first_difference": common_prefix_length([row.sequences[response] for response in compared]),
        "responses": responses,
    }
    if match is not None:
        place = names[match.response]
        if match.begin < len(prompt):
            place = "prompt" if match.end <= len(prompt) else f"prompt and {place}"
        document["found"] = {"in": place, "response": match.response, "begin": match.begin, "end": match.end}
    return document


def _with_rewards(document: dict[str, Any], row: TokenizedComparison, scorer: RewardScorer, console: Console) -> dict[str, Any]:
    """Return the document of a row with the rewards of a model: after each token, in the end, and where those of the two compared part."""
    with console.status("computing rewards"):
        rewards = scorer.token_rewards(row)
    responses = [
        {**response, "reward": own[-1], "token_rewards": list(own)}
        for response, own in zip(document["responses"], rewards, strict=True)
    ]
    parts = parting(*([values[number] for number in document["compared"]] for values in (row.sequences, rewards)))
    return {**document, "model": str(scorer.path), "responses": responses, "rewards_part": parts.rewards}


def _show_dropped(section: Data, data: TokenizedData, directory: Path, options: InspectOptions, reason: str) -> CommandResult:
    """Show rows dropped for a reason, or for any with `all`, each with its detail and the row as its source has it."""
    where = options.source or options.split
    totals: Counter[str] = Counter()
    for tag, count in data.waterfall.sources.items():
        totals.update(count.dropped if options.source in (None, tag) else {})
    counts = dict(totals.most_common())
    listed = ", ".join(f"{name} ({count:,})" for name, count in counts.items())
    if counts and reason not in (ANY_REASON, *counts):
        raise RecipeError(
            f"--dropped {reason}: no row of {where} was dropped for this reason; expected {ANY_REASON}, or {listed}"
        )

    seed, limit = options.seed, options.limit or FEW
    total = totals.total() if reason == ANY_REASON else counts.get(reason, 0)
    document: dict[str, Any] = {"split": options.split, "source": options.source, "dropped": reason, "count": total}
    document |= {"reasons": counts, "limit": limit}
    document |= {} if seed is None else {"seed": seed}
    document |= {} if options.find is None else {"find": options.find}

    rows = [
        row
        for row in dropped_rows(directory, options.split)
        if options.source in (None, row.source) and reason in (ANY_REASON, row.reason)
    ]
    if options.find is None:
        shown = _in_order(rows, seed)[:limit]
        contents = dict(read_again(section, options.split, shown))
        pairs = [(row, contents.get(row)) for row in shown]
    else:
        pattern = re.compile(re.escape(options.find), re.IGNORECASE)
        matching = (
            (row, content)
            for row, content in read_again(section, options.split, rows)
            if any(isinstance(cell, str) and pattern.search(cell) for _, cell in cells(content))
        )
        # In their own order, the sources are read only until there are enough rows.
        pairs = list(_in_order(list(islice(matching, limit if seed is None else None)), seed)[:limit])
    document["rows"] = [
        {"id": row.id, "source": row.source, "reason": row.reason, "detail": row.detail, "row": _json_value(content)}
        for row, content in pairs
    ]
    if not counts:
        return CommandResult(Text(f"no row of {where} was dropped"), document)
    of_reason = "" if reason == ANY_REASON else f" ({reason})"
    with_text = "" if options.find is None else f" with {options.find!r}"
    heading = Text(f"{len(pairs):,}{with_text} of {total:,} dropped rows of {where}{of_reason}{_order_note(options)}")
    if reason == ANY_REASON:
        heading.append(f"\n{listed}", "dim")
    return CommandResult(_listing(heading, [dropped_view(row) for row in document["rows"]]), document)


def _json_value(value: Any) -> Any:
    """Return a cell as a JSON value; values that JSON does not have, such as dates or NaN, become text."""
    if isinstance(value, Mapping):
        return {str(name): _json_value(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_json_value(inner) for inner in value]
    is_json = value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
    return value if is_json else str(value)


def _step_document(recipe: Recipe, data: TokenizedData, number: int, world: int) -> dict[str, Any]:
    """Return an optimizer step of `world` processes as JSON values, see `step_view`.

    No model is built: `batching.layout: auto` is taken to be `shared_prefix`, and `batching.max_tokens: auto` its value on a CPU.
    """
    layout: Layout = "shared_prefix" if recipe.batching.layout == "auto" else recipe.batching.layout
    plan = step_plan(recipe, data, layout, world)
    if number >= plan.total_steps:
        raise RecipeError(f"--step {number}: the run has {plan.total_steps} steps, 0 to {plan.total_steps - 1}")
    step = plan.step(number)
    batches = []
    for rank, micro_batches in enumerate(step.micro_batches):
        for place, indices in enumerate(micro_batches):
            batches.append({"rank": rank, "number": place, **_micro_batch(indices, data, layout)})
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
    """Return the plan of a recipe on `world` processes without GPUs; raise RecipeError if a comparison is above the budget."""
    costs = Costs.of(data, layout)
    max_tokens = cpu_budget(costs) if recipe.batching.max_tokens == "auto" else recipe.batching.max_tokens
    check_budget(costs, data.ids, max_tokens)
    return Plan.of(recipe, costs, max_tokens, world)


def _padded_lengths(rows: Sequence[TokenizedComparison]) -> list[int]:
    """Return the length of each response with its padding, in the order of the rows."""
    if not rows:
        return []
    batch = lay_out(rows, pad_token_id=0, layout="padded")
    lengths = [longest for first, end, longest in batch.blocks for _ in range(first, end)]
    return [lengths[number] for number in batch.sequence_N.tolist()]


def _micro_batch(indices: Indices, data: TokenizedData, layout: Layout) -> dict[str, Any]:
    rows = {number: data[number] for number in indices.tolist()}
    longest = max((len(sequence) for row in rows.values() for sequence in row.sequences), default=0)
    padded = iter(_padded_lengths([*rows.values()]) if layout == "padded" else ())
    comparisons = []
    for number, row in rows.items():
        # The tokens by kind, in the order in which `batching.layout.lay_out` stores them.
        kinds = {} if row.targets else dict(zip(extremes(row), ("chosen", "rejected"), strict=True))
        prefix = row.prefix_length if layout == "shared_prefix" else 0
        runs = [("prefix", prefix)]
        for place, sequence in enumerate(row.sequences):
            runs.append((kinds.get(place, "other"), len(sequence) - prefix))
            runs.append(("padding", next(padded, len(sequence)) - len(sequence)))
        runs = [(kind, tokens) for kind, tokens in runs if tokens]
        comparisons.append(
            {
                "id": row.id,
                "source": row.source,
                "row": number,
                "prompt_length": row.prompt_length,
                "prefix_length": row.prefix_length,
                "response_lengths": [len(sequence) - row.prompt_length for sequence in row.sequences],
                "tokens": sum(tokens for _, tokens in runs),
                "margin": row.preferences[0].margin if len(row.preferences) == 1 else None,
                "runs": runs,
            }
        )
    return {
        "tokens": sum(row["tokens"] for row in comparisons),
        "padding": sum(tokens for row in comparisons for kind, tokens in row["runs"] if kind == "padding"),
        "padded_tokens": longest * sum(len(row.sequences) for row in rows.values()),
        "comparisons": comparisons,
    }
