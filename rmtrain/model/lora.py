"""Low-rank adapters through PEFT: attached so that the head trains too, and merged into a copy for the export."""

import copy
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.pytorch_utils import Conv1D

from rmtrain.errors import RecipeError
from rmtrain.model.head import HeadSpec, head_of, install_head
from rmtrain.model.hf_setup import quiet_transformers, seeded
from rmtrain.model.pretrained import Backbone, ModelRef
from rmtrain.recipe.schema import Lora

LINEAR = (nn.Linear, Conv1D)


def attach_lora(backbone: Backbone, lora: Lora, origin: ModelRef | None, seed: int) -> PeftModel:
    """Freeze a model and put adapters beside its linear layers.

    The head, new layers before it, and the embeddings of new tokens train and are saved with the adapters; all of these and
    the adapters themselves are float32.

    Raises:
        RecipeError: a target that is the head or no linear layer.
    """
    model, place = backbone.model, backbone.head
    targets = _targets(model, place, backbone.new_modules, lora)
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        modules_to_save=[place.root, *(name for name in backbone.new_modules if name.partition(".")[0] != place.root)],
        trainable_token_indices={_embeddings_name(model): list(backbone.new_tokens)} if backbone.new_tokens else None,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        fan_in_fan_out=any(isinstance(model.get_submodule(name), Conv1D) for name in targets),
        base_model_name_or_path=None if origin is None else origin.path,
        revision=None if origin is None else origin.revision,
    )
    with quiet_transformers(), seeded(seed, "lora"):
        adapted = get_peft_model(model, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    assert head_of(adapted.get_base_model(), place).weight.requires_grad, "the head must train"
    return adapted


def _targets(model: PreTrainedModel, place: HeadSpec, new_modules: Sequence[str], lora: Lora) -> list[str]:
    whole = (place.root, *new_modules)
    linear = [name for name, module in model.named_modules() if isinstance(module, LINEAR) and not _is_within(name, whole)]
    if lora.targets == "all-linear":
        return linear
    chosen: list[str] = []
    for target in lora.targets:
        found = [name for name in linear if name == target or name.endswith(f".{target}")]
        if not found:
            raise RecipeError(_no_target(target, place, linear))
        chosen += found
    return sorted(set(chosen))


def _is_within(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _no_target(target: str, place: HeadSpec, linear: Sequence[str]) -> str:
    if target in (place.root, place.name):
        return f"lora.targets: {target} is the head, which is always trained whole; remove it from the list"
    known = sorted({name.rpartition(".")[2] for name in linear})
    near = difflib.get_close_matches(target, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"lora.targets: no linear layer is named {target}{hint} There are: {', '.join(known)}"


def _embeddings_name(model: PreTrainedModel) -> str:
    embeddings = model.get_input_embeddings()
    return next(str(name) for name, module in model.named_modules() if module is embeddings)


def merge_saved_adapter(base: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """The base with a saved adapter merged into it: what the adapter's file lacks, the result lacks."""
    with quiet_transformers(), seeded(0, "overwritten"):
        merged: PreTrainedModel = PeftModel.from_pretrained(base, str(adapter), torch_device="cpu").merge_and_unload()
    return merged


def base_of(adapted: PeftModel, place: HeadSpec, dtype: torch.dtype) -> PreTrainedModel:
    """A copy, on the CPU, of the frozen model below the adapters; the adapted model itself stays as it is."""
    core = adapted.get_base_model()
    with no_init_weights():
        base = type(core)._from_config(copy.deepcopy(core.config), dtype=dtype)
    install_head(base, place, torch.zeros(1, base.get_submodule(place.name).in_features), None, seed=0)
    base.load_state_dict(_base_weights(core), strict=True)
    return base.eval()


def _base_weights(core: nn.Module) -> dict[str, Tensor]:
    """Weights by the names they have without PEFT."""
    weights: dict[str, Tensor] = {}
    for name, tensor in core.state_dict().items():
        if not any(
            part.startswith(("lora_", "modules_to_save", "trainable_tokens_", "token_indices")) for part in name.split(".")
        ):
            plain = [part for part in name.split(".") if part not in ("base_layer", "original_module", "token_adapter")]
            weights[".".join(plain)] = tensor
    return weights


def adapter_facts(adapted: PeftModel) -> dict[str, Any]:
    """What an export says about its adapter."""
    config = adapted.peft_config[adapted.active_adapter]
    return {"rank": config.r, "alpha": config.lora_alpha, "rslora": config.use_rslora, "dora": config.use_dora}
