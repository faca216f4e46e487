"""Upload of an export to the Hub: private unless the recipe says otherwise, and only files that belong to the model."""

import json
import logging
import shlex
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from rmtrain.errors import RecipeError, RmtrainError, TryAgain
from rmtrain.model.last_token_classifier import CODE
from rmtrain.network import HUB_ERRORS, passing_problem
from rmtrain.recipe.schema import Hub
from rmtrain.redact import redact

ALLOWED = (
    *("README.md", "config.json", CODE, "golden.json", "rmtrain.json", "chat_template.jinja"),
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("tokenizer.model", "vocab.json", "vocab.txt", "merges.txt"),
)
"""Names of the files to upload, from the export and its `adapter/`."""
ADAPTER_ALLOWED = (*ALLOWED, "adapter_config.json", "adapter_model.safetensors")

logger = logging.getLogger("rmtrain")


def check_push(hub: Hub, name: str) -> None:
    """Check, before the work whose result is uploaded, that an upload can succeed.

    A Hub that cannot be reached is only a warning: it may be back by the time of the upload.

    Args:
        name: repository name under the logged-in user if `hub.id` is None.

    Raises:
        RecipeError: no login, a token that is not valid or may only read, or a public repository where a private one is wanted.
    """
    remedy = "run `hf auth login`, set HF_TOKEN, or set hub.push: false"
    if get_token() is None:
        raise RecipeError(f"hub.push: not logged in to the Hub; {remedy}")
    api = HfApi()
    try:
        user = api.whoami()
        if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise RecipeError(f"hub.push: the token of {user['name']} may only read; {remedy}")
        owners = {user["name"], *(organization["name"] for organization in user.get("orgs", ()))}
        repository = hub.id or f"{user['name']}/{name}"
        if repository.partition("/")[0] not in owners:
            logger.warning("hub.id: %s does not belong to %s; the upload may be refused", repository, ", ".join(sorted(owners)))
        if not hub.public and api.model_info(repository).private is False:
            raise RecipeError(_is_public(repository))
    except RepositoryNotFoundError:
        pass  # it will be created
    except HUB_ERRORS as error:
        if isinstance(error, HfHubHTTPError) and error.response is not None and error.response.status_code == 401:
            raise RecipeError(f"hub.push: the Hub does not accept the token; {remedy}") from error
        logger.warning("hub: the upload could not be checked: %s", redact(_first_lines(error)))


def _is_public(repository: str) -> str:
    return f"hub.id: {repository} is public; set hub.public: true to upload there, or another hub.id"


def push(directory: Path, hub: Hub, name: str, retry: str | None = None) -> str:
    """Upload an export in one commit, and return the repository's address. A repeated upload sends only missing large files.

    Args:
        name: repository name under the logged-in user if `hub.id` is None.
        retry: the command that repeats the upload; None: `rmtrain export` of the run around the directory.

    Raises:
        RmtrainError: no network, no login or no permission; the message ends with the command that repeats the upload.
        TryAgain: the Hub fails in a way that may pass by itself; the message ends so as well.
    """
    files, repository, api = uploaded_files(directory), hub.id or name, HfApi()
    try:
        address = api.create_repo(repository, private=not hub.public, exist_ok=True)
        if not hub.public and api.model_info(address.repo_id).private is False:
            raise RmtrainError(_is_public(address.repo_id))
        message = "Upload reward model with rmtrain"
        api.upload_folder(repo_id=address.repo_id, folder_path=directory, allow_patterns=files, commit_message=message)
    except HUB_ERRORS as error:
        command = retry or shlex.join(["rmtrain", "export", str(directory.parent), "--push"])
        passing = passing_problem(error)
        kind = RmtrainError if passing is None else TryAgain
        problem = redact(passing or _first_lines(error))
        raise kind(f"hub: {repository} was not uploaded: {problem} Retry: {command}") from error
    return str(address)


def uploaded_files(directory: Path) -> list[str]:
    """Return the paths, within an export, of the files to upload.

    An adapter on a local base is left out: nobody else could load it, and its configuration would publish a local path.
    """

    def matching(folder: Path, patterns: tuple[str, ...]) -> list[str]:
        return sorted(file.name for file in folder.iterdir() if file.is_file() and any(map(file.match, patterns)))

    files, adapter = matching(directory, ALLOWED), directory / "adapter"
    if not (adapter / "adapter_config.json").is_file():
        return files
    base = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base or base.startswith((".", "/", "~")) or Path(base).exists():
        logger.info("the adapter is not uploaded: its base is not a model of the Hub")
        return files
    return files + [f"adapter/{name}" for name in matching(adapter, ADAPTER_ALLOWED)]


def _first_lines(error: BaseException) -> str:
    """The first line of an error, and of the errors that a RuntimeError wraps: there the Hub says why it refused."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    cause = error.__cause__ if isinstance(error, RuntimeError) else None
    return line if cause is None else f"{line} {_first_lines(cause)}"
