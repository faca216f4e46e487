"""What does not go together in the sources of a recipe."""

from collections.abc import Iterator, Sequence

from rmtrain.recipe.labels import label_misfits
from rmtrain.recipe.section import KeyPath, Misfit
from rmtrain.recipe.selection import condition_misfits
from rmtrain.recipe.sources import IMPLICIT, AbSource, PairSource, RankedSource, Source, TextSource

MARGINS = ("margin", "margin_from_label", "margin_from_score")
Placed = list[tuple[KeyPath, Source]]
"""Sources with their places in the recipe."""


def sources_misfits(train: Sequence[Source], evaluation: Sequence[Source], whole_rankings: bool) -> Iterator[Misfit]:
    """What is wrong with each source of a recipe, and tags that two of them share.

    Args:
        train, evaluation: the sources.
        whole_rankings: whether the objective learns rankings, which have no margins and no halves.
    """
    placed: Placed = [(("data", "train", number), source) for number, source in enumerate(train)]
    evaluated: Placed = [(("data", "eval", number), source) for number, source in enumerate(evaluation)]
    held_out = [(key, source) for key, source in placed if source.holdout]
    yield from dict([*_repeated_tags(placed), *_repeated_tags(held_out + evaluated)]).values()
    for key, source in placed + evaluated:
        yield from _source_misfits(source, key)
        yield from _format_misfits(source, key)
    for key, source in placed if whole_rankings else ():
        yield from _ranking_misfits(source, key)


def _repeated_tags(sources: Placed) -> Iterator[tuple[KeyPath, Misfit]]:
    first: dict[str, KeyPath] = {}
    for key, source in sources:
        owner = first.setdefault(source.title, key)
        if owner != key:
            message = f'"{source.title}" is also the tag of {".".join(map(str, owner))}; give each source its own'
            yield key, Misfit((*key, "tag"), message, (*key, "path"))


def _source_misfits(source: Source, at: KeyPath) -> Iterator[Misfit]:
    yield from condition_misfits(source.filter, (*at, "filter"))
    if source.streaming and source.limit is None:
        yield Misfit((*at, "streaming"), "missing `limit`; a stream is read up to a number of rows, so set it, too", at)


def _format_misfits(source: Source, at: KeyPath) -> Iterator[Misfit]:
    if isinstance(source, TextSource) and isinstance(source.prompt, tuple) and set(source.prompt) & set(IMPLICIT):
        word = next(column for column in source.prompt if column in IMPLICIT)
        yield Misfit((*at, "prompt"), f'"{word}" stands alone, not in a list of columns; write prompt: {word}', at)
    match source:
        case PairSource() if source.chosen == source.rejected:
            yield Misfit((*at, "rejected"), f'"{source.chosen}" is the column of the chosen side too', at)
        case AbSource():
            yield from _ab_misfits(source, at)
        case RankedSource():
            yield from _ranked_misfits(source, at)


def _ab_misfits(source: AbSource, at: KeyPath) -> Iterator[Misfit]:
    yield from label_misfits(source.label, (*at, "label"))
    if source.a == source.b:
        yield Misfit((*at, "b"), f'"{source.a}" is the column of the other candidate too', at)
    if source.margin_from_label and source.margin is not None:
        yield Misfit((*at, "margin_from_label"), "margin says where the margin is; remove one of them", at)
    if source.margin_from_label and source.label.by not in ("sign", "scores"):
        message = f"a label by {source.label.by} has no strength, only those by sign or scores; set margin, or remove it"
        yield Misfit((*at, "margin_from_label"), message, at)


def _ranked_misfits(source: RankedSource, at: KeyPath) -> Iterator[Misfit]:
    if source.responses is None and source.group_by is None:
        message = "missing; name the column of the list of responses, or set group_by where each row is one response"
        yield Misfit((*at, "responses"), message, at)
    if source.responses is not None and source.group_by is not None:
        message = "rows hold a list of responses, or are one response each; remove group_by or responses"
        yield Misfit((*at, "group_by"), message, at)
    if source.group_by is not None and source.response is None:
        yield Misfit((*at, "response"), "missing; with group_by it names the column of the response", (*at, "group_by"))
    if source.max_pairs is not None and source.policy == "best_worst":
        message = "no effect: policy best_worst gives one pair; remove it, or take policy all"
        yield Misfit((*at, "max_pairs"), message, at)


def _ranking_misfits(source: Source, at: KeyPath) -> Iterator[Misfit]:
    objective = ("objective", "type")
    margin = next((key for key in MARGINS if getattr(source, key, None)), None)
    if margin is not None:
        yield Misfit((*at, margin), "plackett_luce has no margins; remove it, or take bradley_terry", objective)
    if isinstance(source, AbSource) and source.tie == "half":
        yield Misfit((*at, "tie"), "plackett_luce has no half preferences; take drop, or bradley_terry", objective)
    if isinstance(source, RankedSource) and source.policy in ("best_vs_rest", "adjacent"):
        yield Misfit((*at, "policy"), "plackett_luce learns whole rankings; take all, or bradley_terry", objective)
    if isinstance(source, RankedSource) and source.max_pairs is not None:
        yield Misfit((*at, "max_pairs"), "plackett_luce learns whole rankings; remove it, or take bradley_terry", objective)
