"""What objectives and sources must fit together: wrong recipes are refused at their place."""

import json
from typing import Any

import pytest

from tests.recipe.recipes import GOOD, problems

PAIRS = {"path": "pairs.jsonl"}
SCORED = {"path": "rated.jsonl", "format": "scored", "response": "text", "target": "rating"}
SOFT = {"path": "ab.jsonl", "format": "ab", "a": "x", "b": "y", "label": {"by": "probability", "column": "p"}}
REGRESSION = {"type": "regression"}


@pytest.mark.parametrize(
    ("sources", "objective", "key", "words"),
    [
        ([SCORED], {}, "data.train.0.format", ["regression or binary", "bradley_terry"]),
        ([PAIRS], REGRESSION, "data.train.0.format", ["bradley_terry or plackett_luce", "regression"]),
        ([PAIRS, SCORED], REGRESSION, "data.train.0.format", ["by_source"]),
        ([PAIRS, SCORED], {"type": "by_source", "sources": {"rated": {"type": "plackett_luce"}}}, "data.train.1.format", ["plackett_luce"]),
        ([PAIRS], {"type": "by_source", "sources": {"other": {}}}, "objective.sources.other", ["pairs"]),
        ([PAIRS], {"margin": "scale"}, "data.train.0.format", ["margin"]),
        ([SOFT], {"type": "plackett_luce"}, "data.train.0.label", ["probabilities"]),
        ([SOFT | {"tie": "error"}], {}, "data.train.0.tie", ["soft"]),
        ([PAIRS | {"raw_weights": True}], {}, "data.train.0.raw_weights", ["weight"]),
        ([{**SCORED, "scale": 0.0}], REGRESSION, "data.train.0.scale", ["0"]),
        ([{key: value for key, value in SCORED.items() if key != "response"}], REGRESSION, "data.train.0.response", ["responses"]),
        ([PAIRS], {"type": "function", "path": "loss.py"}, "objective.path", ["loss.py"]),
        ([SCORED | {"augment": {"other_prompts": 0.5}}], REGRESSION, "data.train.0.augment", ["kind scored"]),
        ([SCORED | {"balance": "longer"}], REGRESSION, "data.train.0.balance", ["targets"]),
        (
            [PAIRS | {"margin": "m", "augment": {"other_prompts": 0.5}}],
            {"margin": "scale"},
            "data.train.0.augment",
            ["objective.margin"],
        ),
        ([SCORED | {"holdout": 0.1}], REGRESSION, "evaluation.gates.accuracy", ["preferences"]),
        ([PAIRS | {"holdout": 0.1}], {}, "checkpoints.best", ["auc", "targets"]),
        ([SCORED], REGRESSION | {"huber": 0.0}, "objective.huber", ["0"]),
        ([SCORED], REGRESSION | {"std": 0.0}, "objective.std", ["0"]),
        (
            [{**SOFT, "label": {"by": "value", "column": "v", "values": {1: "a", 0: "b"}, "soft": True}}],
            {},
            "data.train.0.label.soft",
            ["columns"],
        ),
        (
            [{"path": "r.jsonl", "format": "ranked", "group_by": "g", "response": "r", "score": "s", "weight": "w"}],
            {},
            "data.train.0.weight",
            ["group_by"],
        ),
        (
            [PAIRS],
            {"type": "by_source", "sources": {"pairs": {"router_balance": 0.1}}},
            "objective.sources.pairs.router_balance",
            ["objective.router_balance"],
        ),
    ],
)  # fmt: skip
def test_objectives_and_sources_must_fit(sources: list[Any], objective: dict[str, Any], key: str, words: list[str]) -> None:
    text = GOOD.replace("\n    - path: pairs.jsonl", f" {json.dumps(sources)}") + f"objective: {json.dumps(objective)}\n"
    metrics = {"evaluation": {"gates": {"accuracy": 0.7}}, "checkpoints": {"best": "auc"}}
    text += "".join(f"{part}: {json.dumps(keys)}\n" for part, keys in metrics.items() if key.startswith(part))
    came = problems(text)
    ours = [problem for problem in came if f"  {key}: " in problem]
    assert ours, came
    assert all(word in ours[0] for word in words), ours
    assert ours[0].startswith("recipe.yaml:"), "it has its place"
