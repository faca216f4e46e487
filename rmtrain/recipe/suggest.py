"""What an unknown key was meant to be: a near miss, a key of another section, what peers call a key of ours, or a secret."""

import difflib
from collections.abc import Iterable
from typing import NamedTuple

from rmtrain.recipe.peers import OPTIONS, PEERS
from rmtrain.recipe.redact import asks_for_secret
from rmtrain.recipe.section import KeyPath
from rmtrain.recipe.vocabulary import SectionType, either, entries, key_paths
from rmtrain.recipe.yaml import dotted

MERGE_KEY = "<<"
TRAIN, EVAL = ("data", "train"), ("data", "eval")


class Suggestion(NamedTuple):
    """What to say about an unknown key, and the key that was probably meant."""

    message: str
    meant: KeyPath | None = None


def suggest(path: KeyPath, sections: tuple[SectionType, ...]) -> Suggestion:
    """Explain the unknown key at `path`; `sections` are the kinds of section it stands in, the chosen one first."""
    name, where = str(path[-1]), path[:-1]
    advice = asks_for_secret(name)
    if advice:
        return Suggestion(f"unknown key; {advice}")
    if name == MERGE_KEY:
        return Suggestion("unknown key; merge keys are not followed, write the keys themselves")
    if name not in sections[0].model_fields and any(name in section.model_fields for section in sections[1:]):
        return Suggestion(_of_another_kind(name, sections))
    plain, here = name.lower().replace("-", "_"), _any_index(where)
    if plain in OPTIONS:
        return Suggestion(f"unknown key; {OPTIONS[plain]}")
    own = list(dict.fromkeys(key for section in sections for key in section.model_fields))
    everywhere = key_paths()
    peer = PEERS.get(f"{here[-1]}.{plain}" if here else plain) or PEERS.get(plain)
    if peer and plain not in own:
        return _did_you_mean(_of_same_split(peer, here), where)
    near = near_miss(plain, own, cutoff=0.85)
    if plain in everywhere and not near:
        return _belongs_under(everywhere[plain], here)
    near = near or near_miss(plain, own)
    if near:
        return _did_you_mean((*here, near), where)
    near = near_miss(plain, [*PEERS, *everywhere], cutoff=0.8)
    if near:
        return _did_you_mean(PEERS.get(near) or everywhere[near][0], where)
    return Suggestion(f"unknown key; expected {either(sections[0].model_fields)}")


def near_miss(word: str, words: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The most similar of `words`, if one is similar enough, or the first that `word` abbreviates."""
    similar = difflib.get_close_matches(word, (words := list(words)), n=1, cutoff=cutoff)
    abbreviated = [longer for longer in words if len(word) >= 3 and longer.startswith(word)]
    return next(iter([*similar, *abbreviated]), None)


def _of_another_kind(name: str, sections: tuple[SectionType, ...]) -> str:
    kinds = {entry.section: str(entry.kind) for entry in entries()}
    others = either(kinds[section] for section in sections[1:] if name in section.model_fields)
    return f"not a key of the kind {kinds[sections[0]]}, only of {others}; remove it"


def _any_index(path: KeyPath) -> KeyPath:
    return tuple(0 if isinstance(part, int) else part for part in path)


def _of_same_split(peer: KeyPath, here: KeyPath) -> KeyPath:
    """Sources have the same keys in `data.eval` as in `data.train`, where the names of peers lead."""
    return (*here[:2], *peer[2:]) if peer[:2] == TRAIN and here[:2] == EVAL else peer


def _did_you_mean(meant: KeyPath, where: KeyPath) -> Suggestion:
    if meant[:-1] == _any_index(where):
        return Suggestion(f"unknown key; did you mean {meant[-1]}?", (*where, meant[-1]))
    return Suggestion(f"unknown key; did you mean {dotted(meant)}?")


def _belongs_under(paths: list[KeyPath], here: KeyPath) -> Suggestion:
    shared = {path: sum(1 for _ in _common(path, here)) for path in paths}
    nearest = [path[:-1] for path in paths if shared[path] == max(shared.values())]
    return Suggestion(
        f"unknown key; it belongs {'under ' + either(map(dotted, nearest)) if all(nearest) else 'at the top level'}"
    )


def _common(path: KeyPath, other: KeyPath) -> Iterable[str | int]:
    for part, counterpart in zip(path, other, strict=False):
        if part != counterpart:
            return
        yield part
