"""What is trained on and scored: HH pairs or pairs like them, groups of four and of six responses, and the recipe around them."""

import json
import random
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerFast

from benchmarks.common import DATA
from rmtrain.data.artifact import SCHEMA, StoredRow, TokenizedData, record_batch
from rmtrain.data.comparison import Comparison, Preference, TokenizedComparison
from rmtrain.data.prepare import PreparedData
from rmtrain.data.rows.loading import load_comparisons
from rmtrain.data.text.encoder import Encoder, LengthPolicy
from rmtrain.data.waterfall import Waterfall
from rmtrain.recipe.schema import Recipe

HH = DATA / "hh_harmless.jsonl.gz"
RMBENCH = DATA / "rmbench_chat.json"
MAX_LENGTH, VOCABULARY = 1024, 8192


def recipe_for(rows: Path, folder: Path, scratch: dict[str, Any], **sections: dict[str, Any]) -> Recipe:
    """A recipe on HH transcripts: `simple_chat`, a byte-level BPE trained on the rows, float32, constant learning rate.

    Args:
        rows: file of `chosen` and `rejected` transcripts.
        folder: where its cache and its run directory lie.
        scratch: sizes of the model.
        sections: keys over those of the recipe; a model with a `path` replaces the one from scratch.
    """
    recipe: dict[str, dict[str, Any]] = {
        "run": {"name": "benchmark", "output_dir": str(folder / "run")},
        "data": {
            "train": [{"path": str(rows), "messages": {"transcript": "hh"}}],
            "chat_template": "simple_chat",
            "max_length": MAX_LENGTH,
            "cache_dir": str(folder / "cache"),
        },
        "model": {"scratch": {"vocab_size": VOCABULARY, "max_positions": 2 * MAX_LENGTH, **scratch}},
        "optimizer": {"lr": 1e-4, "schedule": "constant"},
        "training": {"precision": "float32"},
        "tracking": {"log_every": 1},
    }
    for name, keys in sections.items():
        recipe[name] = keys if "path" in keys else recipe.get(name, {}) | keys
    return Recipe.model_validate(recipe)


def llama(hidden: int) -> dict[str, Any]:
    """Sizes of the llamas that are trained on a CPU: heads of 64, the MLP 8/3 wide, 4 layers at 256 and 6 at 512."""
    layers = {256: 4, 512: 6}.get(hidden, 2)
    sizes = {"hidden_size": hidden, "layers": layers, "heads": hidden // 64, "intermediate_size": hidden * 8 // 3 // 64 * 64}
    return {"architecture": "llama", **sizes}


def hh_rows(path: Path, folder: Path, count: int = 1800) -> tuple[Path, str]:
    """The file of HH transcripts, or one of `count` generated pairs where it is absent, and what to call it."""
    if path.exists():
        return path, path.name
    made = folder / "generated.jsonl"
    made.write_text("".join(json.dumps(row) + "\n" for row in generated_transcripts(count)), encoding="utf-8")
    return made, f"{path.name} is absent: {count:,} generated pairs with the lengths of HH"


def generated_transcripts(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Pairs shaped like HH: one to nine exchanges of made-up words, the more frequent the shorter, two last replies."""
    rng = random.Random(seed)
    vocabulary = ["".join(rng.choices(["ba", "de", "ki", "lo", "mu", "ren", "sta", "th"], k=1 + i // 900)) for i in range(4000)]
    weights = [1 / (rank + 2) for rank in range(len(vocabulary))]

    def turn(role: str, median: float) -> str:
        words = rng.choices(vocabulary, weights, k=min(300, max(1, int(rng.lognormvariate(np.log(median), 0.8)))))
        return f"\n\n{role}: {' '.join(words)}"

    rows = []
    for _ in range(count):
        exchanges = min(8, int(rng.expovariate(0.55)))
        prompt = "".join(turn("Human", 17) + turn("Assistant", 33) for _ in range(exchanges)) + turn("Human", 17)
        rows.append({"chosen": prompt + turn("Assistant", 30), "rejected": prompt + turn("Assistant", 30)})
    return rows


def read_comparisons(recipe: Recipe) -> list[Comparison]:
    """Every usable row of a recipe's training data, as text."""
    (source,) = recipe.data.train
    return [row for batch in load_comparisons(source) for row in batch if isinstance(row, Comparison)]


def groups_of_four(pairs: Sequence[Comparison]) -> list[Comparison]:
    """Each prompt with its own two responses and two of other prompts, ranked in this order, with all six edges."""
    edges = tuple(Preference(winner, loser) for winner, loser in combinations(range(4), 2))
    groups = []
    for number, row in enumerate(pairs):
        near, far = (pairs[(number + distance) % len(pairs)].responses[side] for side, distance in enumerate((7, 14)))
        groups.append(Comparison(row.id, row.source, row.prompt, (*row.responses, near, far), edges))
    return groups


def groups_of_six(path: Path, count: int = 129) -> list[Comparison]:
    """RM-Bench's prompts with three chosen and three rejected responses and its nine edges, or generated ones of such lengths."""
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else _generated_groups(count)
    edges = tuple(Preference(winner, 3 + loser) for winner in range(3) for loser in range(3))
    return [
        Comparison(
            f"groups:{number}",
            "groups",
            ({"role": "user", "content": row["prompt"]},),
            tuple(({"role": "assistant", "content": text},) for text in (*row["chosen"], *row["rejected"])),
            edges,
        )
        for number, row in enumerate(rows[:count])
    ]


def _generated_groups(count: int) -> list[dict[str, Any]]:
    """A short prompt; of each side a concise, a detailed and a formatted response."""
    rng = random.Random(0)
    words = [row["chosen"].split() for row in generated_transcripts(200)]
    text = [word for row in words for word in row]

    def some(length: int) -> str:
        return " ".join(rng.choices(text, k=int(length * rng.uniform(0.6, 1.4))))

    sides = [[some(55), some(400), some(450)] for _ in range(2 * count)]
    return [{"prompt": some(30), "chosen": sides[2 * i], "rejected": sides[2 * i + 1]} for i in range(count)]


def encode(comparisons: Sequence[Comparison], tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> list[TokenizedComparison]:
    """The comparisons of which every response fits `data.max_length`, as tokens."""
    edges = len(comparisons[0].preferences)
    checked = Encoder(tokenizer, LengthPolicy.of(recipe.data)).encode(comparisons)
    return [item.row for item in checked if item.row is not None and len(item.row.preferences) == edges]


def stored(rows: Sequence[TokenizedComparison], folder: Path) -> PreparedData:
    """Rows as training data on disk, memory-mapped as `train` reads them. The evaluation split is empty."""
    folder.mkdir(parents=True)
    kept = [StoredRow(row, 0, [0] * len(row.sequences)) for row in rows]
    for split, batch in (("train", kept), ("eval", [])):
        with pa.ipc.new_file(str(folder / f"{split}.arrow"), SCHEMA) as file:
            if batch:
                file.write_batch(record_batch(batch))
    train, evaluation = (TokenizedData(folder / f"{split}.arrow", "benchmark", Waterfall()) for split in ("train", "eval"))
    return PreparedData(train, evaluation, folder, "benchmark", ())


def visible_pairs(row: TokenizedComparison) -> int:
    """InspectOptions-key pairs of a comparison when its prefix is computed once: the multiply-adds of attention are proportional to it."""
    prefix = row.prefix_length
    rest = [len(sequence) - prefix for sequence in row.sequences]
    return prefix * (prefix + 1) // 2 + sum(own * prefix + own * (own + 1) // 2 for own in rest)


def unique_tokens(row: TokenizedComparison) -> int:
    """Tokens of a comparison with its prefix counted once."""
    return sum(map(len, row.sequences)) - (len(row.sequences) - 1) * row.prefix_length
