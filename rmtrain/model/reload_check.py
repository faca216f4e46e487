"""Load an exported model as any consumer does, through transformers alone, and compare its rewards with golden.json.

Run as a file in a process of its own: it imports nothing of rmtrain.

    python -P reload_check.py DIRECTORY [CODE_REVISION]

Prints one JSON line and exits with 0 when every reward is reproduced within 1e-5, absolute plus relative: one text at a time,
in a batch padded on the right, and for causal models in a batch padded on the left; from the golden ids, which the tokenizer
must give for the golden texts. Weights are loaded as float32. CODE_REVISION: the commit whose code may be run.
"""

import inspect
import json
import sys
from typing import Any

import torch
import transformers

TOLERANCE = 1e-5


def check(directory: str, code_revision: str | None = None) -> dict[str, Any]:
    """Compare; returns what was found, as printed. Raises nothing of its own: `ok` and `problem` say how it went."""
    code = {"trust_remote_code": True, "code_revision": code_revision} if code_revision else {}
    with open(f"{directory}/golden.json", encoding="utf-8") as file:
        golden = json.load(file)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, **code)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32, **code).eval()
    report: dict[str, Any] = {"ok": True, "golden": len(golden), "largest_error": 0.0, "modes": [], "skipped": []}
    problem = _token_problem(model, tokenizer, golden)
    if problem is not None:
        return {**report, "ok": False, "problem": problem}
    causal = hasattr(model, "score")
    if not causal:
        report["skipped"] = ["left: an encoder counts positions from the left edge"]
    for mode in ("single", "right", "left")[: 3 if causal else 2]:
        error, problem = _reward_problem(model, tokenizer.pad_token_id, golden, mode)
        report["largest_error"] = max(report["largest_error"], error)
        report["modes"].append(mode)
        if problem is not None:
            return {**report, "ok": False, "problem": problem}
    return report


def _token_problem(model: Any, tokenizer: Any, golden: list[dict[str, Any]]) -> str | None:
    if not golden:
        return "golden.json is empty"
    pads = {tokenizer.pad_token_id, model.config.pad_token_id, model.config.get_text_config().pad_token_id}
    if len(pads) != 1 or None in pads:
        return f"the pad ids of tokenizer and configuration are {pads}, expected one"
    for number, entry in enumerate(golden):
        ids = tokenizer(entry["text"], add_special_tokens=entry["add_special_tokens"])["input_ids"]
        if ids != entry["ids"]:
            return f"golden text {number} gives the ids {ids[:8]}..., expected {entry['ids'][:8]}..."
    return None


def _reward_problem(model: Any, pad: int, golden: list[dict[str, Any]], mode: str) -> tuple[float, str | None]:
    batches = [[entry["ids"]] for entry in golden] if mode == "single" else [[entry["ids"] for entry in golden]]
    rewards = [reward for batch in batches for reward in _rewards(model, pad, batch, left=mode == "left")]
    expected = [entry["reward"] for entry in golden]
    errors = [abs(reward - right) for reward, right in zip(rewards, expected, strict=True)]
    for number, (error, right) in enumerate(zip(errors, expected, strict=True)):
        if not error <= TOLERANCE + TOLERANCE * abs(right):
            return error, f"golden text {number} has the reward {rewards[number]!r} ({mode}), expected {right!r}"
    return max(errors), None


def _rewards(model: Any, pad: int, batch: list[list[int]], left: bool) -> list[float]:
    longest = max(map(len, batch))
    fill = [longest - len(ids) for ids in batch]
    input_ids = torch.tensor([[pad] * n * left + ids + [pad] * n * (not left) for n, ids in zip(fill, batch, strict=True)])
    mask = torch.tensor([[0] * n * left + [1] * len(ids) + [0] * n * (not left) for n, ids in zip(fill, batch, strict=True)])
    arguments = {"input_ids": input_ids, "attention_mask": mask}
    if left and "position_ids" in inspect.signature(model.forward).parameters:
        arguments["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(**arguments).logits
    if tuple(logits.shape) != (len(batch), 1):
        raise ValueError(f"logits have the shape {tuple(logits.shape)}, expected {(len(batch), 1)}")
    rewards: list[float] = logits[:, 0].float().tolist()
    return rewards


if __name__ == "__main__":
    result = check(*sys.argv[1:])
    print(json.dumps(result))
    sys.exit(0 if result["ok"] else 1)
