"""A RewardModel, written to a directory that every consumer loads, and proven by loading it.

The save contract: merged weights in safetensors, one bias-free output named reward, raw numbers (`problem_type: regression`), the
pad id at both levels, the chat template in both places, `golden.json` with texts, ids and rewards, `rmtrain.json` with the origin of
the model, and in `adapter/` the adapter if there is one. Configuration and tokenizer have the names of transformers 5 and 4: vLLM,
SGLang, TEI, reward-bench and OpenRLHF read those of 4, some silently with a wrong default.
"""

import copy
import importlib.metadata
import inspect
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors import SafetensorError
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel
from transformers.initialization import no_init_weights

from rmtrain.batching.layout import lay_out
from rmtrain.data.comparison import Message, TokenizedComparison
from rmtrain.data.text.encoder import encode_conversations
from rmtrain.data.text.renderer import render_all
from rmtrain.errors import DISK_FULL, CheckpointError, NumericError, RecipeError, TryAgain
from rmtrain.files import expanded, share, sync, temporary_folder
from rmtrain.model import reload_check
from rmtrain.model.classifier import HeadSpec, head_of, install_head, quiet_transformers, seeded
from rmtrain.model.last_token_classifier import CODE, is_made, write_code
from rmtrain.model.model_files import ModelRef, Weights, find_weights
from rmtrain.model.pretrained import load_pretrained
from rmtrain.model.reward_model import RewardModel, adapted, evaluating, trainable_summary, unwrap
from rmtrain.model.saved_model import FACTS, GOLDEN, load_from, template_hash

ADAPTER = "adapter"
REWARD_STATISTICS = ("mean", "std")
PACKAGES = ("rmtrain", "torch", "transformers", "tokenizers", "peft", "safetensors")
EXCHANGES = (
    ("How many legs has a spider?", "Eight."),
    (
        "Name a river.",
        "The Danube. It rises in the Black Forest and reaches the Black Sea after 2,850 kilometres and ten countries.",
    ),
    ("What is 7 times 8?", "56"),
    ("How do I boil an egg?", "Put it into boiling water for seven minutes,\n\nthen into cold water. Salt it, and eat it warm."),
)

TRANSFORMERS_4_TOKENIZERS = frozenset(
    f"{name}Tokenizer"
    for name in (
        *("Albert", "Barthez", "Bart", "Bert", "BigBird", "Bloom", "Camembert", "CodeGen", "Cohere", "Deberta", "DebertaV2"),
        *("DistilBert", "Electra", "FNet", "Funnel", "Gemma", "GPT2", "GPTNeoX", "Llama", "MobileBert", "MPNet", "OpenAIGPT"),
        *("Qwen2", "RemBert", "Roberta", "RoFormer", "SqueezeBert", "T5", "XLMRoberta"),
    )
)
"""Tokenizer classes that transformers 4 has under the same name."""

logger = logging.getLogger("rmtrain")

Golden = Sequence[tuple[str, Sequence[int]]]
"""Rendered texts with the ids that the run gives them."""


def golden_texts(tokenizer: Any, max_length: int) -> list[tuple[str, list[int]]]:
    """Return rendered conversations of different lengths with their ids, none longer than `max_length` tokens unless all are."""
    conversations: list[list[Message]] = [
        [{"role": role, "content": text} for turn in turns for role, text in zip(("user", "assistant"), turn, strict=True)]
        for turns in (*([turn] for turn in EXCHANGES), EXCHANGES)
    ]
    texts = render_all(conversations, tokenizer, [f"golden text {number}" for number in range(len(conversations))])
    golden = list(zip(texts, encode_conversations(conversations, tokenizer), strict=True))
    fitting = [(text, ids) for text, ids in golden if len(ids) <= max_length]
    return fitting or [min(golden, key=lambda entry: len(entry[1]))]


def check_exportable(model: RewardModel, tokenizer: Any, golden: Golden) -> None:
    """Before training, raise RecipeError if the tokenizer, saved and loaded again, gives other ids for a golden text.

    transformers picks the tokenizer's class by the architecture of the model.
    """
    model_type = model.backbone.config.model_type
    with temporary_folder() as folder:
        model.backbone.config.save_pretrained(folder)
        write_tokenizer(tokenizer, folder, model.pools_last_token)
        with quiet_transformers():
            loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    for entry in _golden_entries(tokenizer, golden):
        ids = list(loaded(entry["text"], add_special_tokens=entry["add_special_tokens"])["input_ids"])
        if ids != entry["ids"] or len(loaded) != len(tokenizer):
            raise RecipeError(
                f"model: transformers loads the tokenizer of a {model_type} model as {type(loaded).__name__}, which gives other ids; "
                "choose another architecture or tokenizer"
            )


def export_model(
    model: nn.Module, tokenizer: Any, directory: Path, golden: Golden, extra: Mapping[str, Any], dtype: torch.dtype | None = None
) -> Path:
    """Write a model next to `directory`, verify it in a fresh process through transformers alone, then rename it; return `directory`.

    The model is unchanged. An earlier export is replaced. One that fails the check stays in `.<name>.partial` for inspection.

    Args:
        model: a RewardModel, or torch.compile or DDP around one.
        golden: at least one text with its ids, of different lengths if possible.
        extra: further entries of `rmtrain.json`, such as the recipe's hash; mean and std of its `rewards` are also in `config.json`.
        dtype: dtype of all weights except the head, which is float32; None: that of the model.

    Raises:
        CheckpointError: the directory holds something else, the written weights are not those in memory, or the reload differs.
        NumericError: a golden reward is not finite.
        TryAgain: the disk is full.
    """
    partial = _write_partial(model, tokenizer, directory, golden, extra, dtype)
    check_reload(partial, _trusted_revision(unwrap(model)))
    return _move(partial, directory)


def export_adapter(model: nn.Module, tokenizer: Any, directory: Path, golden: Golden, extra: Mapping[str, Any]) -> Path:
    """Write the adapter with its head and tokenizer, verify it on its base, then rename it to `directory`; see `export_model`.

    Also raises RecipeError if the model has no adapter, or its base has random weights that nobody else has.
    """
    reward_model = unwrap(model)
    if not isinstance(reward_model.hf, PeftModel):
        raise RecipeError("--adapter: the run trained all weights and has no adapter; leave it out")
    if reward_model.base_ref is None:
        raise RecipeError(
            "--adapter: its base model has random weights that are not saved; leave it out to export merged weights"
        )
    partial = _write_partial(model, tokenizer, directory, golden, extra, None)
    for name in (GOLDEN, FACTS):
        os.replace(partial / name, partial / ADAPTER / name)
    ref = ModelRef(str(partial / ADAPTER), None, "model")
    loaded, _ = load_from(ref, reward_model.device)
    _check_rewards(reward_model, loaded, reward_model.dtype, tokenizer, golden)
    _move(partial / ADAPTER, directory)
    shutil.rmtree(partial)
    return directory


def _write_partial(
    model: nn.Module, tokenizer: Any, directory: Path, golden: Golden, extra: Mapping[str, Any], dtype: torch.dtype | None
) -> Path:
    if directory.exists() and not (directory / FACTS).is_file():
        raise CheckpointError(f"{directory} exists and is not an export of rmtrain (no {FACTS}); choose another directory")
    partial = directory.with_name(f".{directory.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    try:
        write_export(model, tokenizer, partial, golden, extra, dtype)
    except (OSError, SafetensorError) as error:
        # safetensors reports a full disk in the text of its own error.
        if getattr(error, "errno", None) in DISK_FULL or "No space left" in str(error):
            shutil.rmtree(partial, ignore_errors=True)
            raise TryAgain(f"the disk of {directory} is full; free some space and repeat") from error
        raise CheckpointError(f"export: cannot write {partial}: {error}") from error
    return partial


def _move(partial: Path, directory: Path) -> Path:
    """Sync every file to the disk, then rename, so that the name only ever shows a complete export."""
    for path in [*partial.rglob("*"), partial]:
        if path.suffix == ".safetensors":
            share(path)
        sync(path)
    old = directory.with_name(f".{directory.name}.old")
    if directory.exists():
        shutil.rmtree(old, ignore_errors=True)  # left by a process that was killed here
        os.replace(directory, old)
    os.replace(partial, directory)
    shutil.rmtree(old, ignore_errors=True)
    return directory


def write_export(
    model: nn.Module, tokenizer: Any, directory: Path, golden: Golden, extra: Mapping[str, Any], dtype: torch.dtype | None = None
) -> None:
    """Write an export and verify it in this process. Arguments and errors are those of `export_model`."""
    reward_model = unwrap(model)
    reward_model.use_layout("padded")
    if reward_model.pools_last_token and head_of(reward_model.backbone, reward_model.head).bias is not None:
        raise CheckpointError(f"export: {reward_model.head.name} has a bias, which consumers of causal models ignore")
    entries = _golden_entries(tokenizer, golden)
    directory.mkdir(parents=True)
    merged = _merge(reward_model, tokenizer, directory / ADAPTER)
    saved_dtype = dtype or reward_model.dtype
    if saved_dtype != reward_model.dtype:
        float_head = head_of(merged, reward_model.head)
        merged = copy.deepcopy(merged).to(saved_dtype)
        head_of(merged, reward_model.head).float().load_state_dict(float_head.state_dict())
        merged.config.dtype = saved_dtype
    with quiet_transformers():
        merged.save_pretrained(directory)
    code = write_code(merged, directory) if is_made(merged) else None
    write_config(directory, tokenizer.pad_token_id, code, extra.get("rewards"))
    write_tokenizer(tokenizer, directory, reward_model.pools_last_token)
    del merged
    facts = _facts(reward_model, tokenizer, saved_dtype, extra)
    write_json(directory / FACTS, facts)
    revision = _trusted_revision(reward_model)
    ref = ModelRef(str(directory), revision, "export", trust_remote_code=revision is not None)
    # Loading refuses names of wrappers, shards that were not gathered, and a head that is missing or has another shape.
    exported, _ = load_from(ref, "cpu")
    _check_head_equal(reward_model, find_weights(ref))
    saved = _check_rewards(reward_model, exported, saved_dtype, tokenizer, golden)
    write_json(directory / FACTS, facts | {"left_padding": _allows_left_padding(exported, tokenizer, golden)})
    write_json(directory / GOLDEN, [{**entry, "reward": reward} for entry, reward in zip(entries, saved, strict=True)])


def check_reload(directory: Path, code_revision: str | None = None) -> dict[str, Any]:
    """Run `reload_check.py` on an export in a fresh process, offline and with an empty cache, and return its report.

    With `code_revision`, code of that commit may be run, and is read from the usual cache.

    Raises:
        CheckpointError: the rewards are not reproduced, or the export does not load.
        TryAgain: the process was killed.
    """
    command = [sys.executable, "-P", str(reload_check.__file__), str(directory.resolve()), *filter(None, [code_revision])]
    with temporary_folder() as cache:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"} | (
            {} if code_revision else {"HF_HOME": str(cache), "HF_HUB_CACHE": str(cache)}
        )
        process = subprocess.run(command, env=environment, capture_output=True, text=True, start_new_session=True)
    last_line = (process.stdout.strip().splitlines() or [""])[-1]
    if process.returncode == 0:
        report: dict[str, Any] = json.loads(last_line)
        return report
    if process.returncode < 0:
        killed = signal.Signals(-process.returncode)
        hint = " (out of memory?)" if killed == signal.SIGKILL else ""
        raise TryAgain(f"{directory}: the process that reloads it was killed by {killed.name}{hint}; run the same command again")
    complaint = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
    problem = json.loads(last_line)["problem"] if last_line.startswith("{") else complaint[-1]
    raise CheckpointError(f"{directory} does not reload: {problem}")


def _trusted_revision(model: RewardModel) -> str | None:
    return model.base_ref.revision if model.base_ref is not None and model.base_ref.trust_remote_code else None


def _golden_entries(tokenizer: Any, golden: Golden) -> list[dict[str, Any]]:
    """Return texts and ids, with the `add_special_tokens` by which the tokenizer maps one to the other."""
    if not golden:
        raise CheckpointError("export: no golden texts; expected at least one")
    entries = []
    for number, (text, token_ids) in enumerate(golden):
        ids = list(map(int, token_ids))
        if tokenizer.pad_token_id in ids:
            problem = f"golden text {number} contains the pad token {tokenizer.pad_token!r}, where transformers stops reading"
            raise CheckpointError(f"export: {problem}; use another pad token")
        by_special = {special: list(tokenizer(text, add_special_tokens=special)["input_ids"]) for special in (False, True)}
        special = next((special for special, found in by_special.items() if found == ids), None)
        if special is None:
            raise CheckpointError(f"export: golden text {number} gets ids {by_special[False][:8]}..., expected {ids[:8]}...")
        entries.append({"text": text, "add_special_tokens": special, "ids": ids})
    return entries


def _merge(model: RewardModel, tokenizer: Any, adapter: Path) -> PreTrainedModel:
    """Return the model to save: itself, or a copy with its adapter, which is saved first and merged from its file."""
    if not isinstance(model.hf, PeftModel):
        whole: PreTrainedModel = model.backbone
        return whole
    model.hf.save_pretrained(str(adapter), save_embedding_layers=False)
    (adapter / "README.md").unlink(missing_ok=True)  # PEFT's template of a card
    write_tokenizer(tokenizer, adapter, model.pools_last_token)
    ref = ModelRef(str(adapter), None, "export")
    _check_head_equal(model, find_weights(ref, "adapter_model"), "base_model.model.")
    if getattr(model.backbone, "hf_quantizer", None) is None:
        base = _copy_base(model.hf, model.head, model.dtype)
    else:
        # Merging into 4-bit weights would round the adapter away, so it is merged into the base before quantization.
        assert model.base_ref is not None, "quantized weights come from a checkpoint"
        base = load_pretrained(model.base_ref, tokenizer, "new", dtype=model.dtype).model
    with quiet_transformers(), seeded(0, "overwritten"):
        merged: PreTrainedModel = PeftModel.from_pretrained(base, str(adapter), torch_device="cpu").merge_and_unload()
    return merged


def _copy_base(adapted: PeftModel, head: HeadSpec, dtype: torch.dtype) -> PreTrainedModel:
    """Return a copy, on the CPU, of the frozen model below the adapters; the adapted model is unchanged."""
    wrapped = adapted.get_base_model()
    weights = {}
    for name, tensor in wrapped.state_dict().items():
        parts = name.split(".")
        if not any(part.startswith(("lora_", "modules_to_save", "trainable_tokens_", "token_indices")) for part in parts):
            plain = [part for part in parts if part not in ("base_layer", "original_module", "token_adapter")]
            weights[".".join(plain)] = tensor
    with no_init_weights():
        base = type(wrapped)._from_config(copy.deepcopy(wrapped.config), dtype=dtype)
    install_head(base, head, None, seed=0)  # overwritten below
    base.load_state_dict(weights, strict=True)
    return base.eval()


def _check_head_equal(model: RewardModel, weights: Weights, prefix: str = "") -> None:
    saved = weights.tensor(f"{prefix}{model.head.name}.weight")
    if saved.dtype != torch.float32 or not torch.equal(saved, model.head_weight_1H.detach().cpu()):
        raise weights.ref.error(f"the head in {weights.ref.path} is not the one in memory")


def _check_rewards(model: RewardModel, saved: RewardModel, dtype: torch.dtype, tokenizer: Any, golden: Golden) -> list[float]:
    """Return the saved rewards, each of one text alone; refuse any that differ by more than the rounding to their dtype explains."""
    rows = [TokenizedComparison("golden", "golden", (list(map(int, ids)),), 0, 0, ()) for _, ids in golden]
    rewards = []
    for each in (model, saved):
        with evaluating(each):
            rewards.append([float(each(lay_out([row], tokenizer.pad_token_id).to(each.device))) for row in rows])
    in_memory, on_disk = rewards
    if not all(map(math.isfinite, [*in_memory, *on_disk])):
        raise NumericError(f"export: golden rewards are not finite: {in_memory} in memory, {on_disk} on disk")
    difference = max(abs(a - b) / (1 + abs(a)) for a, b in zip(in_memory, on_disk, strict=True))
    is_quantized = getattr(model.backbone, "hf_quantizer", None) is not None
    # A quantized base differs by its quantization error, for which there is no useful limit.
    limit = math.inf if is_quantized else 1e-3 if dtype == torch.float32 else 0.1
    if difference > limit:
        raise CheckpointError(f"export: rewards on disk differ by {difference:.2g} from those in memory: {on_disk}, {in_memory}")
    if dtype != torch.float32 or is_quantized:
        logger.info("rewards as saved in %s differ from those in memory by at most %.2g (relative)", dtype, difference)
    return on_disk


def _allows_left_padding(model: RewardModel, tokenizer: Any, golden: Golden) -> bool:
    """Return whether padding on the left leaves the hidden state of the last token unchanged.

    Encoders count positions from the left edge; RWKV has no mask, and the compression of DeepSeek-V4 none that starts elsewhere.
    """
    if not model.pools_last_token:
        return False
    base = model.backbone.base_model
    ids = torch.tensor([golden[0][1]], device=model.device)
    padded = F.pad(ids, (8, 0), value=tokenizer.pad_token_id)
    mask = F.pad(torch.ones_like(ids), (8, 0))
    positions = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    accepted = positions if "position_ids" in inspect.signature(base.forward).parameters else {}
    with evaluating(model):
        alone_H = base(input_ids=ids, attention_mask=torch.ones_like(ids))[0][0, -1]
        left_H = base(input_ids=padded, attention_mask=mask, **accepted)[0][0, -1]
    return float((left_H - alone_H).norm()) <= 1e-3 * float(alone_H.norm())


def _facts(model: RewardModel, tokenizer: Any, dtype: torch.dtype, extra: Mapping[str, Any]) -> dict[str, Any]:
    base, adapter = None, None
    if model.base_ref is not None:
        path = expanded(model.base_ref.path)
        # A local path must not be published: only the name of the directory is.
        base = {"path": path.resolve().name if path.exists() else model.base_ref.path, "revision": model.base_ref.revision}
    if isinstance(model.hf, PeftModel):
        config = model.hf.peft_config[model.hf.active_adapter]
        adapter = {"rank": config.r, "alpha": config.lora_alpha, "rslora": config.use_rslora, "dora": config.use_dora}
        counts = adapted(model)
        assert counts is not None, "a PeftModel has adapters"
        adapter |= {"linear_layers": counts.linear_layers, "expert_tensors": counts.expert_tensors}
    return {
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "base": base,
        "head": f"{model.head.name}.weight",
        "reads": "last token" if model.pools_last_token else "encoder head",
        "code": CODE if is_made(model.backbone) else None,
        "dtype": str(dtype).removeprefix("torch."),
        "parameters": trainable_summary(model)["total"],
        "adapter": adapter,
        "template_sha256": template_hash(tokenizer),
        **extra,
    }


def write_config(
    directory: Path, pad_token_id: int, auto_map: Mapping[str, str] | None = None, rewards: Mapping[str, float] | None = None
) -> None:
    """Complete `config.json`: both names of the dtype and of rotary positions, the pad id at both levels, and the code to load it with.

    `mean` and `std` of the rewards have the names that OpenRLHF reads; those of a model that was trained further are removed.
    """
    file = directory / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    for level in (config, config.get("text_config")):
        if isinstance(level, dict):
            level["pad_token_id"] = pad_token_id
            level.update(old_rope(level))
            if "dtype" in level:
                level["torch_dtype"] = level["dtype"]
    config.pop("_name_or_path", None)  # a path of this machine
    for name in REWARD_STATISTICS:
        config.pop(name, None)
        if rewards is not None and rewards["std"] > 0:  # they divide by it
            config[name] = rewards[name]
    if auto_map is not None:
        config["auto_map"] = auto_map
    write_json(file, config)


def old_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return rotary positions under the names of transformers 4, from the `rope_parameters` of a configuration.

    >>> old_rope({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}})
    {'rope_theta': 500000.0}
    """
    parameters, model_type = config.get("rope_parameters"), config.get("model_type")
    if not parameters:
        return {}
    if all(isinstance(value, dict) for value in parameters.values()):  # one set for each type of layer
        full, sliding = parameters.get("full_attention", {}), parameters.get("sliding_attention", {})
        if model_type == "modernbert":
            return {"global_rope_theta": full.get("rope_theta"), "local_rope_theta": sliding.get("rope_theta")}
        if not str(model_type).startswith("gemma3"):  # the only other one with such sets in transformers 4
            return {}
        old = {"rope_theta": full.get("rope_theta"), "rope_local_base_freq": sliding.get("rope_theta")}
        parameters = full
    else:
        old = {name: parameters[name] for name in ("rope_theta", "partial_rotary_factor") if name in parameters}
    if model_type == "gpt_neox":
        old |= {"rotary_emb_base": parameters["rope_theta"], "rotary_pct": parameters.get("partial_rotary_factor", 1.0)}
    scaling = {name: value for name, value in parameters.items() if name not in ("rope_theta", "partial_rotary_factor")}
    if model_type in ("phi3", "phimoe"):  # transformers 4 refuses any other key here
        names = ("short_factor", "long_factor", "short_mscale", "long_mscale")
        scaling = {"type": parameters.get("rope_type")} | {name: scaling[name] for name in names if name in scaling}
    return old if parameters.get("rope_type", "default") == "default" else {**old, "rope_scaling": scaling}


def write_tokenizer(tokenizer: Any, directory: Path, causal: bool) -> None:
    """Save a tokenizer with its chat template in both places and a class that transformers 4 has."""
    tokenizer.save_pretrained(directory)
    file = directory / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    if tokenizer.chat_template is not None:
        config["chat_template"] = tokenizer.chat_template
        (directory / "chat_template.jinja").write_text(tokenizer.chat_template, encoding="utf-8")
    if str(config.get("tokenizer_class", "TokenizersBackend")).removesuffix("Fast") not in TRANSFORMERS_4_TOKENIZERS:
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    for name in ("bos_token", "eos_token", "unk_token", "sep_token", "cls_token", "mask_token"):
        config.setdefault(name, None)  # left out, some tokenizer classes would add one of their own
    if causal:
        config["model_input_names"] = ["input_ids", "attention_mask"]  # GPT-2 would add an embedding for token types
    for name in ("name_or_path", "tokenizer_file", "vocab_file", "merges_file", "auto_map", "is_local", "local_files_only"):
        config.pop(name, None)
    config["padding_side"] = "right"
    write_json(file, config)


def write_json(file: Path, content: Any) -> None:
    """Write indented JSON with a newline at the end."""
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
