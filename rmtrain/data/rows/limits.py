"""`dedup` and `cap` of a source: the first comparisons stay. The state lives where all rows pass in their order."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from rmtrain.data.comparison import Dropped, Preference
from rmtrain.data.rows.messages import BadRow
from rmtrain.data.rows.quota import Keys, Quota
from rmtrain.data.rows.responses import dropped
from rmtrain.recipe.schema import Source


@dataclass(frozen=True, slots=True)
class Marks:
    """What `dedup` and `cap` know comparisons by, 64 bits for each; either may be left empty where it is not asked for.

    That two of ten million differ and yet look the same has a chance of 3 in a million.
    """

    contents: Keys
    groups: Keys


class Limits:
    """Refuses comparisons that say what an earlier one says, then those whose value has had its share.

    What is held out is counted apart from what is trained on, so that neither takes the other's place.

    Args:
        source: whose `dedup` and `cap` hold.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._contents: dict[str, Quota] = defaultdict(lambda: Quota(1))
        self._groups: dict[str, Quota] = defaultdict(lambda: Quota(source.cap.rows if source.cap else 0))

    def refused(self, split: str, ids: Sequence[str], marks: Marks) -> list[Dropped]:
        """Those of some comparisons that do not stay, in their order; all of a source must come, in order.

        Args:
            split: where they go.
            ids: their row ids.
            marks: one for each.
        """
        left, found, cap = np.arange(len(ids)), {}, self.source.cap
        if self.source.dedup:
            is_new = self._contents[split].admit(marks.contents)
            found = dict.fromkeys(left[~is_new].tolist(), BadRow("duplicate", "an earlier row says the same"))
            left = left[is_new]
        if cap is not None:
            fits = self._groups[split].admit(marks.groups[left])
            problem = BadRow("capped", f"{cap.rows} earlier rows have its {cap.by}")
            found |= dict.fromkeys(left[~fits].tolist(), problem)
        return [dropped(ids[place], self.source.title, problem) for place, problem in sorted(found.items())]


def is_limited(source: Source) -> bool:
    """Whether a source has anything for `Limits` to do."""
    return source.dedup or source.cap is not None


def content_key(prompt_hash: int, response_hashes: Sequence[int], preferences: Sequence[Preference]) -> int:
    """64 bits of what a comparison says, whatever the order of its responses and preferences."""
    edges = sorted(
        (response_hashes[edge.winner], response_hashes[edge.loser], edge.margin, edge.probability, edge.weight)
        for edge in preferences
    )
    content = repr((prompt_hash, sorted(response_hashes), edges))
    return int.from_bytes(blake2b(content.encode(), digest_size=8).digest())
