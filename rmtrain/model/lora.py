"""Low-rank adapters through PEFT: attached so that the head also trains, and merged into a copy for the export."""

import copy
import difflib
from collections.abc import Sequence

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.pytorch_utils import Conv1D

from rmtrain.errors import RecipeError
from rmtrain.model.head import HeadSpec, head_of, install_head
from rmtrain.model.hf_setup import quiet_transformers, seeded
from rmtrain.model.pretrained import LoadedModel, ModelRef
from rmtrain.recipe.schema import Lora


def attach_lora(loaded: LoadedModel, lora: Lora, base_ref: ModelRef | None, seed: int) -> PeftModel:
    """Freeze a model and add adapters to its linear layers.

    The head, new layers before it and the embeddings of new tokens also train, and are saved with the adapters. Everything
    that trains is float32.

    Raises:
        RecipeError: a target is the head, or names no linear layer.
    """
    model, head = loaded.model, loaded.head
    targets = _find_targets(model, head, loaded.new_modules, lora)
    embeddings = model.get_input_embeddings()
    embeddings_name = next(str(name) for name, module in model.named_modules() if module is embeddings)
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        modules_to_save=[head.root, *(name for name in loaded.new_modules if name.partition(".")[0] != head.root)],
        trainable_token_indices={embeddings_name: list(loaded.new_tokens)} if loaded.new_tokens else None,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        fan_in_fan_out=any(isinstance(model.get_submodule(name), Conv1D) for name in targets),
        base_model_name_or_path=None if base_ref is None else base_ref.path,
        revision=None if base_ref is None else base_ref.revision,
    )
    with quiet_transformers(), seeded(seed, "lora"):
        adapted = get_peft_model(model, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    # PEFT trains a head only if modules_to_save names it; a random frozen head is a known silent failure.
    assert head_of(adapted.get_base_model(), head).weight.requires_grad, "the head must train"
    return adapted


def _find_targets(model: PreTrainedModel, head: HeadSpec, new_modules: Sequence[str], lora: Lora) -> list[str]:
    """Return the names of the linear layers to adapt, without the head and new layers, which are trained whole."""
    whole = tuple(f"{name}." for name in (head.root, *new_modules))
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not f"{name}.".startswith(whole)
    ]
    if lora.targets == "all-linear":
        return linear
    chosen: set[str] = set()
    for target in lora.targets:
        matching = {name for name in linear if f".{name}".endswith(f".{target}")}
        if not matching and target in (head.root, head.name):
            raise RecipeError(f"lora.targets: {target} is the head, which always trains; remove it from the list")
        if not matching:
            known = sorted({name.rpartition(".")[2] for name in linear})
            near = difflib.get_close_matches(target, known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise RecipeError(f"lora.targets: no linear layer is named {target}; {hint}expected some of {', '.join(known)}")
        chosen |= matching
    return sorted(chosen)


def copy_base(adapted: PeftModel, head: HeadSpec, dtype: torch.dtype) -> PreTrainedModel:
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
    install_head(base, head, torch.zeros(1, base.get_submodule(head.name).in_features), None, seed=0)
    base.load_state_dict(weights, strict=True)
    return base.eval()
