"""Upload of an export: private unless the recipe says otherwise, and nothing but what belongs to the model."""

import json
import logging
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]  # of httpx or httpx2, by version

from rmtrain.errors import RmtrainError
from rmtrain.recipe.schema import Hub
from rmtrain.redact import redact

logger = logging.getLogger("rmtrain")

ALLOWED = (
    "README.md",
    "config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "golden.json",
    "rmtrain.json",
)
"""Names of what is uploaded, in the export and in its `adapter/`."""
ADAPTER_ALLOWED = (*ALLOWED, "adapter_config.json", "adapter_model.safetensors")


FAILURES = (HTTPError, HFValidationError, OSError, RuntimeError, ValueError)
"""What the client raises: of the network, a refusal, or an upload that broke off, which it wraps in a RuntimeError."""


def push(directory: Path, hub: Hub, name: str, retry: str | None = None) -> str:
    """Upload an export in one commit. Repeated, it sends only those large files again that did not arrive.

    Args:
        directory: what `export_model` wrote.
        hub: repository and visibility.
        name: repository name under the logged-in user where `hub.id` is None.
        retry: the command that repeats the upload; None: `rmtrain export` of the run around the directory.

    Returns:
        The repository's address.

    Raises:
        RmtrainError: no network, no login, no permission; the line ends with the command that repeats the upload.
    """
    files = uploaded_files(directory)
    repository = hub.id or name
    api = HfApi()
    try:
        address = api.create_repo(repository, private=not hub.public, exist_ok=True)
        if not hub.public and api.model_info(address.repo_id).private is False:
            raise RmtrainError(
                f"hub: {address.repo_id} exists and is public; set hub.public: true to upload there, or hub.id to another"
            )
        message = "Upload reward model with rmtrain"
        api.upload_folder(repo_id=address.repo_id, folder_path=directory, allow_patterns=files, commit_message=message)
    except FAILURES as error:
        command = retry or f"rmtrain export {directory.parent} --push"
        raise RmtrainError(f"hub: {repository} was not uploaded: {_told(error)} Retry: {command}") from error
    return str(address)


def uploaded_files(directory: Path) -> list[str]:
    """Paths within an export that are uploaded.

    The adapter stays behind when its base is a directory of this machine: nobody else could load it, and the path is nobody's business.
    """
    files = sorted(
        file.name for file in directory.iterdir() if file.is_file() and any(file.match(pattern) for pattern in ALLOWED)
    )
    adapter = directory / "adapter"
    if not (adapter / "adapter_config.json").is_file():
        return files
    base = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base or base.startswith((".", "/", "~")) or Path(base).exists():
        logger.info("the adapter is not uploaded: its base is no model of the Hub")
        return files
    return files + sorted(
        f"adapter/{file.name}" for file in adapter.iterdir() if any(file.match(pattern) for pattern in ADAPTER_ALLOWED)
    )


def _told(error: BaseException) -> str:
    """The first line of an error, and of what caused it, which is where the Hub says why."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    cause = error.__cause__ if isinstance(error, RuntimeError) else None
    return redact(line if cause is None else f"{line} {_told(cause)}")
