"""Writes the comparisons of `recipes/quickstart.yaml`: beginnings of reviews, a warm and a cold continuation of each.

    python tests/make_sentiment.py recipes/data

Seeded, so that the files are the same on every machine. Train and test share words, but no prompt and no continuation.
The two sides have the same distribution of lengths: length gives nothing away.
"""

import itertools
import json
import random
import sys
from pathlib import Path

THINGS = {
    "film": ["the acting", "the plot", "the camera work", "the soundtrack", "the ending", "the dialogue"],
    "restaurant": ["the soup", "the service", "the bread", "the wine list", "the dessert", "the view"],
    "novel": ["the opening chapter", "the prose", "the hero", "the ending", "the dialogue", "the pacing"],
    "hotel": ["the bed", "the breakfast", "the staff", "the pool", "the view", "the lobby"],
    "concert": ["the singer", "the drummer", "the sound", "the light show", "the encore", "the crowd"],
    "museum": ["the guide", "the paintings", "the garden", "the café", "the audio tour", "the lobby"],
}
OPENINGS = [
    "Last week I went back to the {thing} {place} {company}.",
    "My sister told me about this {thing} {place}, and I tried it {company}.",
    "A few words about the {thing} {place}, which I chose {company}.",
    "I had waited months for this {thing} {place} and finally went {company}.",
    "Nobody warned me about the {thing} {place} before I went {company}.",
    "For what it is worth, I gave the {thing} {place} an evening {company}.",
]
PLACES = ["by the harbour", "in the old town", "near the station", "across the river", "on the square", "at the edge of the park"]
COMPANY = [
    "with my brother",
    "on my own",
    "with two friends",
    "with the children",
    "after work",
    "on a rainy Sunday",
    "with my mother",
]
WARM = [
    "superb",
    "a delight",
    "wonderful",
    "charming",
    "better than I had hoped",
    "brilliant",
    "a pleasure",
    "moving",
    "excellent",
    "flawless",
]
COLD = [
    "dreadful",
    "a chore",
    "terrible",
    "tedious",
    "worse than I had feared",
    "clumsy",
    "a letdown",
    "hollow",
    "awful",
    "careless",
]
WARM_ENDS = [
    "I would go again tomorrow.",
    "I smiled all the way home.",
    "Go while you can.",
    "It was worth every cent.",
    "We stayed until the end.",
]
COLD_ENDS = [
    "I would not go again.",
    "I sighed all the way home.",
    "Save your money.",
    "It was not worth a cent.",
    "We left before the end.",
]
LINKS = ["was", "turned out to be", "was, from start to finish,", "seemed"]


def continuation(rng: random.Random, thing: str, words: list[str], ends: list[str]) -> str:
    """One to three clauses about parts of the thing, and sometimes a closing sentence."""
    parts = rng.sample(THINGS[thing], rng.randint(1, 3))
    clauses = [f"{part} {rng.choice(LINKS)} {rng.choice(words)}" for part in parts]
    text = f"{', and '.join(clauses)}."
    return f"{text} {rng.choice(ends)}" if rng.random() < 0.5 else text


def prompts(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """Different prompts, each with the thing it is about."""
    every = [(thing, *rest) for thing in THINGS for rest in itertools.product(OPENINGS, PLACES, COMPANY)]
    return [
        (opening.format(thing=thing, place=place, company=company), thing)
        for thing, opening, place, company in rng.sample(every, count)
    ]


def comparisons(seed: int, count: int) -> list[dict[str, str]]:
    """Rows of `prompt`, `chosen`, `rejected`; every prompt and every continuation occurs once."""
    rng, seen, rows = random.Random(seed), set(), []
    for prompt, thing in prompts(rng, count):
        sides: list[str] = []
        for words, ends in ((WARM, WARM_ENDS), (COLD, COLD_ENDS)):
            side = next(text for _ in range(1000) if (text := continuation(rng, thing, words, ends)) not in seen)
            seen.add(side)
            sides.append(side)
        rows.append({"prompt": prompt, "chosen": sides[0], "rejected": sides[1]})
    return rows


def main(folder: Path) -> None:
    """Write `sentiment_train.jsonl` and `sentiment_test.jsonl` into a folder."""
    rows = comparisons(seed=20261124, count=1000)
    for name, part in {"train": rows[:800], "test": rows[800:]}.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in part]
        (folder / f"sentiment_{name}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
