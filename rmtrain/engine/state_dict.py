"""The state of a run as tensors by name; no pickle.

Weights and optimizer state are named after the parameters within the RewardModel and are full tensors, so that they do not depend on
what wraps the model or on how many processes share it.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from rmtrain.errors import CheckpointError
from rmtrain.model.classifier import device_of
from rmtrain.model.reward_model import unwrap

Tensors = dict[str, Tensor]
FINGERPRINT_VALUES = 64
"""Values of each frozen parameter in its fingerprint, evenly spread: enough to recognise another base model."""
INTEGER = torch.int64
"""Type of a saved integer, which no tensor in the state of an optimizer has."""
PARAMETER_SHAPED = ("exp_avg", "exp_avg_sq", "state1", "state2")
"""Optimizer state with the shape of its parameter, which is sharded like it: AdamW's and AdamW8bit's moments."""


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor on every rank, on the device that it computes on; return any other unchanged. Called on all ranks."""
    if not isinstance(tensor, DTensor):
        return tensor
    on_device: DTensor = tensor.to(device_of(tensor))  # type: ignore[assignment]
    return on_device.full_tensor()


@contextmanager
def gathered(parameter: nn.Parameter) -> Iterator[Tensor]:
    """Context in which a parameter is whole, however it is sharded. Called on all ranks."""
    if hasattr(parameter, "ds_id"):  # of ZeRO-3
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([parameter]):
            yield parameter.detach()
    else:
        yield full_tensor(parameter.detach())


def shape_of(parameter: Tensor) -> torch.Size:
    """Return the shape of a parameter that is whole, however it is sharded."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def distribute_like(tensor: Tensor, example: Tensor) -> Tensor:
    """Move a full tensor, equal on every rank, to the device of `example` and shard it the same way."""
    tensor = tensor.to(example.device)
    if not isinstance(example, DTensor):
        return tensor
    shards = distribute_tensor(tensor, example.device_mesh, example.placements, src_data_rank=None)
    return shards.to(example.device)  # in main memory, if it is offloaded: torch makes them on the device of the mesh


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameters by their names within the RewardModel."""
    return {name: parameter for name, parameter in unwrap(model).named_parameters() if parameter.requires_grad}


def persistent_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield name and tensor of the buffers that are saved with the weights."""
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, buffer


def model_state_dict(model: nn.Module, keep: bool = True) -> Tensors:
    """Return the trainable parameters and the persistent buffers by name, on the CPU. Called on all ranks.

    Frozen parameters, those of the base model, are left out. Ranks without `keep` get an empty dict.
    """
    tensors = trained_parameters(model) | dict(persistent_buffers(unwrap(model)))
    gathered = ((name, full_tensor(tensor.detach())) for name, tensor in tensors.items())
    return {name: tensor.cpu() for name, tensor in gathered if keep}


def restore_model(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy saved weights into a model.

    Raises:
        CheckpointError: names, shapes or types are not exactly those of the model; nothing was copied.
    """
    targets = trained_parameters(model) | dict(persistent_buffers(unwrap(model)))
    check_names("weights", targets, tensors)
    for name, target in targets.items():
        check_weight(name, tensors[name], target.shape, target.dtype)
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(distribute_like(tensors[name], target))


def check_weight(name: str, saved: Tensor, shape: torch.Size, dtype: torch.dtype) -> None:
    """Raise CheckpointError when a saved weight does not have this shape and type."""
    if (saved.shape, saved.dtype) != (shape, dtype):
        raise CheckpointError(f"weights: {name}: expected {tuple(shape)} {dtype}, got {tuple(saved.shape)} {saved.dtype}")


def frozen_fingerprint(model: nn.Module) -> str | None:
    """Return the sha256 of some values of every frozen parameter; None when all parameters are trained. Called on all ranks."""
    frozen = [(name, p) for name, p in unwrap(model).named_parameters() if not p.requires_grad]
    if not frozen:
        return None
    digest = hashlib.sha256()
    for name, parameter in frozen:
        with gathered(parameter) as whole:
            flat = whole.reshape(-1)
            values = flat[:: max(1, len(flat) // FINGERPRINT_VALUES)][:FINGERPRINT_VALUES].cpu()
            digest.update(f"{name} {tuple(whole.shape)} {whole.dtype}:".encode())
        digest.update(values.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module, keep: bool = True) -> Tensors:
    """Return the optimizer's state as `parameter/key`, on the CPU; an integer becomes a scalar. Called on all ranks.

    Ranks without `keep` get an empty dict.

    Raises:
        CheckpointError: the optimizer has state that is neither a tensor nor an integer.
    """
    tensors: Tensors = {}
    for name, parameter in _optimized_parameters(optimizer, model).items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if not isinstance(value, Tensor | int):
                raise CheckpointError(f"optimizer state: {name}/{key} is a {type(value).__name__}, which cannot be saved")
            gathered = full_tensor(value.detach()) if isinstance(value, Tensor) else torch.tensor(value, dtype=INTEGER)
            if keep:
                tensors[f"{name}/{key}"] = gathered.cpu().clone()
    return tensors


def restore_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load the state of every parameter; hyper-parameters stay those of the recipe.

    Raises:
        CheckpointError: the state is incomplete or belongs to other parameters.
    """
    parameters = _optimized_parameters(optimizer, model)
    states = state_by_parameter(tensors, {name: parameter.shape for name, parameter in parameters.items()})
    state: dict[int, dict[str, Any]] = {}
    for number, (name, parameter) in enumerate(parameters.items()):
        for key, tensor in states.get(name, {}).items():
            value: Any = distribute_like(tensor, parameter.detach()) if key in PARAMETER_SHAPED else tensor
            state.setdefault(number, {})[key] = int(value) if tensor.dtype == INTEGER else value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def state_by_parameter(tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> dict[str, Tensors]:
    """Group an optimizer's state by parameter; it is empty before the first step.

    Raises:
        CheckpointError: it is incomplete, or belongs to parameters of other names or shapes.
    """
    places = {place: place.rpartition("/") for place in tensors}
    keys = {key for _, _, key in places.values()} & {"step", *PARAMETER_SHAPED}
    expected = [f"{name}/{key}" for name in shapes for key in keys]
    check_names("optimizer state", expected, [place for place, (_, _, key) in places.items() if key in keys])
    states: dict[str, Tensors] = {}
    for place, (name, _, key) in places.items():
        if key in PARAMETER_SHAPED and tensors[place].shape != shapes[name]:
            expected_shape, got = tuple(shapes[name]), tuple(tensors[place].shape)
            raise CheckpointError(f"optimizer state: {place}: expected {expected_shape}, got {got}")
        states.setdefault(name, {})[key] = tensors[place]
    return states


def _optimized_parameters(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the optimizer's parameters by name, in its own order: its state dict numbers them in that order."""
    names = {id(parameter): name for name, parameter in unwrap(model).named_parameters()}
    return {names[id(parameter)]: parameter for group in optimizer.param_groups for parameter in group["params"]}


def rng_tensors(device: torch.device) -> Tensors:
    """Return the state of the random generators that a step draws from: the CPU's and this process's GPU's."""
    tensors = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    return tensors


def restore_rng(device: torch.device, tensors: Mapping[str, Tensor]) -> None:
    """Set the random generators; raise CheckpointError when the checkpoint has none for this kind of device."""
    check_names("random generators", rng_tensors(device), tensors)
    torch.set_rng_state(tensors["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(tensors["cuda"], device)


def check_names(kind: str, expected: Iterable[str], got: Iterable[str]) -> None:
    """Raise CheckpointError with the number of missing and unknown names, and an example of each, when names differ."""
    missing, unknown = sorted(set(expected) - set(got)), sorted(set(got) - set(expected))
    parts = [f"{len(names)} {word}, such as {names[0]}" for names, word in ((missing, "missing"), (unknown, "unknown")) if names]
    if parts:
        raise CheckpointError(f"{kind}: {'; '.join(parts)}")
