"""`rmtrain inspect` of kept rows, each in full: its numbers, tokens and text."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.rule import Rule
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from rmtrain.commands.choice import choose, find_row
from rmtrain.commands.outcome import Outcome
from rmtrain.commands.query import Query
from rmtrain.data.checks.ranking import extremes, ranking, ranks
from rmtrain.data.checks.search import Match, decoded
from rmtrain.data.comparison import TokenizedComparison
from rmtrain.data.rows.prefix import common_prefix_length
from rmtrain.data.stored.prepare import PreparedData
from rmtrain.report.comparison import comparison_view
from rmtrain.report.pieces import token_strings
from rmtrain.report.surroundings import Flowing

EDGE_VALUES = ("winner", "loser", "margin", "probability", "weight")


def inspect_rows(prepared: PreparedData, tokenizer: PreTrainedTokenizerBase, query: Query, console: Console) -> Outcome:
    """The kept rows that are asked for, one after the other; as data a list of them, or the row itself where one is named.

    Raises:
        RecipeError: no such source.
        DataError: no such row.
    """
    data = prepared.train if query.split == "train" else prepared.eval
    if query.names_one:
        number = find_row(prepared, data, query)
        document = row_document(data[number], number, query.split, tokenizer)
        return Outcome(_view(document, tokenizer, query), document)
    chosen = choose(data, tokenizer, query, console)
    matches = {match.row: match for match in chosen.matches}
    rows = [row_document(data[number], number, query.split, tokenizer, matches.get(number)) for number in chosen.numbers]
    parts: list[RenderableType] = [Flowing(Text(chosen.sentence))]
    for place, row in enumerate(rows, start=1):
        parts += [Text(), Rule(Text(f"{place} of {len(rows)}"), style="dim"), Text(), _view(row, tokenizer, query)]
    return Outcome(Group(*parts), {"split": query.split, **chosen.facts, "rows": rows})


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


def _view(document: dict[str, Any], tokenizer: PreTrainedTokenizerBase, query: Query) -> RenderableType:
    return comparison_view(document, tokenizer, show_ids=query.ids, side_by_side=query.side_by_side)
