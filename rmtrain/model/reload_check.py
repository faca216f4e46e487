"""Load an exported model as any consumer does, through transformers alone, and compare its rewards with golden.json.

Runs as a script in a process of its own, and imports nothing of rmtrain: only then does it show what others get.

    python -P reload_check.py DIRECTORY [CODE_REVISION]

Prints one JSON line and exits with 0 if every reward is reproduced within 1e-5, absolute plus relative: one text at a time, in a
batch padded on the right, and in one padded on the left if the architecture allows it, by `rmtrain.json`. The ids are the golden
ones, which the tokenizer must give for the golden texts. Weights are loaded as float32. An export that brings its own code is loaded
with it. CODE_REVISION: the commit whose code may be run.
"""

import gc
import inspect
import json
import os
import sys
from typing import Any

if __name__ == "__main__":
    gc.disable()  # a fifth of the time of these imports

import torch
import transformers
from torch.nn.utils.rnn import pad_sequence

TOLERANCE = 1e-5


def check(directory: str, code_revision: str | None = None) -> dict[str, Any]:
    """Compare, and return the report to print, with `ok` and, if it is False, `problem`."""
    code = {"trust_remote_code": True, "code_revision": code_revision} if code_revision else {}
    if os.path.exists(f"{directory}/modeling_reward.py"):  # the code of the export itself
        code = {"trust_remote_code": True}
    with open(f"{directory}/golden.json", encoding="utf-8") as file:
        golden = json.load(file)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, **code)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32, **code).eval()
    with open(f"{directory}/rmtrain.json", encoding="utf-8") as file:
        left = json.load(file)["left_padding"]
    skipped = [] if left else ["left: padding on the left changes rewards of this architecture"]
    report: dict[str, Any] = {"ok": True, "golden": len(golden), "largest_error": 0.0, "modes": [], "skipped": skipped}
    problem = _token_problem(model, tokenizer, golden)
    for mode in ("single", "right", "left") if left else ("single", "right"):
        if problem is None:
            error, problem = _reward_problem(model, tokenizer.pad_token_id, golden, mode)
            report["largest_error"] = max(report["largest_error"], error)
            report["modes"].append(mode)
    return report if problem is None else {**report, "ok": False, "problem": problem}


def _token_problem(model: Any, tokenizer: Any, golden: list[dict[str, Any]]) -> str | None:
    if not golden:
        return "golden.json is empty"
    pads = {tokenizer.pad_token_id, model.config.pad_token_id, model.config.get_text_config().pad_token_id}
    if len(pads) != 1 or None in pads:
        return f"the pad ids of tokenizer and configuration are {pads}, expected one"
    for number, entry in enumerate(golden):
        ids = tokenizer(entry["text"], add_special_tokens=entry["add_special_tokens"])["input_ids"]
        if ids != entry["ids"]:
            return f"golden text {number} gets the ids {ids[:8]}..., expected {entry['ids'][:8]}..."
    return None


def _reward_problem(model: Any, pad: int, golden: list[dict[str, Any]], mode: str) -> tuple[float, str | None]:
    """Return the largest error, and the first reward that is not reproduced."""
    sequences = [entry["ids"] for entry in golden]
    batches = [[ids] for ids in sequences] if mode == "single" else [sequences]
    rewards = [reward for batch in batches for reward in _rewards(model, pad, batch, mode)]
    largest = 0.0
    for number, (reward, entry) in enumerate(zip(rewards, golden, strict=True)):
        expected = entry["reward"]
        error = abs(reward - expected)
        if not error <= TOLERANCE + TOLERANCE * abs(expected):
            return error, f"golden text {number} has the reward {reward!r} ({mode}), expected {expected!r}"
        largest = max(largest, error)
    return largest, None


def _rewards(model: Any, pad: int, batch: list[list[int]], mode: str) -> list[float]:
    side = "left" if mode == "left" else "right"
    padded = pad_sequence([torch.tensor(ids) for ids in batch], batch_first=True, padding_value=-1, padding_side=side)
    mask = (padded != -1).long()
    arguments = {"input_ids": padded.where(mask.bool(), pad), "attention_mask": mask}
    if mode == "left" and "position_ids" in inspect.signature(model.base_model.forward).parameters:
        arguments["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(**arguments).logits
    if tuple(logits.shape) != (len(batch), 1):
        raise ValueError(f"logits have the shape {tuple(logits.shape)}, expected {(len(batch), 1)}")
    rewards: list[float] = logits[:, 0].float().tolist()
    return rewards


if __name__ == "__main__":
    gc.freeze()
    gc.enable()
    result = check(*sys.argv[1:])
    print(json.dumps(result))
    sys.exit(0 if result["ok"] else 1)
