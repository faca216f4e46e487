"""The tokenizer of a run: loaded or trained, with its chat template, its padding token, and an end token that is not padding."""

import hashlib
import logging
import os
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is of httpx or httpx2, by version
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    RepositoryNotFoundError,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import cached_file

from rmtrain.data.artifact import TokenizedData
from rmtrain.data.comparison import Comparison, TokenizedComparison, Tokens, is_held_out, prompt_hash
from rmtrain.data.rows.fingerprint import Snapshot, digest
from rmtrain.data.rows.loading import all_problems, load_comparisons
from rmtrain.data.text.renderer import Renderer
from rmtrain.data.text.templates import NEW_PAD_TOKEN, choose_pad_token, edge_tokens, resolve_template
from rmtrain.errors import CheckpointError, DataError, RecipeError, missing
from rmtrain.files import expanded, get_or_build, read_json
from rmtrain.network import raise_if_passing, refusal
from rmtrain.recipe.schema import Data, Model, PretrainedModel

END_TOKEN = "<|endoftext|>"
REPLACED_PAD = "replaced_pad"
"""Key of tokenizer_config.json: the padding token in place of which another one is used."""
COMMIT = re.compile(r"[0-9a-f]{40}")
ADAPTER_CONFIG = "adapter_config.json"
PATTERN_SECONDS = 10.0
REPEATS = 256
MAX_LAYERS, MAX_NUMBER = 2**12, 2**16
"""Above the number of layers, and of heads, experts, labels and the like, of any model."""

logger = logging.getLogger("rmtrain")


def load_tokenizer(model: Model, data: Data) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a recipe, ready to encode; for a model from scratch without one, it is trained on `data.train`, once.

    Its `chat_template` is the completed template, it pads on the right with a token that never ends a response, and it stays the same
    when saved and loaded again. If `<|pad|>` had to be added, `len(tokenizer)` is one more than the model's vocabulary may be.

    Raises:
        CheckpointError: see `read_tokenizer`; or the model is an adapter.
        RecipeError: the template is missing or cannot be used.
        DataError: the template fails, or, for a trained tokenizer, the data is refused.
    """
    if isinstance(model, PretrainedModel):
        if model.trust_remote_code:
            check_pinned(model.path, model.revision, "model.path")
        path = checked_path(model.path, "model.path")
        if (Path(path) / ADAPTER_CONFIG).is_file() and not (Path(path) / "config.json").is_file():
            raise CheckpointError(f"model.path: {adapter_problem(path)}")
        return open_tokenizer(
            path, data.chat_template, model.revision, model.trust_remote_code, "model.path", data.chat_template_kwargs
        )
    if model.tokenizer is not None:
        return open_tokenizer(model.tokenizer, data.chat_template, label="model.tokenizer", variables=data.chat_template_kwargs)
    return prepared(trained_tokenizer(data, model.scratch.vocab_size), data.chat_template, data.chat_template_kwargs)


def checked_path(path: str, label: str) -> str:
    """Return the path of a directory, with `~` expanded, or a Hub id unchanged.

    Raises CheckpointError for a file or a missing directory. Without asking the Hub, if `path` looks like a directory: it begins with a
    dot, a slash or `~`, has several slashes or ends in one, or its first part is a directory here and the Hub's cache does not have it.
    """
    expanded = os.path.expanduser(path)
    if os.path.isdir(expanded):
        return expanded
    if os.path.isfile(expanded):
        raise CheckpointError(f"{label}: {path} is a file; expected the directory of a model")
    problem = f"{label}: {missing(path)}"
    first, *others = path.split("/")
    if first in ("", ".", "..") or first.startswith("~") or len(others) > 1 or others == [""]:
        raise CheckpointError(problem)
    if (Path(constants.HF_HUB_CACHE) / "--".join(["models", first, *others])).is_dir():
        return path
    if others and os.path.isdir(first):
        hint = f"to load it from the Hub all the same, run `hf download {path}` first"
        raise CheckpointError(f"{problem} ({first} is a directory here); {hint}")
    if constants.HF_HUB_OFFLINE:
        raise CheckpointError(f"{problem}, and the Hub's cache has no such model; unset HF_HUB_OFFLINE to download it")
    try:
        # One request without retries, where loading would repeat each for 20 seconds.
        get_hf_file_metadata(hf_hub_url(path, "config.json"))
    except (RepositoryNotFoundError, HFValidationError) as error:
        reason = f": {refusal()}" if refusal() else ""
        raise CheckpointError(f"{problem}, and no such model on the Hub, or it is private{reason}") from error
    except HfHubHTTPError:
        pass  # such as a model without the file, or one that needs a login; loading says more
    except (HTTPError, OSError, ValueError) as error:
        raise_if_passing(f"{label}: {path}", error)
        raise CheckpointError(f"{problem}, and the Hub cannot be reached: {error}") from error
    return path


def check_pinned(path: str, revision: str | None, label: str) -> None:
    """Raise RecipeError for code that is not pinned to a commit, or that is in a directory, where nothing pins it."""
    if os.path.isdir(os.path.expanduser(path)):
        problem = f"a Hub id pinned by revision; the code in the directory {path} is not pinned"
    elif not COMMIT.fullmatch(revision or ""):
        problem = f"revision to be a full commit hash (40 hex digits), got {revision}"
    else:
        return
    raise RecipeError(f"{label}: trust_remote_code needs {problem}")


def adapter_problem(path: str) -> str:
    """Return the problem with an adapter, in a directory, in place of a model."""
    try:
        base = read_json(Path(path) / ADAPTER_CONFIG, dict)["base_model_name_or_path"]
    except (OSError, ValueError, KeyError):
        base = "another model"
    return (
        f"{path} is an adapter of {base}; name that model, or merge the adapter into it (PEFT: merge_and_unload, save_pretrained)"
    )


def open_tokenizer(
    path: str,
    chat_template: str = "tokenizer",
    revision: str | None = None,
    trust_remote_code: bool = False,
    label: str = "model",
    variables: Mapping[str, Any] | None = None,
) -> PreTrainedTokenizerFast:
    """Return a tokenizer from a directory or the Hub; see `load_tokenizer`. The default template is right for an exported model."""
    return prepared(read_tokenizer(checked_path(path, label), label, revision, trust_remote_code), chat_template, variables)


def read_tokenizer(
    path: str, label: str = "model", revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a directory or of a Hub id as it was saved; it pads on the right.

    Raises CheckpointError, which begins with `label`: there is none, it is slow or damaged, or it has a regular expression that is
    invalid, or takes too long.
    """
    code = {"code_revision": revision} if trust_remote_code else {}
    try:
        file = cached_file(path, "config.json", revision=revision, _raise_exceptions_for_missing_entries=False)
        problem = None if file is None else size_problem(read_json(Path(file), dict))
        if problem is not None:  # transformers reads it for a tokenizer as well
            raise ValueError(f"config.json: {problem}")
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision or "main", trust_remote_code=trust_remote_code, **code)
    except Exception as error:  # tokenizers raises nothing more specific for a damaged file or an invalid expression
        raise_if_passing(f"{label}: {path}", error)
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{label}: cannot load the tokenizer of {path}: {reason}") from error
    if not tokenizer.is_fast:
        raise CheckpointError(f"{label}: {path} has only a slow tokenizer; add a tokenizer.json to it, or use another model")
    problem = _pattern_problem(tokenizer.backend_tokenizer)
    if problem is not None:
        raise CheckpointError(f"{label}: the tokenizer of {path} {problem}; use another tokenizer")
    try:
        tokenizer("a")
    except Exception as error:  # whatever its files make of it, such as a `model_max_length` that is not a number
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{label}: the tokenizer of {path} cannot encode a text: {reason}") from error
    tokenizer.padding_side = "right"
    return tokenizer


def size_problem(config: Any) -> str | None:
    """Return the problem with the JSON of a configuration from which transformers would make absurdly long lists."""
    for key, value in entries(config):
        most = MAX_LAYERS if "layer" in key else MAX_NUMBER
        if key.startswith(("num_", "n_layer", "n_head")) and isinstance(value, int) and value > most:
            return f"expected {key} of at most {most}, got {value}"
    return None


def entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the keys and values of a JSON object, and of the objects in it."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            yield from one.items()
            left += one.values()


def _pattern_problem(tokenizer: Tokenizer) -> str | None:
    """Return the problem with the regular expressions of a tokenizer, which are a stranger's: they can backtrack without end.

    What an expression can repeat is repeated, and followed by what a repetition cannot match and by all that a search could look for.
    """
    steps = (tokenizer.normalizer, tokenizer.pre_tokenizer)
    patterns = "".join(step.__getstate__().decode() for step in steps if step is not None)
    if "Regex" not in patterns:
        return None
    repeated = sorted({*patterns, *re.findall(r"\w{2,8}", patterns), *"aA1 \n.é中"})
    texts = [f"{text * REPEATS}\1{patterns} 1a." for text in repeated]
    problems: list[BaseException] = []

    def encode() -> None:
        try:
            for text in texts:
                tokenizer.encode_batch([text], add_special_tokens=False)  # which lets other threads run, as `encode` does not
        except BaseException as error:  # a panic of tokenizers is not an Exception
            problems.append(error)

    # In a thread, because nothing can interrupt a call of tokenizers; it ends with the process.
    thread = threading.Thread(target=encode, daemon=True)
    with _without_stderr():  # where a panic writes its stack
        thread.start()
        thread.join(PATTERN_SECONDS)
    if thread.is_alive():
        return f"has a regular expression that takes more than {PATTERN_SECONDS:g} seconds for {len(texts)} short texts"
    return f"fails: {' '.join(str(problems[0]).split())[:200]}" if problems else None


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Discard what native code writes to the standard error of the process."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def prepared(
    tokenizer: PreTrainedTokenizerFast, chat_template: str, variables: Mapping[str, Any] | None = None
) -> PreTrainedTokenizerFast:
    """Complete the template of a tokenizer, with fixed values of its variables, and set its padding; returns the same tokenizer."""
    tokenizer.chat_template = resolve_template(chat_template, tokenizer, variables)
    tokenizer.padding_side = "right"
    chosen, own = choose_pad_token(tokenizer, edge_tokens(tokenizer).end), tokenizer.pad_token
    if str(chosen) != own:
        reason = "the tokenizer has no padding token" if own is None else f"{own} also ends or begins texts"
        logger.info("padding with %s: %s", chosen, reason)
        tokenizer.init_kwargs[REPLACED_PAD] = own  # saved with the tokenizer, and so known wherever the model goes
    tokenizer.add_special_tokens({"pad_token": chosen})
    return tokenizer


def replaced_pad_token(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any] | None:
    """Return the padding token, its id and the one that it replaced (None: there was none), or None if it is the model's own."""
    if REPLACED_PAD not in tokenizer.init_kwargs:
        return None
    return {"token": tokenizer.pad_token, "id": tokenizer.pad_token_id, "replaced": tokenizer.init_kwargs[REPLACED_PAD]}


def trained_tokenizer(data: Data, vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE with `<|endoftext|>` and `<|pad|>`, trained on the rendered texts of `data.train` without the held-out share.

    Training is deterministic, and the tokenizer is cached in `data.cache_dir`. It has at most `vocab_size` tokens.

    Raises:
        RecipeError: `data.chat_template` is `tokenizer`, and a new tokenizer has no template.
        DataError: the data is refused.
    """
    blank = _wrapped(Tokenizer(models.BPE()))
    template = resolve_template(data.chat_template, blank, data.chat_template_kwargs)
    sources = (*data.train, *data.eval)
    with all_problems(sources):
        snapshot = Snapshot(data.train)
    key = digest({"template": template, "vocab_size": vocab_size, "train": snapshot.identities})

    def build(directory: Path) -> None:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_TOKEN, NEW_PAD_TOKEN],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        with all_problems(sources), snapshot.unchanged():
            tokenizer.train_from_iterator(_texts(data, blank), trainer)
        made = tokenizer.to_str(pretty=True)
        (directory / "tokenizer.json").write_text(made, encoding="utf-8")
        (directory / "key").write_text(_seal(key, made), encoding="utf-8")

    folder = get_or_build(expanded(data.cache_dir, "data.cache_dir") / f"tokenizer-{key[:32]}", build)
    try:
        stored, seal = ((folder / name).read_text(encoding="utf-8") for name in ("tokenizer.json", "key"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: the cached tokenizer is damaged; delete it to rebuild it") from error
    if seal != _seal(key, stored):
        raise DataError(f"{folder}: the cached tokenizer is damaged, or was made of other data; delete it to rebuild it")
    return _wrapped(Tokenizer.from_str(stored))


def _seal(key: str, tokenizer: str) -> str:
    """Return the text that a cached tokenizer is checked by."""
    return f"{key} {hashlib.sha256(tokenizer.encode()).hexdigest()}\n"


def _wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_TOKEN, pad_token=NEW_PAD_TOKEN)


def _texts(data: Data, tokenizer: PreTrainedTokenizerFast) -> Iterator[str]:
    # `prepare` reads and renders these rows again. Keeping them in between would need the memory of all texts, or a second cache,
    # and only a model from scratch without a tokenizer, such as a demo or a test, comes by here.
    for source in data.train:
        for batch in load_comparisons(source):
            texts = [row for row in batch if isinstance(row, Comparison)]
            rows = [row for row in texts if not is_held_out(prompt_hash(row), source.holdout, source.fold)]
            for row in Renderer(tokenizer).render(rows):
                yield from (text.replace(END_TOKEN, "") for number, text in enumerate(row.texts) if number not in row.faults)


CANARY_WORDS = (
    "the Reward don't 's 'LL naïve Straße İstanbul ﬁne é e\u0301 Привет مرحبا हिन्दी 你好，世界 こんにちは 👩‍👩‍👧 🇩🇪 \u200b \u00a0 \ufeff … "
    "“quoted” x_1 camelCase HTTP/2 0 007 1234567 3.14 1e-5 ½ 50% $9.99 2026-11-25 12:30 == -> // #! \\n {{x}} "
    "<s> </s> [CLS] <|endoftext|> <think> a@b.org C++"
)
CANARY_FORMS = ("{}", " {}", "{}\n\n{}", "  {}\t{}", "A {}, B {}.")
CANARIES = tuple(form.replace("{}", word) for word in CANARY_WORDS.split(" ") for form in CANARY_FORMS)


def canary_hashes(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return a short hash of the tokens of each of `CANARIES`, to be stored with tokenized data and compared before it is used.

    An update of a library can change the tokens of a tokenizer whose files, and therefore whose fingerprint, are unchanged.
    """
    encoded = tokenizer(list(CANARIES), add_special_tokens=False, padding=False, truncation=False)
    return [blake2b(repr(list(ids)).encode(), digest_size=4).hexdigest() for ids in encoded["input_ids"]]


def first_change(before: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the first of `CANARIES` whose tokens differ from those that `canary_hashes` saw in `before`; None if all are the same."""
    return next((text for text, old, new in zip(CANARIES, before, canary_hashes(tokenizer), strict=True) if old != new), None)


def decoded(tokens: Tokens, tokenizer: PreTrainedTokenizerBase, special_tokens: bool = True) -> str:
    """Return the text of tokens. Text that the tokenizer does not keep, such as upper case or line feeds, is not restored.

    With `special_tokens` they are kept, and spaces are exactly those of the tokens; without, spaces are cleaned up where the tokenizer is
    configured to do so.
    """
    ids = np.asarray(tokens, np.int64).tolist()
    clean_up = False if special_tokens else None  # clean-up would move the characters that a `Match` points to
    return str(tokenizer.decode(ids, skip_special_tokens=not special_tokens, clean_up_tokenization_spaces=clean_up))


@dataclass(frozen=True, slots=True)
class Match:
    """The place of a text: characters `begin` to `end` of the decoded sequence of response `response` of comparison `row`."""

    row: int
    response: int
    begin: int
    end: int


def search(
    data: TokenizedData | Sequence[TokenizedComparison], numbers: Iterable[int], tokenizer: PreTrainedTokenizerBase, text: str
) -> Iterator[Match | None]:
    """Yield the first match of each comparison in its whole sequences, prompt and response, or None, as they are read.

    Args:
        data: the comparisons.
        numbers: numbers of the comparisons to search, in this order.
        tokenizer: the tokenizer that made them.
        text: the text to find, literally, ignoring case.
    """
    pattern = re.compile(re.escape(text), re.IGNORECASE)
    for number in numbers:
        matches = (pattern.search(decoded(tokens, tokenizer)) for tokens in data[number].sequences)
        yield next((Match(number, response, *match.span()) for response, match in enumerate(matches) if match), None)
