"""What a run must remember to go on as if nothing had happened: tensors by name, and JSON values. No pickle.

Weights and optimizer state bear the names of the parameters within the RewardModel, and are whole: they are the same whatever wraps the
model, and however many processes hold it in pieces.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from rmtrain.errors import CheckpointError
from rmtrain.model.reward_model import unwrap

Tensors = dict[str, Tensor]
OptimizerValues = dict[str, dict[str, Any]]
"""By parameter and key: a number, or None where the value is a tensor, which is then named `parameter/key`."""
FINGERPRINT_VALUES = 64
"""Values of each frozen parameter that its fingerprint reads, evenly spread: enough to tell another base model."""
OF_PARAMETER_SHAPE = ("exp_avg", "exp_avg_sq", "state1", "state2")


def whole(tensor: Tensor) -> Tensor:
    """A tensor that processes hold in pieces, put together on each of them; any other as it is. Called on all ranks."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def distribute_like(tensor: Tensor, example: Tensor) -> Tensor:
    """A whole tensor that every process has, on the device of `example` and in pieces as that is."""
    tensor = tensor.to(example.device)
    if not isinstance(example, DTensor):
        return tensor
    return distribute_tensor(tensor, example.device_mesh, example.placements, src_data_rank=None)


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters by their names within the RewardModel."""
    return {name: parameter for name, parameter in unwrap(model).named_parameters() if parameter.requires_grad}


def model_state_dict(model: nn.Module, keep: bool = True) -> Tensors:
    """The trainable parameters and the persistent buffers by name, on the CPU. Frozen parameters are those of the base model.

    Called on all ranks; those that do not `keep` them get nothing.
    """
    tensors = trained_parameters(model) | dict(persistent_buffers(unwrap(model)))
    gathered = ((name, whole(tensor.detach())) for name, tensor in tensors.items())
    return {name: tensor.cpu() for name, tensor in gathered if keep}


def persistent_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The buffers that belong to the weights, by name."""
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, buffer


def restore_model(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put weights back, in place.

    Raises:
        CheckpointError: names, shapes or types are not exactly those of the model.
    """
    reward_model = unwrap(model)
    targets = trained_parameters(reward_model) | dict(persistent_buffers(reward_model))
    check_names("weights", targets, tensors)
    for name, target in targets.items():
        check_alike(name, tensors[name], target.shape, target.dtype)
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(distribute_like(tensors[name], target))


def check_alike(name: str, came: Tensor, shape: torch.Size, dtype: torch.dtype) -> None:
    """Raise CheckpointError when weights are of another shape or type than those they are for."""
    if (came.shape, came.dtype) != (shape, dtype):
        raise CheckpointError(f"weights: {name}: expected {tuple(shape)} {dtype}, got {tuple(came.shape)} {came.dtype}")


def frozen_fingerprint(model: nn.Module) -> str | None:
    """sha256 over some values of every frozen parameter; None when all are trained."""
    frozen = [(name, p) for name, p in unwrap(model).named_parameters() if not p.requires_grad]
    if not frozen:
        return None
    digest = hashlib.sha256()
    for name, parameter in frozen:
        flat = parameter.detach().reshape(-1)
        some = flat[:: max(1, len(flat) // FINGERPRINT_VALUES)][:FINGERPRINT_VALUES].cpu()
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}:".encode())
        digest.update(some.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module, keep: bool = True) -> tuple[Tensors, OptimizerValues]:
    """The state of each trained parameter. Called on all ranks; those that do not `keep` it get nothing.

    Raises:
        CheckpointError: the optimizer keeps something that is neither tensor nor number.
    """
    tensors: Tensors = {}
    values: OptimizerValues = {}
    for name, parameter in _trained(optimizer, model).items():
        values[name] = {}
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                gathered = whole(value.detach())
                if keep:
                    tensors[f"{name}/{key}"], values[name][key] = gathered.cpu().clone(), None
            elif isinstance(value, bool | int | float | str):
                values[name][key] = value
            else:
                raise CheckpointError(f"optimizer state {key} of {name} is a {type(value).__name__}, which cannot be saved")
    return tensors, values


def restore_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor], values: OptimizerValues
) -> None:
    """Put the state of every parameter back; hyper-parameters stay those of the recipe.

    Raises:
        CheckpointError: the state is of other parameters, or incomplete.
    """
    trained = _trained(optimizer, model)
    check_optimizer(tensors, values, {name: parameter.shape for name, parameter in trained.items()})
    state = {
        number: {key: _state_of(trained[name], key, tensors.get(f"{name}/{key}"), value) for key, value in values[name].items()}
        for number, name in enumerate(trained)
        if values[name]
    }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def check_optimizer(tensors: Mapping[str, Tensor], values: OptimizerValues, shapes: Mapping[str, torch.Size]) -> None:
    """Raise CheckpointError when the state is not of parameters with these names and shapes, or is incomplete."""
    check_names("optimizer state", shapes, values)
    declared = {(name, key): f"{name}/{key}" for name, keys in values.items() for key, value in keys.items() if value is None}
    check_names("optimizer state", declared.values(), tensors)
    for (name, key), place in declared.items():
        if key in OF_PARAMETER_SHAPE and tensors[place].shape != shapes[name]:
            expected, came = tuple(shapes[name]), tuple(tensors[place].shape)
            raise CheckpointError(f"optimizer state: {place}: expected {expected}, got {came}")


def _state_of(parameter: nn.Parameter, key: str, tensor: Tensor | None, value: Any) -> Any:
    if tensor is None:
        return value
    return distribute_like(tensor, parameter.detach()) if key in OF_PARAMETER_SHAPE else tensor


def _trained(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, nn.Parameter]:
    """The optimizer's parameters by name, in its own order, which is that of its state's numbers."""
    names = {id(parameter): name for name, parameter in unwrap(model).named_parameters()}
    return {names[id(parameter)]: parameter for group in optimizer.param_groups for parameter in group["params"]}


def rng_tensors(device: torch.device) -> Tensors:
    """The random generators that a step draws from: of the CPU, and of this process's GPU."""
    tensors = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    return tensors


def restore_rng(device: torch.device, tensors: Mapping[str, Tensor]) -> None:
    """Set the generators; raises CheckpointError when the checkpoint has none for this kind of device."""
    check_names("random generators", rng_tensors(device), tensors)
    torch.set_rng_state(tensors["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(tensors["cuda"], device)


def check_names(what: str, expected: Iterable[str], came: Iterable[str]) -> None:
    """Raise CheckpointError, saying how many are missing and how many not known, when names differ."""
    missing, surplus = sorted(set(expected) - set(came)), sorted(set(came) - set(expected))
    parts = [
        f"{len(names)} {word}, such as {names[0]}" for names, word in ((missing, "missing"), (surplus, "not known")) if names
    ]
    if parts:
        raise CheckpointError(f"{what}: {'; '.join(parts)}")
