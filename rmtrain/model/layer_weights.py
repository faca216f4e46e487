"""The weights of a model's layers, read one layer at a time, for strategies that shard each layer before the next one is read.

Until then a layer has placeholders: parameters of the right shape, type and device that take no memory.
"""

import copy
from collections import defaultdict
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, convert_and_load_state_dict_in_model, rename_source_key
from transformers.modeling_utils import LoadStateDictConfig

from rmtrain.errors import CheckpointError
from rmtrain.model.attention import layers_of
from rmtrain.model.classifier import quiet_transformers
from rmtrain.model.model_files import Weights

OUTSIDE = ""
"""The part of a model that is in no layer: embeddings, last norm, head."""


class LayerWeights:
    """The weights of those layers of a model that still have placeholders.

    Only transformers knows how the tensors of a checkpoint become those of a model: names change, and experts are fused. So each layer is
    read into `source`, a copy of the model on the meta device, whose names stay those of transformers when the model gets adapters.
    """

    def __init__(self, model: PreTrainedModel, weights: Weights, key_mapping: dict[str, str] | None) -> None:
        """Give a model on the meta device its buffers, the weights outside of its layers, and placeholders in these.

        Weights that the checkpoint lacks are left without a value. `key_mapping` is that of `from_pretrained`.
        """
        self.weights = weights
        self.source = copy.deepcopy(model)
        self.empty = {**dict(self.source.named_parameters()), **dict(self.source.named_buffers())}
        self.conversions = get_model_conversion_mapping(self.source, key_mapping)
        modules = {module: name for name, module in model.named_modules()}
        layers = [f"{modules[layer]}." for layer in layers_of(model)]
        if any(name.startswith(tuple(layers)) for name in model.all_tied_weights_keys):
            layers = []  # layers that share weights, as in Zamba, are read together
        self.keys = self._keys_by_part(layers)
        with init_empty_weights():  # buffers that no checkpoint has, such as rotary frequencies, are computed as a model is made
            buffers = dict(type(model)._from_config(copy.deepcopy(model.config), dtype=model.dtype).named_buffers())
        self.waiting: dict[str, dict[str, tuple[dict[str, Any], str]]] = defaultdict(dict)
        for prefix, module in model.named_modules():
            for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is None:
                    continue
                full_name = f"{prefix}.{name}" if prefix else name
                part = next((layer for layer in layers if full_name.startswith(layer)), OUTSIDE)
                held: dict[str, Any] = module._buffers if name in module._buffers else module._parameters
                self.waiting[part][full_name] = (held, name)
                held[name] = buffers[full_name] if name in module._buffers else _placeholder(tensor, part)
        self._fill(OUTSIDE)
        model.tie_weights()

    def _keys_by_part(self, layers: list[str]) -> dict[str, list[str]]:
        """Return the names in the checkpoint for each layer, and for the part outside of layers."""
        renamings = [entry for entry in self.conversions if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in self.conversions if not isinstance(entry, WeightRenaming)]
        prefix, names = self.source.base_model_prefix, self.source.state_dict()
        keys = defaultdict(list)
        for key in self.weights.files:
            renamed, _ = rename_source_key(key, renamings, converters, prefix, names)
            if renamed not in names and key in names:  # as transformers does
                renamed = key
            keys[next((layer for layer in layers if renamed.startswith(layer)), OUTSIDE)].append(key)
        return keys

    @property
    def names(self) -> set[str]:
        """Names of the parameters and buffers that are not read yet, within the model without adapters."""
        return {name for places in self.waiting.values() for name in places}

    def load(self, module: nn.Module) -> None:
        """Read the layers to which the placeholders in a module belong.

        Raises:
            CheckpointError: a weight is not finite, or a file is damaged.
        """
        within = {id(parameter) for parameter in module.parameters()}
        parts = [part for part, places in self.waiting.items() if any(id(held[name]) in within for held, name in places.values())]
        for part in parts:
            self._fill(part)

    def _fill(self, part: str) -> None:
        tensors = self._read(self.keys[part])
        check_finite(tensors.items())
        for full_name, (held, name) in self.waiting.pop(part, {}).items():
            if full_name in tensors:
                value, before = tensors[full_name], held[name]
                # A buffer is copied, since it would keep the whole file mapped into memory.
                held[name] = nn.Parameter(value, before.requires_grad) if isinstance(before, nn.Parameter) else value.clone()
            elif part != OUTSIDE and isinstance(held[name], nn.Parameter):
                raise self.weights.ref.error(
                    f"{full_name} of {self.weights.ref.path} cannot be read with its layer; use the ddp configuration, and report this bug"
                )

    def _read(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """Return the tensors that transformers makes of those in the files, by their names in the model."""
        with ExitStack() as opened, quiet_transformers():
            readers = {
                file: opened.enter_context(self.weights.opened(file)) for file in {self.weights.files[key] for key in keys}
            }
            slices = {key: readers[self.weights.files[key]].get_slice(key) for key in keys}
            convert_and_load_state_dict_in_model(self.source, slices, LoadStateDictConfig(weight_mapping=self.conversions))
        tensors = {}
        for name, empty in self.empty.items():
            place, _, attribute = name.rpartition(".")
            module = self.source.get_submodule(place)
            if not getattr(module, attribute).is_meta:
                tensors[name] = getattr(module, attribute).detach()
                setattr(module, attribute, empty)
        return tensors


def _placeholder(tensor: Tensor, part: str) -> nn.Parameter:
    like = torch.zeros(1, dtype=tensor.dtype).expand(tensor.shape) if part else torch.empty_like(tensor, device="cpu")
    return nn.Parameter(like, requires_grad=tensor.is_floating_point())


def check_finite(parameters: Iterable[tuple[str, Tensor]]) -> None:
    """Raise CheckpointError for a weight that is not finite."""
    for name, parameter in parameters:
        if parameter.is_floating_point() and not bool(torch.isfinite(parameter).all()):
            raise CheckpointError(f"model: {name} has weights that are not finite; use another checkpoint")
