"""`rmtrain inspect`: one comparison as the model sees it."""

from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from rmtrain.commands.outcome import Outcome
from rmtrain.data.artifact import TokenizedData
from rmtrain.data.comparison import TokenizedComparison
from rmtrain.data.prepare import fate, prepare
from rmtrain.data.tokenizer import load_tokenizer
from rmtrain.errors import DataError, RecipeError
from rmtrain.recipe.schema import Recipe
from rmtrain.report.formats import revealed
from rmtrain.report.pieces import token_strings
from rmtrain.report.reading import ReadingDisplay
from rmtrain.report.tokens import token_text


def inspect(
    recipe: Recipe,
    console: Console,
    *,
    row: str = "0",
    split: str = "train",
    show_ids: bool = False,
    boundaries: bool = False,
) -> Outcome:
    """Show a comparison: its tokens, what its responses share, where the reward is read, its text and its numbers.

    Args:
        recipe: its data and model sections are used.
        console: shows progress.
        row: number among the kept rows of the split, or a row id such as `hh:17`.
        split: `train` or `eval`.
        show_ids: write each token's id.
        boundaries: part tokens by a line, for where there are no colours.

    Raises:
        RecipeError: no such split.
        DataError: no such row, or the data is refused.
    """
    if split not in ("train", "eval"):
        raise RecipeError(f"--split {split}: expected train or eval")
    tokenizer = load_tokenizer(recipe.model, recipe.data)
    with ReadingDisplay(console) as progress:
        prepared = prepare(recipe.data, tokenizer, progress)
    data = prepared.train if split == "train" else prepared.eval
    number = find_row(data, row, split, prepared.directory)
    document = _document(data[number], number, split, tokenizer)
    return Outcome(_report(data[number], document, tokenizer, show_ids, boundaries), document)


def find_row(data: TokenizedData, row: str, split: str, directory: Path) -> int:
    """The number of a row given by number or by id.

    Raises:
        DataError: there is no such row among the kept ones; with what became of it, as the artifact's directory tells.
    """
    if row.lstrip("-").isdigit():
        if 0 <= int(row) < len(data):
            return int(row)
        kept = f"0 to {len(data) - 1}" if len(data) else "none"
        raise DataError(f"--row {row}: {split} has {len(data)} kept rows, {kept}")
    if row in data.ids:
        return data.ids.index(row)
    hint = fate(directory, split, row) or (f"ids look like {data.ids[0]}" if len(data) else "none is kept")
    raise DataError(f"--row {row}: no kept row of {split} has this id; {hint}")


def _document(row: TokenizedComparison, number: int, split: str, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    names = ("chosen", "rejected") if is_pair(row) else tuple(f"response {number}" for number in range(len(row.sequences)))
    sequences = [[int(token) for token in sequence] for sequence in row.sequences]
    return {
        "id": row.id,
        "source": row.source,
        "split": split,
        "row": number,
        "prompt_length": row.prompt_length,
        "prefix_length": row.prefix_length,
        "preferences": [
            {name: getattr(edge, name) for name in ("winner", "loser", "margin", "probability", "weight")}
            for edge in row.preferences
        ],
        "margin": row.preferences[0].margin,
        "responses": [
            {
                "name": name,
                "length": len(sequence),
                "reward_index": len(sequence) - 1,
                "ids": sequence,
                "tokens": token_strings(sequence, tokenizer),
                "text": tokenizer.decode(sequence, skip_special_tokens=False, clean_up_tokenization_spaces=False),
            }
            for name, sequence in zip(names, sequences, strict=True)
        ],
    }


def is_pair(row: TokenizedComparison) -> bool:
    """Whether a comparison is a chosen response, number 0, and a rejected one, and nothing else."""
    return len(row.sequences) == 2 and [(edge.winner, edge.loser) for edge in row.preferences] == [(0, 1)]


def _preference(edge: dict[str, Any]) -> str:
    """An edge in words; what is as usual is not said."""
    usual = {"margin": 0.0, "probability": 1.0, "weight": 1.0}
    said = [f"{name} {edge[name]:g}" for name, value in usual.items() if edge[name] != value]
    return f"{edge['winner']} over {edge['loser']}" + (f" ({', '.join(said)})" if said else "")


def _report(
    row: TokenizedComparison, document: dict[str, Any], tokenizer: PreTrainedTokenizerBase, show_ids: bool, boundaries: bool
) -> RenderableType:
    parts: list[RenderableType] = [_facts(row, document)]
    for response in document["responses"]:
        tokens = token_text(
            response["ids"],
            tokenizer,
            prefix_length=row.prefix_length,
            reward_index=response["reward_index"],
            show_ids=show_ids,
            boundaries=boundaries,
        )
        parts += [Text(), Text(response["name"], style="bold underline"), tokens]
    prompt = _prompt_text(row, tokenizer)
    texts = {"prompt": prompt} | {response["name"]: response["text"][len(prompt) :] for response in document["responses"]}
    for name, text in texts.items():
        parts += [Text(), Text(f"{name} as text", style="bold"), Text(revealed(text).strip())]
    return Group(*parts)


def _prompt_text(row: TokenizedComparison, tokenizer: PreTrainedTokenizerBase) -> str:
    prompt = row.sequences[0][: row.prompt_length]
    return str(tokenizer.decode(prompt, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _facts(row: TokenizedComparison, document: dict[str, Any]) -> Table:
    grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    lengths = ", ".join(f"{response['name']} {response['length']}" for response in document["responses"])
    unique = row.prefix_length + sum(len(sequence) - row.prefix_length for sequence in row.sequences)
    whole = sum(len(sequence) for sequence in row.sequences)
    preferred = ", ".join(_preference(edge) for edge in document["preferences"])
    judged = {"margin": f"{document['margin']:g}"} if is_pair(row) else {"preferred": f"responses {preferred}"}
    facts = {
        "row": f"{document['row']} of {document['split']}, id {row.id}",
        "source": row.source,
        "tokens": f"{lengths}; the prompt is {row.prompt_length} of each",
        "shared": f"the first {row.prefix_length}, up to │; with them computed once, {unique} tokens instead of {whole}",
        **judged,
        "reward": "read at the token marked ⟦ ⟧",
    }
    for name, value in facts.items():
        grid.add_row(name, Text(value))
    return grid
