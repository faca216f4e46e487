"""The files of a model, in a directory or on the Hub: JSON and safetensors. Pickles are never opened, since they can run code."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils.hub import cached_file, cached_files

from rmtrain.data.text.tokenizer import ADAPTER_CONFIG, COMMIT, adapter_problem, check_pinned, checked_path
from rmtrain.errors import CheckpointError
from rmtrain.files import read_json
from rmtrain.network import HUB_ERRORS, raise_if_passing, refusal

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A Hub id or a local directory, and how to report problems with it.

    label: start of each error line: a recipe key such as `model.path`, or the name of a command's argument.
    """

    path: str
    revision: str | None
    label: str
    trust_remote_code: bool = False

    def error(self, reason: str) -> CheckpointError:
        """Return the error to raise, with `reason` on one line."""
        return CheckpointError(f"{self.label}: {' '.join(reason.split())}")

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
        """Return the reference with `~` expanded; raises `error` for a missing directory, RecipeError for code that no commit pins."""
        if self.trust_remote_code:
            check_pinned(self.path, self.revision, self.label)
        return replace(self, path=checked_path(self.path, self.label))

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
        except HUB_ERRORS as error:
            raise_if_passing(f"{self.label}: {self.path}", error)
            raise self.error(f"cannot read {name} of {self.path}: {refusal() or error}") from error
        if file is None and required:
            is_adapter = Path(self.path, ADAPTER_CONFIG).is_file()
            raise self.error(adapter_problem(self.path) if is_adapter else f"{self.path} has no {name}")
        return None if file is None else Path(file)

    def read_json(self, name: str, required: bool = False) -> dict[str, Any] | None:
        """Return the content of a JSON file, or None if the model has no such file; raises as `find`, or if it is not a JSON object."""
        file = self.find(name, required)
        if file is None:
            return None
        try:
            return read_json(file, dict)
        except (OSError, ValueError) as error:
            raise self.error(f"{name} of {self.path}: {error}") from error


class Stored(NamedTuple):
    """Dtype, by its name in safetensors such as BF16, and shape of a tensor in a file."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Weights:
    """The tensors of a model, read from its safetensors files one at a time; `files` maps a tensor's name to its file's."""

    ref: ModelRef
    files: Mapping[str, str]

    def tensor(self, name: str) -> Tensor:
        """Return one tensor, on the CPU, in the dtype it was saved in."""
        with self.opened(self.files[name]) as reader:
            tensor: Tensor = reader.get_tensor(name)
        return tensor

    @contextmanager
    def opened(self, name: str) -> Iterator[Any]:
        """Open one of the files; raises the error of a missing or damaged file."""
        file = self.ref.find(name, required=True)
        assert file is not None, "a required file is found, or an error is raised"
        with _open(self.ref, file) as reader:
            yield reader

    def header(self) -> dict[str, Stored]:
        """Return the dtype and shape of each tensor, from the beginning of each file; raises the error of a missing or damaged file."""
        names = sorted(set(self.files.values()))
        if len(names) > 1 and not Path(self.ref.path).is_dir():
            try:
                cached_files(self.ref.path, names, revision=self.ref.revision)  # several at a time
            except HUB_ERRORS as error:
                raise_if_passing(f"{self.ref.label}: {self.ref.path}", error)
                raise self.ref.error(f"cannot read the weights of {self.ref.path}: {error}") from error
        stored = {}
        for name in names:
            with self.opened(name) as reader:
                for key in reader.keys():  # noqa: SIM118  # a reader of safetensors, not a dict
                    tensor = reader.get_slice(key)
                    stored[key] = Stored(tensor.get_dtype(), tuple(tensor.get_shape()))
        absent = sorted(self.files.keys() - stored.keys())
        if absent:
            raise self.ref.error(f"{self.ref.path} has no {absent[0]}, which its index names")
        return stored


def find_weights(ref: ModelRef, stem: str = "model") -> Weights:
    """Find `stem.safetensors`, or the shards that its index names; raises `ref.error` if they are missing or damaged."""
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
