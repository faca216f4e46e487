"""A RewardModel to a directory that every consumer loads, proven by loading it.

The save contract: merged weights in safetensors, one bias-free output named reward, raw numbers (`problem_type: regression`), a
pad id at both levels, configuration and tokenizer in the spelling of transformers 5 and 4, the chat template in both places,
`golden.json` with texts, ids and rewards, `rmtrain.json` with where it comes from, and the adapter in `adapter/` where there is one.
"""

import copy
import importlib.metadata
import json
import logging
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel

from rmtrain.batching.layout import lay_out
from rmtrain.data.comparison import Message, TokenizedComparison
from rmtrain.data.text.render import render_all
from rmtrain.data.text.tokenize import encode_conversations
from rmtrain.errors import DISK_FULL, CheckpointError, NumericError, RecipeError, TryAgain
from rmtrain.model import reload_check
from rmtrain.model.head import HeadSpec, head_of
from rmtrain.model.hf_compat import write_config, write_json, write_tokenizer
from rmtrain.model.hf_setup import quiet_transformers
from rmtrain.model.load import FACTS, load_from, load_reward_model, template_hash
from rmtrain.model.lora import adapter_facts, base_of, merge_saved_adapter
from rmtrain.model.pretrained import ModelRef, find_weights, load_backbone
from rmtrain.model.reward_model import RewardModel, evaluating, trainable_summary, unwrap

EXCHANGES = (
    ("How many legs has a spider?", "Eight."),
    (
        "Name a river.",
        "The Danube. It rises in the Black Forest and reaches the Black Sea after 2,850 kilometres and ten countries.",
    ),
    ("What is 7 times 8?", "56"),
    ("How do I boil an egg?", "Put it into boiling water for seven minutes,\n\nthen into cold water. Salt it, and eat it warm."),
)


def golden_texts(tokenizer: Any, max_length: int) -> list[tuple[str, list[int]]]:
    """Rendered conversations with their ids, of different lengths, none longer than `max_length` tokens unless all are."""
    single = [_messages([exchange]) for exchange in EXCHANGES]
    conversations = [*single, _messages(EXCHANGES)]
    texts = render_all(conversations, tokenizer, [f"golden text {number}" for number in range(len(conversations))])
    pairs = list(zip(texts, encode_conversations(conversations, tokenizer), strict=True))
    fitting = [pair for pair in pairs if len(pair[1]) <= max_length]
    return fitting or [min(pairs, key=lambda pair: len(pair[1]))]


def _messages(exchanges: Any) -> list[Message]:
    return [
        {"role": role, "content": text}
        for exchange in exchanges
        for role, text in zip(("user", "assistant"), exchange, strict=True)
    ]


logger = logging.getLogger("rmtrain")

GOLDEN = "golden.json"
ADAPTER = "adapter"
PACKAGES = ("rmtrain", "torch", "transformers", "tokenizers", "peft", "safetensors")

Golden = Sequence[tuple[str, Sequence[int]]]
"""Rendered texts with the ids the run gives them."""


def export_model(
    model: nn.Module,
    tokenizer: Any,
    directory: Path,
    golden: Golden,
    extra: Mapping[str, Any],
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a model beside `directory`, verify it in a fresh process through transformers alone, then move it there.

    The model itself is not changed. What failed the check stays in `.<name>.partial` to be looked at.

    Args:
        model: a RewardModel, or torch.compile or DDP around one.
        directory: where the model goes; an earlier export there is replaced.
        golden: at least one text with its ids, of different lengths where possible.
        extra: what else to say in `rmtrain.json`, such as recipe hash and longest length.
        dtype: of all weights but the head, which is float32; None: that of the model.

    Returns:
        `directory`.

    Raises:
        CheckpointError: the directory holds something else, the written weights are not those in memory, or the reload differs.
        NumericError: a golden reward is not finite.
        TryAgain: the disk is full.
    """
    if directory.exists() and not (directory / FACTS).is_file():
        raise CheckpointError(f"{directory} exists and is no export of rmtrain (it has no {FACTS}); choose another directory")
    partial, old = (directory.with_name(f".{directory.name}.{end}") for end in ("partial", "old"))
    if partial.exists():
        shutil.rmtree(partial)
    try:
        write_export(model, tokenizer, partial, golden, extra, dtype)
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) in DISK_FULL or "No space left" in str(error):
            shutil.rmtree(partial, ignore_errors=True)
            raise TryAgain(f"the disk of {directory} is full; free some space and repeat") from error
        raise CheckpointError(f"export: cannot write {partial}: {error}") from error
    check_reload(partial, _code_revision(unwrap(model)))
    _sync(partial)
    if directory.exists():
        shutil.rmtree(old, ignore_errors=True)  # of a process that was killed here
        os.replace(directory, old)
    os.replace(partial, directory)
    shutil.rmtree(old, ignore_errors=True)
    return directory


def _sync(directory: Path) -> None:
    """Put every file of a directory on the disk, before its name says that it is whole."""
    for path in [*directory.rglob("*"), directory]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_export(
    model: nn.Module,
    tokenizer: Any,
    directory: Path,
    golden: Golden,
    extra: Mapping[str, Any],
    dtype: torch.dtype | None = None,
) -> None:
    """Write an export and verify what can be verified without a fresh process. Arguments and errors as of `export_model`."""
    reward_model = unwrap(model)
    reward_model.use_layout("padded")
    entries = _golden_entries(reward_model, tokenizer, golden)
    directory.mkdir(parents=True)
    merged = _merged(reward_model, tokenizer, directory / ADAPTER)
    saved_dtype = dtype or reward_model.dtype
    if saved_dtype != reward_model.dtype:
        merged = rounded(merged, reward_model.head, saved_dtype)
    with quiet_transformers():
        merged.save_pretrained(directory)
    write_config(directory, tokenizer.pad_token_id)
    write_tokenizer(tokenizer, directory, reward_model.pools_last_token)
    del merged
    _check_weights(reward_model, directory)
    write_json(directory / FACTS, _facts(reward_model, tokenizer, saved_dtype, extra))
    origin = ModelRef(
        str(directory), _code_revision(reward_model), "export", CheckpointError, _code_revision(reward_model) is not None
    )
    exported, _ = load_from(origin, "cpu", torch.float32)
    in_memory = _rewards(reward_model, [entry["ids"] for entry in entries], tokenizer.pad_token_id)
    on_disk = _rewards(exported, [entry["ids"] for entry in entries], tokenizer.pad_token_id)
    _compare(reward_model, saved_dtype, in_memory, on_disk)
    write_json(directory / GOLDEN, [{**entry, "reward": reward} for entry, reward in zip(entries, on_disk, strict=True)])


def check_exportable(model: RewardModel, tokenizer: Any, golden: Golden) -> None:
    """Before training, refuse a tokenizer that consumers could not load: transformers picks its class by architecture.

    Raises:
        RecipeError: a golden text gets other ids from the tokenizer as saved and loaded.
    """
    with tempfile.TemporaryDirectory() as folder:
        model.core.config.save_pretrained(folder)
        write_tokenizer(tokenizer, Path(folder), model.pools_last_token)
        with quiet_transformers():
            loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    for entry in _golden_entries(model, tokenizer, golden):
        ids = list(loaded(entry["text"], add_special_tokens=entry["add_special_tokens"])["input_ids"])
        if ids != entry["ids"] or len(loaded) != len(tokenizer):
            found = f"the tokenizer of a {model.core.config.model_type} model as {type(loaded).__name__}"
            raise RecipeError(
                f"model: transformers loads {found}, with other ids than this one's; choose another architecture or tokenizer"
            )


def check_reload(directory: Path, code_revision: str | None = None) -> dict[str, Any]:
    """Run `reload_check.py` on an export in a fresh process, offline and with an empty cache.

    Args:
        code_revision: commit of a Hub model whose code may be run; its code is then read from the usual cache.

    Returns:
        What it printed: `ok`, `golden`, `largest_error`, `modes`, `skipped`.

    Raises:
        CheckpointError: the rewards are not reproduced, or nothing loads.
    """
    command = [sys.executable, "-P", str(reload_check.__file__), str(directory.resolve()), *filter(None, [code_revision])]
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"} | ({} if code_revision else {"HF_HOME": cache, "HF_HUB_CACHE": cache})
        process = subprocess.run(command, env=environment, capture_output=True, text=True, start_new_session=True)
    lines = process.stdout.strip().splitlines()
    if process.returncode == 0:
        report: dict[str, Any] = json.loads(lines[-1])
        return report
    complaint = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
    problem = json.loads(lines[-1])["problem"] if lines and lines[-1].startswith("{") else complaint[-1]
    raise CheckpointError(f"{directory} does not load as it was saved: {problem}")


def _code_revision(model: RewardModel) -> str | None:
    return model.origin.revision if model.origin is not None and model.origin.trust_remote_code else None


def _golden_entries(model: RewardModel, tokenizer: Any, golden: Golden) -> list[dict[str, Any]]:
    """Texts and ids, with whether the tokenizer is to add its special tokens to get from one to the other."""
    if not golden:
        raise CheckpointError("export: no golden texts; expected at least one")
    if model.pools_last_token and tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise CheckpointError(
            f"export: the pad token is the end token ({tokenizer.eos_token!r}); transformers would read rewards before it"
        )
    return [_golden_entry(tokenizer, number, text, list(map(int, ids))) for number, (text, ids) in enumerate(golden)]


def _golden_entry(tokenizer: Any, number: int, text: str, ids: list[int]) -> dict[str, Any]:
    if tokenizer.pad_token_id in ids:
        raise CheckpointError(
            f"export: golden text {number} contains the pad token {tokenizer.pad_token!r}, where transformers stops reading"
        )
    for special in (False, True):
        if list(tokenizer(text, add_special_tokens=special)["input_ids"]) == ids:
            return {"text": text, "add_special_tokens": special, "ids": ids}
    raise CheckpointError(f"export: golden text {number} does not give its ids with the run's tokenizer; expected {ids[:8]}...")


def _merged(model: RewardModel, tokenizer: Any, adapter: Path) -> PreTrainedModel:
    """The model to save: itself, or a copy with its adapter, which is saved first and merged from its file."""
    if not isinstance(model.hf, PeftModel):
        core: PreTrainedModel = model.core
        return core
    model.hf.save_pretrained(str(adapter), save_embedding_layers=False)
    (adapter / "README.md").unlink(missing_ok=True)
    write_tokenizer(tokenizer, adapter, model.pools_last_token)
    saved = find_weights(ModelRef(str(adapter), None, "export", CheckpointError), "adapter_model")
    _check_equal(model, saved.tensor(f"base_model.model.{model.head.weight}"), adapter)
    if getattr(model.core, "hf_quantizer", None) is None:
        return merge_saved_adapter(base_of(model.hf, model.head, model.dtype), adapter)
    assert model.origin is not None, "quantized weights come from a checkpoint"
    return merge_saved_adapter(load_backbone(model.origin, tokenizer, "new", dtype=model.dtype).model, adapter)


def rounded(model: PreTrainedModel, head: HeadSpec, dtype: torch.dtype) -> PreTrainedModel:
    """A copy of a model with weights of another type, all but its head, which stays float32."""
    copied = copy.deepcopy(model).to(dtype)
    source, target = (head_of(each, head) for each in (model, copied))
    target.float()
    target.load_state_dict(source.state_dict())
    copied.config.dtype = dtype
    return copied


def _check_weights(model: RewardModel, directory: Path) -> None:
    """Reopen the files: names without wrappers, no empty tensors, the head as it is in memory."""
    weights = find_weights(ModelRef(str(directory), None, "export", CheckpointError))
    for name in sorted(weights.names):
        if _has_wrapper(name):
            raise CheckpointError(f"export: {name} bears the name of a wrapper; expected the names of the transformers model")
        if weights.tensor(name).numel() == 0:
            raise CheckpointError(f"export: {name} was written empty; its weights were not gathered")
    if model.head.weight not in weights.names:
        raise CheckpointError(f"export: {model.head.weight} was not written")
    if model.pools_last_token and f"{model.head.name}.bias" in weights.names:
        raise CheckpointError(f"export: {model.head.name} has a bias, which consumers of causal models ignore")
    _check_equal(model, weights.tensor(model.head.weight), directory)


def _has_wrapper(name: str) -> bool:
    """Whether a tensor's name has a part that DDP, torch.compile or PEFT put there."""
    first, *_ = parts = name.split(".")
    return first in ("module", "base_model") or any(
        part in ("_orig_mod", "base_layer", "modules_to_save", "original_module") or part.startswith("lora_") for part in parts
    )


def _check_equal(model: RewardModel, saved: torch.Tensor, directory: Path) -> None:
    head = model.head_weight_1H.detach().cpu()
    if saved.shape != head.shape or saved.dtype != torch.float32 or not torch.equal(saved, head):
        raise CheckpointError(f"export: the head in {directory} is not the one in memory")


def _rewards(model: RewardModel, sequences: Sequence[Sequence[int]], pad_token_id: int) -> list[float]:
    """Reward of each sequence alone, so that padding has no part in it."""
    device = model.head_weight_1H.device
    with evaluating(model):
        rows = (TokenizedComparison("golden", "golden", (ids,), 0, 0, ()) for ids in sequences)
        return [float(model(lay_out([row], pad_token_id).to(device))) for row in rows]


def _compare(model: RewardModel, dtype: torch.dtype, in_memory: Sequence[float], on_disk: Sequence[float]) -> None:
    """Refuse an export whose rewards are not those of the model in memory, beyond what rounding to its type explains."""
    if not all(map(math.isfinite, [*in_memory, *on_disk])):
        raise NumericError(f"export: golden rewards are not finite: {in_memory} in memory, {on_disk} as saved")
    difference = max(abs(a - b) / (1 + abs(a)) for a, b in zip(in_memory, on_disk, strict=True))
    quantized = getattr(model.core, "hf_quantizer", None) is not None
    limit = math.inf if quantized else 1e-3 if dtype == torch.float32 else 0.1
    if difference > limit:
        raise CheckpointError(
            f"export: rewards as saved differ by {difference:.2g} from those in memory, {in_memory} against {on_disk}"
        )
    if dtype != torch.float32 or quantized:
        logger.info("rewards as saved in %s differ by at most %.2g (relative) from those in memory", dtype, difference)


def _public(path: str) -> str:
    """A Hub id, or of a directory its name alone: where it lies is nobody's business."""
    return Path(path).expanduser().resolve().name if Path(path).expanduser().exists() else path


def _facts(model: RewardModel, tokenizer: Any, dtype: torch.dtype, extra: Mapping[str, Any]) -> dict[str, Any]:
    base = None if model.origin is None else {"path": _public(model.origin.path), "revision": model.origin.revision}
    return {
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "base": base,
        "head": model.head.weight,
        "reads": "last token" if model.pools_last_token else "encoder head",
        "dtype": str(dtype).removeprefix("torch."),
        "parameters": trainable_summary(model)["total"],
        "adapter": adapter_facts(model.hf) if isinstance(model.hf, PeftModel) else None,
        "template_sha256": template_hash(tokenizer),
        **extra,
    }


TOLERANCE = 1e-3
"""How far rewards may be from those of the merged weights, absolute plus relative."""


def export_adapter(model: nn.Module, tokenizer: Any, directory: Path, golden: Golden, extra: Mapping[str, Any]) -> Path:
    """Write the adapter with its head and tokenizer beside `directory`, load it over its base, compare rewards, and move it there.

    Arguments are those of `export_model`.

    Returns:
        `directory`.

    Raises:
        RecipeError: the model has no adapter, or its base began as random numbers that nobody else has.
        CheckpointError: the directory holds something else, or what is loaded gives other rewards.
    """
    reward_model = unwrap(model)
    if not isinstance(reward_model.hf, PeftModel):
        raise RecipeError("--adapter: the run trained all weights and has no adapter; leave it out")
    if reward_model.origin is None:
        raise RecipeError("--adapter: its base model has random weights that are nowhere; leave it out to have merged ones")
    if directory.exists() and not (directory / FACTS).is_file():
        raise CheckpointError(f"{directory} exists and is no export of rmtrain (it has no {FACTS}); choose another directory")
    with tempfile.TemporaryDirectory(dir=directory.parent) as folder:
        whole = Path(folder) / "model"
        write_export(model, tokenizer, whole, golden, extra)
        for name in (GOLDEN, FACTS):
            shutil.move(whole / name, whole / ADAPTER / name)
        _check(reward_model, whole / ADAPTER, golden)
        if directory.exists():
            shutil.rmtree(directory)
        shutil.move(whole / ADAPTER, directory)
    return directory


def _check(model: RewardModel, adapter: Path, golden: Golden) -> None:
    loaded, tokenizer = load_reward_model(str(adapter), model.device)
    for _, ids in golden:
        expected, found = (_reward(each, tokenizer.pad_token_id, list(ids)) for each in (model, loaded))
        if not abs(expected - found) <= TOLERANCE * (1 + abs(expected)):
            raise CheckpointError(f"the adapter does not load as it was saved: a golden reward is {found}, expected {expected}")


def _reward(model: RewardModel, pad_token_id: int, ids: list[int]) -> float:
    with evaluating(model), torch.no_grad():
        model.use_layout("padded")
        return float(model(lay_out([TokenizedComparison("golden", "golden", (ids,), 0, 0, ())], pad_token_id).to(model.device)))
