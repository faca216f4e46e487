"""Weights of others to a model of ours: nothing missing but the head, nothing left over but heads of other tasks."""

import json
import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers import __version__ as transformers_version
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import cached_file

from rmtrain.errors import RmtrainError
from rmtrain.model.head import HeadSpec, find_head, install_head, outline
from rmtrain.model.hf_setup import (
    generator,
    quiet_transformers,
    seeded,
    set_dropout,
    set_module_dropout,
    set_single_output,
    set_token_ids,
)

COMMIT = re.compile(r"[0-9a-f]{40}")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A Hub id or a directory, what to call it in errors, and the kind of error it causes.

    Attributes:
        label: start of each error line: a key of the recipe such as `model.path`, or what the command was given.
        error: RecipeError for training, CheckpointError for evaluation.
    """

    path: str
    revision: str | None
    label: str
    error: type[RmtrainError]
    trust_remote_code: bool = False

    def refuse(self, reason: str) -> RmtrainError:
        """The error to raise, as one line."""
        return self.error(f"{self.label}: {_one_line(reason)}")

    @property
    def is_directory(self) -> bool:
        """Whether `path` is a directory of this machine rather than a Hub id."""
        return Path(self.path).is_dir()

    @property
    def loading(self) -> dict[str, Any]:
        """Arguments of every `from_pretrained`."""
        code = {"code_revision": self.revision} if self.trust_remote_code else {}
        return {"revision": self.revision or "main", "trust_remote_code": self.trust_remote_code, **code}

    def checked(self) -> Self:
        """The origin with `~` expanded, after refusing a directory that is not there and code that is not pinned.

        Raises:
            the origin's error.
        """
        path = str(Path(self.path).expanduser()) if self.path.startswith("~") else self.path
        looks_local = path.startswith((".", "/")) or path.count("/") > 1
        if looks_local and not Path(path).is_dir():
            raise self.refuse(f"there is no directory {path}")
        if self.trust_remote_code and Path(path).is_dir():
            raise self.refuse(
                f"trust_remote_code needs a Hub id pinned by revision, got the directory {path}, whose code nothing pins"
            )
        if self.trust_remote_code and not COMMIT.fullmatch(self.revision or ""):
            raise self.refuse(f"trust_remote_code needs revision to be a full commit hash (40 hex digits), got {self.revision}")
        return replace(self, path=path)

    def pinned(self) -> Self:
        """The origin at the commit that its revision stands for now; a directory as it is."""
        file = None if self.is_directory else self.find("config.json", required=True)
        commit = file.parent.name if file is not None else ""
        return replace(self, revision=commit) if COMMIT.fullmatch(commit) else self

    def find(self, name: str, required: bool = False) -> Path | None:
        """A file of the model, fetched from the Hub where needed; None if the model has no such file.

        Raises:
            the origin's error: no such repository, no connection, or on the Hub no such file that is required.
        """
        strict = required and not self.is_directory
        try:
            found = cached_file(self.path, name, revision=self.revision, _raise_exceptions_for_missing_entries=strict)
        except OSError as error:
            raise self.refuse(f"cannot read {name} of {self.path}: {error}") from error
        return None if found is None else Path(found)

    def read_json(self, name: str, required: bool = False) -> dict[str, Any] | None:
        """A JSON file of the model as an object; None if there is no such file. Errors as of `find`, or if it is no JSON object."""
        file = self.find(name, required)
        if file is None:
            return None
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise self.refuse(f"{name} of {self.path} is not JSON: {error}") from error
        if not isinstance(content, dict):
            raise self.refuse(f"{name} of {self.path}: expected an object, got {type(content).__name__}")
        return content


def load_config(origin: ModelRef) -> PretrainedConfig:
    """The model's configuration, by classes of transformers unless the origin is trusted to bring its own.

    Raises:
        the origin's error: no or bad `config.json`, an unknown architecture, or code of its own.
    """
    raw = origin.read_json("config.json", required=True)
    if raw is None:
        raise origin.refuse(f"{origin.path} has no config.json; expected a transformers model")
    kind = raw.get("model_type")
    if kind not in CONFIG_MAPPING and "auto_map" in raw and not origin.trust_remote_code:
        raise origin.refuse(
            f"{origin.path} comes with code of its own (auto_map), which is not run; "
            "allow it with model.trust_remote_code: true and model.revision: a full commit hash of a Hub model"
        )
    if kind not in CONFIG_MAPPING and "auto_map" not in raw:
        raise origin.refuse(f"{origin.path} has model_type {kind!r}, which transformers {transformers_version} does not know")
    try:
        return AutoConfig.from_pretrained(origin.path, **origin.loading)
    except (OSError, ValueError, TypeError, StrictDataclassError) as error:
        raise origin.refuse(f"config.json of {origin.path}: {error}") from error


class Weights:
    """The tensors of a model by name, read from its safetensors files one at a time."""

    def __init__(self, origin: ModelRef, files: Mapping[str, str]) -> None:
        self._origin = origin
        self._files = files

    @property
    def names(self) -> frozenset[str]:
        """Names of all tensors."""
        return frozenset(self._files)

    def tensor(self, name: str) -> Tensor:
        """One tensor, on the CPU, in the type it was saved in."""
        file = self._origin.find(self._files[name])
        if file is None:
            raise self._origin.refuse(f"{self._files[name]} is missing, which the index of {self._origin.path} names")
        try:
            with safe_open(file, "pt") as reader:
                tensor: Tensor = reader.get_tensor(name)
        except SafetensorError as error:
            raise self._origin.refuse(f"{file.name} of {self._origin.path} is damaged: {error}") from error
        return tensor


def find_weights(origin: ModelRef, stem: str = "model") -> Weights:
    """Find `stem.safetensors`, or the files that its index names.

    Raises:
        the origin's error: there are none, only pickles, or the files are damaged.
    """
    single = origin.find(f"{stem}.safetensors")
    if single is not None:
        try:
            with safe_open(single, "pt") as reader:
                return Weights(origin, dict.fromkeys(reader.keys(), single.name))
        except SafetensorError as error:
            raise origin.refuse(f"{single.name} of {origin.path} is damaged: {error}") from error
    index = origin.read_json(f"{stem}.safetensors.index.json")
    if index is None:
        raise origin.refuse(_no_weights(origin, stem))
    files = index.get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) and Path(file).name == file for file in files.values()):
        raise origin.refuse(f"{stem}.safetensors.index.json of {origin.path}: expected weight_map to name a file for each tensor")
    return Weights(origin, files)


def _no_weights(origin: ModelRef, stem: str) -> str:
    pickles = sorted(file.name for file in Path(origin.path).iterdir() if file.suffix in PICKLES) if origin.is_directory else []
    if pickles:
        return (
            f"{origin.path} has no {stem}.safetensors, only {', '.join(pickles[:3])}, which can run code when opened; "
            "save the model as safetensors (transformers: save_pretrained)"
        )
    return f"{origin.path} has no {stem}.safetensors"


def _one_line(text: str) -> str:
    return " ".join(text.split())


logger = logging.getLogger("rmtrain")

HeadChoice = Literal["auto", "new", "from_checkpoint"]


@dataclass(frozen=True, slots=True)
class Backbone:
    """A model with one output and a RewardHead.

    Attributes:
        new_head: the head is random, not the checkpoint's.
        new_modules: modules on the way to the score that no checkpoint had: the head where it is new, and for encoders a pooler.
        new_tokens: ids whose embeddings were added because the tokenizer has more tokens than the checkpoint.
    """

    model: PreTrainedModel
    head: HeadSpec
    new_head: bool
    new_modules: tuple[str, ...]
    new_tokens: range


def load_backbone(
    origin: ModelRef,
    tokenizer: Any,
    head: HeadChoice,
    *,
    dtype: torch.dtype,
    dropout: float = 0.0,
    seed: int = 0,
    quantization: Any = None,
) -> Backbone:
    """Load a checkpoint as a sequence-classification model with one output.

    Whether the head is new is decided from the names in the safetensors files before anything is loaded.

    Args:
        tokenizer: gives the token ids of the configuration; embeddings grow if it has more tokens than they have rows.
        head: `from_checkpoint` needs a head with one output; `auto` takes such a head where there is one.
        dtype: of all weights but the head, which is float32.
        seed: of everything that is new.
        quantization: a transformers quantization configuration, or None.

    Raises:
        the origin's error: the files are not there, damaged, not safetensors, of another model, or lack the head that is wanted.
    """
    config = load_config(origin)
    weights = find_weights(origin)
    set_single_output(config)
    set_dropout(config, dropout)
    with quiet_transformers():
        place = find_head(outline(config, origin.refuse, origin.trust_remote_code), origin.refuse)
    old_head = _old_head(weights, place, head, origin)
    model, new_names = _load(origin, config, weights, place, dtype, quantization, seed, with_head=old_head is not None)
    set_module_dropout(model, dropout)
    weight_1H, bias_1 = old_head or (None, None)
    install_head(model, place, weight_1H, bias_1, seed)
    _begin(model, [name for name in new_names if name.rpartition(".")[0] != place.name], seed)
    _freeze_other_towers(model)
    new_tokens = _grow_embeddings(model, len(tokenizer))
    set_token_ids(model.config, tokenizer)
    new_modules = tuple(sorted({name.rpartition(".")[0] for name in new_names}))
    return Backbone(model, place, old_head is None, new_modules, new_tokens)


def _old_head(weights: Weights, place: HeadSpec, choice: HeadChoice, origin: ModelRef) -> tuple[Tensor, Tensor | None] | None:
    """Weight [1, H] and bias of the checkpoint's head, in float32; None: a new one is to be made."""
    if choice == "new":
        return None
    found = place.weight in weights.names
    weight = weights.tensor(place.weight).float() if found else None
    if weight is not None and weight.ndim == 2 and weight.shape[0] == 1:
        bias = f"{place.name}.bias"
        return weight, weights.tensor(bias).float() if bias in weights.names else None
    came = f"{place.weight} of shape {list(weight.shape)}" if weight is not None else f"no {place.weight}"
    if choice == "from_checkpoint":
        raise origin.refuse(
            f"model.head: from_checkpoint needs {place.weight} of shape [1, H] in {origin.path}, which has {came}"
        )
    if found:
        logger.warning("%s has %s, expected [1, H]: it is replaced", origin.path, came)
    return None


def _load(
    origin: ModelRef,
    config: PretrainedConfig,
    weights: Weights,
    place: HeadSpec,
    dtype: torch.dtype,
    quantization: Any,
    seed: int,
    with_head: bool,
) -> tuple[PreTrainedModel, frozenset[str]]:
    """The model, and the names of its parameters that the checkpoint did not have."""
    placement = {} if quantization is None else {"quantization_config": quantization, "device_map": {"": _quantization_device()}}
    try:
        with quiet_transformers(), seeded(seed, "weights"):
            model, report = AutoModelForSequenceClassification.from_pretrained(
                origin.path,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **placement,
                **origin.loading,
            )
    except (OSError, ValueError, SafetensorError) as error:
        raise origin.refuse(f"cannot load {origin.path}: {error}") from error
    mismatched = {name for name, *_ in report["mismatched_keys"]}
    missing = frozenset(report["missing_keys"]) | mismatched
    prefix = model.base_model_prefix
    allowed = {name for name in missing if not with_head and _is_on_the_way(name, prefix)} - (
        mismatched - _within(missing, place.root)
    )
    _refuse_names(origin, "lacks", missing - allowed)
    _refuse_names(
        origin, "has left over", [name for name in report["unexpected_keys"] if _is_ours(name, model, weights, place, with_head)]
    )
    return model, missing


def _quantization_device() -> int | str:
    return torch.cuda.current_device() if torch.cuda.is_available() else "cpu"


def _within(names: Collection[str], root: str) -> set[str]:
    return {name for name in names if name.partition(".")[0] == root}


def _is_on_the_way(name: str, prefix: str) -> bool:
    """Whether a parameter lies between the last layer and the score, where a checkpoint of another task has nothing."""
    return not name.startswith(f"{prefix}.") or "pooler" in name.split(".")


def _is_ours(name: str, model: PreTrainedModel, weights: Weights, place: HeadSpec, with_head: bool) -> bool:
    """Whether a tensor that found no place belongs to the layers or to the head, rather than to a head of another task."""
    if with_head and name.partition(".")[0] == place.root:
        return True
    prefix = f"{model.base_model_prefix}."
    if any(other.startswith(prefix) for other in weights.names):
        return name.startswith(prefix)
    return hasattr(model.base_model, name.partition(".")[0]) and "pooler" not in name.split(".")


def _refuse_names(origin: ModelRef, what: str, names: Collection[str]) -> None:
    if names:
        some = sorted(names)
        more = f" and {len(some) - 3} more" if len(some) > 3 else ""
        raise origin.refuse(
            f"{origin.path} {what} weights: {', '.join(some[:3])}{more}; expected the weights of one transformers model"
        )


def _begin(model: PreTrainedModel, names: Collection[str], seed: int) -> None:
    """New layers between the last layer and the head: N(0, initializer_range), zero biases, norms of one."""
    deviation = getattr(model.config, "initializer_range", 0.02)
    random = generator(seed, "pooler")
    for name in sorted(names):
        parameter = model.get_parameter(name)
        with torch.no_grad():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.ndim == 1:
                parameter.fill_(1)
            else:
                parameter.copy_(torch.empty(parameter.shape).normal_(0, deviation, generator=random))


def _freeze_other_towers(model: PreTrainedModel) -> None:
    """Freeze what text never reaches, such as the vision part of a model that has one: it would get no gradient."""
    language = getattr(model.base_model, "language_model", None)
    if language is not None and hasattr(model.config, "vision_config"):
        reached = {id(parameter) for parameter in language.parameters()}
        for parameter in model.base_model.parameters():
            parameter.requires_grad_(parameter.requires_grad and id(parameter) in reached)


def _grow_embeddings(model: PreTrainedModel, tokens: int) -> range:
    """Give each token a row; new rows are the mean of the old ones. Returns the new ids."""
    rows = model.get_input_embeddings().weight.shape[0]
    if tokens <= rows:
        return range(0)
    with quiet_transformers():
        embeddings = model.resize_token_embeddings(tokens, mean_resizing=False).weight
    with torch.no_grad():
        embeddings[rows:] = embeddings[:rows].float().mean(dim=0).to(embeddings.dtype)
    logger.info("the tokenizer has %d tokens more than the model: new embeddings are the mean of the old ones", tokens - rows)
    return range(rows, tokens)
