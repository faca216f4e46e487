"""The tokenizer of a run: loaded or trained, with its chat template, its padding token, and an end token that is not padding."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rmtrain.data.artifact import TokenizedData
from rmtrain.data.comparison import Comparison, TokenizedComparison, Tokens, is_held_out, prompt_hash
from rmtrain.data.rows.dataset import digest, source_identity
from rmtrain.data.rows.loading import load_comparisons
from rmtrain.data.text.renderer import Renderer
from rmtrain.data.text.templates import NEW_PAD_TOKEN, choose_pad_token, edge_tokens, resolve_template
from rmtrain.errors import DataError, RecipeError
from rmtrain.files import get_or_build
from rmtrain.recipe.schema import Data, Model, PretrainedModel

END_TOKEN = "<|endoftext|>"


def load_tokenizer(model: Model, data: Data) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a recipe, ready to encode; for a model from scratch without one, it is trained on `data.train`, once.

    Its `chat_template` is the completed template, it pads on the right with a token that never ends a response, and it stays the same
    when saved and loaded again. If `<|pad|>` had to be added, `len(tokenizer)` is one more than the model's vocabulary may be.

    Raises:
        RecipeError: the tokenizer or the template is missing or cannot be used.
        DataError: the template fails, or, for a trained tokenizer, the data is refused.
    """
    if isinstance(model, PretrainedModel):
        return open_tokenizer(model.path, data.chat_template, model.revision, model.trust_remote_code, data.chat_template_kwargs)
    if model.tokenizer is not None:
        return open_tokenizer(model.tokenizer, data.chat_template, variables=data.chat_template_kwargs)
    return prepared(trained_tokenizer(data, model.scratch.vocab_size), data.chat_template, data.chat_template_kwargs)


def open_tokenizer(
    path: str,
    chat_template: str = "tokenizer",
    revision: str | None = None,
    trust_remote_code: bool = False,
    variables: Mapping[str, Any] | None = None,
) -> PreTrainedTokenizerFast:
    """Return a tokenizer from a directory or the Hub; see `load_tokenizer`. The default template is right for an exported model."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(Path(path).expanduser()) if Path(path).expanduser().exists() else path,
            revision=revision or "main",
            trust_remote_code=trust_remote_code,
        )
    except (OSError, ValueError, KeyError) as error:
        raise RecipeError(f"model: no tokenizer at {path}: {' '.join(str(error).split())[:300]}") from error
    if not tokenizer.is_fast:
        raise RecipeError(f"model: {path} has only a slow tokenizer; add a tokenizer.json to it, or use another model")
    return prepared(tokenizer, chat_template, variables)


def prepared(
    tokenizer: PreTrainedTokenizerFast, chat_template: str, variables: Mapping[str, Any] | None = None
) -> PreTrainedTokenizerFast:
    """Complete the template of a tokenizer, with fixed values of its variables, and set its padding; returns the same tokenizer."""
    tokenizer.chat_template = resolve_template(chat_template, tokenizer, variables)
    tokenizer.padding_side = "right"
    tokenizer.add_special_tokens({"pad_token": choose_pad_token(tokenizer, edge_tokens(tokenizer).end)})
    return tokenizer


def trained_tokenizer(data: Data, vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE with `<|endoftext|>` and `<|pad|>`, trained on the rendered texts of `data.train` without the held-out share.

    Training is deterministic, and the tokenizer is cached in `data.cache_dir`. It has at most `vocab_size` tokens.

    Raises:
        RecipeError: `data.chat_template` is `tokenizer`, and a new tokenizer has no template.
        DataError: the data is refused.
    """
    blank = _wrapped(Tokenizer(models.BPE()))
    template = resolve_template(data.chat_template, blank, data.chat_template_kwargs)
    identity = {"template": template, "vocab_size": vocab_size, "train": [source_identity(source) for source in data.train]}
    folder = Path(data.cache_dir).expanduser() / f"tokenizer-{digest(identity)[:32]}"
    file = folder / "tokenizer.json"

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
        tokenizer.train_from_iterator(_texts(data, blank), trainer)
        (directory / file.name).write_text(tokenizer.to_str(pretty=True), encoding="utf-8")

    get_or_build(folder, build)
    if not file.exists():
        raise DataError(f"{file}: the cached tokenizer is missing; delete {folder} to rebuild it")
    return _wrapped(Tokenizer.from_file(str(file)))


def _wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_TOKEN, pad_token=NEW_PAD_TOKEN)


def _texts(data: Data, tokenizer: PreTrainedTokenizerFast) -> Iterator[str]:
    # `prepare` reads and renders these rows again. Keeping them in between would need the memory of all texts, or a second cache,
    # and only a model from scratch without a tokenizer, such as a demo or a test, comes by here.
    for source in data.train:
        for batch in load_comparisons(source):
            rows = [row for row in batch if isinstance(row, Comparison) and not is_held_out(prompt_hash(row), source.holdout)]
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
