"""Where a model comes from, and reading its configuration and weights there: safetensors and JSON, never code or pickles."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig
from transformers import __version__ as transformers_version
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import cached_file

from rmtrain.errors import RmtrainError

COMMIT = re.compile(r"[0-9a-f]{40}")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")


@dataclass(frozen=True, slots=True)
class Origin:
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


def load_config(origin: Origin) -> PretrainedConfig:
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

    def __init__(self, origin: Origin, files: Mapping[str, str]) -> None:
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


def find_weights(origin: Origin, stem: str = "model") -> Weights:
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


def _no_weights(origin: Origin, stem: str) -> str:
    pickles = sorted(file.name for file in Path(origin.path).iterdir() if file.suffix in PICKLES) if origin.is_directory else []
    if pickles:
        return (
            f"{origin.path} has no {stem}.safetensors, only {', '.join(pickles[:3])}, which can run code when opened; "
            "save the model as safetensors (transformers: save_pretrained)"
        )
    return f"{origin.path} has no {stem}.safetensors"


def _one_line(text: str) -> str:
    return " ".join(text.split())
