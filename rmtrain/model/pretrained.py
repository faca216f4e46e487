"""A checkpoint in a directory or on the Hub, loaded as a sequence-classification model with one output.

Nothing may be missing but the head, and nothing left over but the heads of other tasks: transformers only warns about either, and
trains random layers.
"""

import json
import logging
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
from transformers import __version__ as transformers_version
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import cached_file

from rmtrain.errors import RmtrainError, missing
from rmtrain.model.classifier import (
    HeadSpec,
    find_head,
    generator,
    install_head,
    meta_classifier,
    prepare_config,
    quiet_transformers,
    seeded,
    set_module_dropout,
    set_token_ids,
)

COMMIT = re.compile(r"[0-9a-f]{40}")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")

logger = logging.getLogger("rmtrain")


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A Hub id or a local directory, and how to report problems with it.

    label: start of each error line: a recipe key such as `model.path`, or the name of a command's argument.
    error_type: RecipeError for training, CheckpointError for scoring.
    """

    path: str
    revision: str | None
    label: str
    error_type: type[RmtrainError]
    trust_remote_code: bool = False

    def error(self, reason: str) -> RmtrainError:
        """Return the error to raise, with `reason` on one line."""
        return self.error_type(f"{self.label}: {' '.join(reason.split())}")

    @property
    def loading(self) -> dict[str, Any]:
        """Arguments for every `from_pretrained`."""
        code = {"code_revision": self.revision} if self.trust_remote_code else {}
        return {"revision": self.revision or "main", "trust_remote_code": self.trust_remote_code, **code}

    @property
    def absolute_path(self) -> str:
        """The path of a directory, so that an adapter finds its base from anywhere; or the Hub id."""
        return str(Path(self.path).absolute()) if Path(self.path).is_dir() else self.path

    def checked(self) -> Self:
        """Return the reference with `~` expanded; raise its error for a missing directory, or code that no commit pins."""
        path = str(Path(self.path).expanduser()) if self.path.startswith("~") else self.path
        is_local = Path(path).is_dir()
        if not is_local and (path.startswith((".", "/")) or path.count("/") > 1):
            raise self.error(missing(path))
        if self.trust_remote_code and is_local:
            raise self.error(
                f"trust_remote_code needs a Hub id pinned by revision; the code in the directory {path} is not pinned"
            )
        if self.trust_remote_code and not COMMIT.fullmatch(self.revision or ""):
            raise self.error(f"trust_remote_code needs revision to be a full commit hash (40 hex digits), got {self.revision}")
        return replace(self, path=path)

    def pinned(self) -> Self:
        """Return the reference with its branch or tag resolved to the current commit; a directory is returned unchanged."""
        if Path(self.path).is_dir():
            return self
        # The Hub cache stores a file in snapshots/COMMIT/, so that no request is needed to learn the commit.
        file = self.find("config.json", required=True)
        return replace(self, revision=file.parent.name) if file and COMMIT.fullmatch(file.parent.name) else self

    def find(self, name: str, required: bool = False) -> Path | None:
        """Return the path of a file, downloaded if needed, or None; raise `error` without a repository, connection or required file."""
        # Only the Hub's error for a missing file says more than that it is missing.
        strict = required and not Path(self.path).is_dir()
        try:
            file = cached_file(self.path, name, revision=self.revision, _raise_exceptions_for_missing_entries=strict)
        except OSError as error:
            raise self.error(f"cannot read {name} of {self.path}: {error}") from error
        if file is None and required:
            raise self.error(f"{self.path} has no {name}")
        return None if file is None else Path(file)

    def read_json(self, name: str, required: bool = False) -> dict[str, Any] | None:
        """Return the content of a JSON file, or None if the model has no such file; raises as `find`, or if it is not a JSON object."""
        file = self.find(name, required)
        if file is None:
            return None
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise self.error(f"{name} of {self.path} is not JSON: {error}") from error
        if not isinstance(content, dict):
            raise self.error(f"{name} of {self.path}: expected an object, got {type(content).__name__}")
        return content


def load_config(ref: ModelRef) -> PretrainedConfig:
    """Load a model's configuration, with classes of transformers unless the model's own code is trusted.

    Raises `ref.error` if `config.json` is missing or invalid, the architecture is unknown, or it needs code of its own.
    """
    raw = ref.read_json("config.json", required=True) or {}
    model_type = raw.get("model_type")
    if model_type not in CONFIG_MAPPING and "auto_map" not in raw:
        raise ref.error(f"{ref.path} has model_type {model_type!r}, which transformers {transformers_version} does not know")
    if model_type not in CONFIG_MAPPING and not ref.trust_remote_code:
        raise ref.error(
            f"{ref.path} needs code of its own (auto_map), which is not run; "
            "allow it with model.trust_remote_code: true and model.revision: a full commit hash of a Hub model"
        )
    try:
        return AutoConfig.from_pretrained(ref.path, **ref.loading)
    except (OSError, ValueError, TypeError, StrictDataclassError) as error:
        raise ref.error(f"config.json of {ref.path}: {error}") from error


@dataclass(frozen=True, slots=True)
class Weights:
    """The tensors of a model, read from its safetensors files one at a time; `files` maps a tensor's name to its file's."""

    ref: ModelRef
    files: Mapping[str, str]

    def tensor(self, name: str) -> Tensor:
        """Return one tensor, on the CPU, in the dtype it was saved in."""
        file = self.ref.find(self.files[name], required=True)
        assert file is not None, "a required file is found, or an error is raised"
        with _open(self.ref, file) as reader:
            tensor: Tensor = reader.get_tensor(name)
        return tensor


def find_weights(ref: ModelRef, stem: str = "model") -> Weights:
    """Find `stem.safetensors`, or the shards that its index names; raises `ref.error` if they are missing or damaged.

    Pickles are never opened: they can run code.
    """
    name, index_name = f"{stem}.safetensors", f"{stem}.safetensors.index.json"
    single = ref.find(name)
    if single is not None:
        with _open(ref, single) as reader:
            return Weights(ref, dict.fromkeys(reader.keys(), single.name))
    index = ref.read_json(index_name)
    if index is None:
        pickles = sorted(file.name for file in Path(ref.path).glob("*") if file.suffix in PICKLES)
        problem = f"{ref.path} has no {name}"
        if pickles:
            problem += f", only {', '.join(pickles[:3])}, which can run code when opened"
            problem += "; save the model as safetensors (transformers: save_pretrained)"
        raise ref.error(problem)
    files = index.get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) and Path(file).name == file for file in files.values()):
        raise ref.error(f"{index_name} of {ref.path}: expected weight_map to name a file for each tensor")
    return Weights(ref, files)


@contextmanager
def _open(ref: ModelRef, file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, "pt") as reader:
            yield reader
    except SafetensorError as error:
        raise ref.error(f"{file.name} of {ref.path} is damaged: {error}") from error


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A transformers model with one output and a RewardHead.

    new_head: the head is random, not the checkpoint's.
    new_modules: modules between the last layer and the score that the checkpoint lacks: a new head, and the pooler of some encoders.
    new_tokens: ids whose embeddings were added because the tokenizer has more tokens than the checkpoint.
    """

    model: PreTrainedModel
    head: HeadSpec
    new_head: bool
    new_modules: tuple[str, ...]
    new_tokens: range


def load_pretrained(
    ref: ModelRef,
    tokenizer: Any,
    head: Literal["auto", "new", "from_checkpoint"],
    *,
    dtype: torch.dtype,
    dropout: float = 0.0,
    seed: int = 0,
    quantization: BitsAndBytesConfig | None = None,
) -> LoadedModel:
    """Load a checkpoint as a sequence-classification model with one output.

    Args:
        tokenizer: sets the token ids of the configuration; embeddings grow if it has more tokens than they have rows.
        head: `from_checkpoint` requires a head with one output; `auto` uses such a head if there is one.
        dtype: dtype of all weights except the head, which is float32.
        seed: seed of everything that is new.

    Raises `ref.error` if files are missing, damaged, not safetensors or of another model, or the required head is missing.
    """
    config = load_config(ref)
    weights = find_weights(ref)
    prepare_config(config, dropout)
    with quiet_transformers():
        spec = find_head(meta_classifier(config, ref.error, ref.trust_remote_code), ref.error)
    # Decided by the names in the files, before anything is loaded: transformers would initialize a missing head silently.
    saved_head = None if head == "new" else read_head(weights, spec.name, required=head == "from_checkpoint")
    options: dict[str, Any] = {"config": config, "dtype": dtype}
    if quantization is not None:  # weights are quantized on the way to their device
        device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
        options |= {"quantization_config": quantization, "device_map": {"": device}}
    with seeded(seed, "weights"):
        model, new_names = _load_weights(ref, weights, spec, saved_head is not None, options)
    set_module_dropout(model, dropout)
    weight_1H, bias_1 = saved_head or (None, None)
    install_head(model, spec, weight_1H, bias_1, seed)
    _initialize(model, [name for name in new_names if name.rpartition(".")[0] != spec.name], seed)
    if hasattr(model.config, "vision_config") and hasattr(model.base_model, "language_model"):
        # Text never reaches the vision tower, so that its parameters would get no gradient, which DDP refuses.
        reached = {id(parameter) for parameter in model.base_model.language_model.parameters()}
        for parameter in model.base_model.parameters():
            parameter.requires_grad_(parameter.requires_grad and id(parameter) in reached)
    new_tokens = _grow_embeddings(model, len(tokenizer))
    set_token_ids(model.config, tokenizer)
    new_modules = tuple(sorted({name.rpartition(".")[0] for name in new_names}))
    return LoadedModel(model, spec, saved_head is None, new_modules, new_tokens)


def read_head(weights: Weights, name: str, required: bool) -> tuple[Tensor, Tensor | None] | None:
    """Return weight [1, H] and bias of the saved head module `name` in float32.

    If it does not have one output, raises the reference's error if the head is `required`, and otherwise returns None.
    """
    key, bias, path = f"{name}.weight", f"{name}.bias", weights.ref.path
    weight = weights.tensor(key).float() if key in weights.files else None
    if weight is not None and weight.ndim == 2 and weight.shape[0] == 1:
        return weight, weights.tensor(bias).float() if bias in weights.files else None
    found = f"no {key}" if weight is None else f"{key} of shape {list(weight.shape)}"
    if required:
        raise weights.ref.error(f"no score head: {path} has {found}, expected [1, H]; train one with `rmtrain train`")
    if weight is not None:
        logger.warning("%s has %s, expected [1, H]; the head is replaced by a new one", path, found)
    return None


def _load_weights(
    ref: ModelRef, weights: Weights, head: HeadSpec, with_head: bool, options: dict[str, Any]
) -> tuple[PreTrainedModel, set[str]]:
    """Return the model, and the names of its parameters that the checkpoint lacks."""
    checks = {"use_safetensors": True, "ignore_mismatched_sizes": True, "output_loading_info": True}
    try:
        with quiet_transformers():
            model, report = AutoModelForSequenceClassification.from_pretrained(ref.path, **options, **checks, **ref.loading)
    except (OSError, ValueError, SafetensorError) as error:
        raise ref.error(f"cannot load {ref.path}: {error}") from error
    mismatched = {name for name, *_ in report["mismatched_keys"]}
    missing = {*report["missing_keys"], *mismatched}
    prefix = f"{model.base_model_prefix}."

    def is_head(name: str) -> bool:
        return name.partition(".")[0] == head.root

    def may_lack(name: str) -> bool:
        """Between the last layer and the score a checkpoint of another task has no parameter, or one of another shape."""
        is_after_layers = not name.startswith(prefix) or "pooler" in name.split(".")
        return not with_head and is_after_layers and (name not in mismatched or is_head(name))

    has_prefix = any(name.startswith(prefix) for name in weights.files)  # a checkpoint of the base model alone has none

    def must_fit(name: str) -> bool:
        """Tensors of the layers and of the wanted head must have a place in the model; a head of another task has none."""
        if with_head and is_head(name):
            return True
        if has_prefix:
            return name.startswith(prefix)
        return hasattr(model.base_model, name.partition(".")[0]) and "pooler" not in name.split(".")

    lacking = sorted(name for name in missing if not may_lack(name))
    unexpected = sorted(name for name in report["unexpected_keys"] if must_fit(name))
    for problem, names in (("lacks", lacking), ("has unexpected", unexpected)):
        if names:
            first, more = ", ".join(names[:3]), f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ref.error(f"{ref.path} {problem} weights: {first}{more}; expected the weights of one transformers model")
    return model, missing


def _initialize(model: PreTrainedModel, names: Collection[str], seed: int) -> None:
    """Initialize new layers before the head: N(0, initializer_range), zero biases, norms of one."""
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


def _grow_embeddings(model: PreTrainedModel, tokens: int) -> range:
    """Give each token an embedding, new ones the mean of the old ones. Return the new ids."""
    rows = model.get_input_embeddings().weight.shape[0]
    if tokens <= rows:
        return range(0)
    with quiet_transformers():
        # transformers' own mean_resizing samples from a Gaussian, with the global generator.
        embeddings = model.resize_token_embeddings(tokens, mean_resizing=False).weight
    with torch.no_grad():
        embeddings[rows:] = embeddings[:rows].float().mean(dim=0).to(embeddings.dtype)
    logger.info("the tokenizer has %d tokens more than the model; their embeddings are the mean of the others", tokens - rows)
    return range(rows, tokens)
