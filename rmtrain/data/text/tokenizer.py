"""The tokenizer of a run: loaded or trained, with its chat template, its padding, and an end token that is not padding."""

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import product
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rmtrain.data.cache import Claim, get_or_build
from rmtrain.data.comparison import Comparison, is_held_out, prompt_hash
from rmtrain.data.rows.dataset import digest, source_identity
from rmtrain.data.rows.loading import load_comparisons
from rmtrain.data.text.templates import NEW_PAD_TOKEN, choose_pad_token, edge_tokens, render_all, resolve_template
from rmtrain.errors import DataError, RecipeError
from rmtrain.recipe.schema import Data, Model, PretrainedModel

WORDS = [
    *["the", "Reward", "don't", "'s", "'LL", "naïve", "Straße", "İstanbul", "ﬁne", "é", "e\u0301", "Привет", "مرحبا", "हिन्दी"],
    *["你好，世界", "こんにちは", "👩‍👩‍👧", "🇩🇪", "\u200b", "\u00a0", "\ufeff", "…", "“quoted”", "x_1", "camelCase", "HTTP/2"],
    *["0", "007", "1234567", "3.14", "1e-5", "½", "50%", "$9.99", "2026-11-25", "12:30", "==", "->", "//", "#!", "\\n", "{{x}}"],
    *["<s>", "</s>", "[CLS]", "<|endoftext|>", "<think>", "a@b.org", "C++"],
]
FORMS = ("{}", " {}", "{}\n\n{}", "  {}\t{}", "A {}, B {}.")
PROBES = tuple(form.replace("{}", word) for word, form in product(WORDS, FORMS))


def probe(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """A short hash of the tokens of each of `PROBES`."""
    encoded = tokenizer(list(PROBES), add_special_tokens=False, padding=False, truncation=False)
    return [blake2b(repr(list(ids)).encode(), digest_size=4).hexdigest() for ids in encoded["input_ids"]]


def first_change(before: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The first of `PROBES` that has other tokens than when `probe` gave `before`."""
    return next((text for text, old, new in zip(PROBES, before, probe(tokenizer), strict=True) if old != new), None)


END_TOKEN = "<|endoftext|>"


def trained_tokenizer(data: Data, vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE with `<|endoftext|>` and `<|pad|>`, trained on the rendered texts of `data.train` without its held-out share.

    Training is deterministic; the result is kept in `data.cache_dir`.

    Args:
        data: sources, chat template and cache directory.
        vocab_size: largest number of tokens; fewer when the texts have no more pairs to merge.

    Raises:
        RecipeError: `data.chat_template` is `tokenizer`: a new tokenizer has none.
        DataError: the data is refused.
    """
    blank = _wrapped(Tokenizer(models.BPE()))
    template = resolve_template(data.chat_template, blank)
    identity = {"template": template, "vocab_size": vocab_size, "train": [source_identity(source) for source in data.train]}
    folder = Path(data.cache_dir).expanduser() / f"tokenizer-{digest(identity)[:32]}"
    file = folder / "tokenizer.json"

    def build(directory: Path, held: Claim) -> None:
        trained = _train(_texts(data, blank), vocab_size)
        (directory / file.name).write_text(trained.to_str(pretty=True), encoding="utf-8")

    get_or_build(folder, build)
    if not file.exists():
        raise DataError(f"{file}: it was there and is not any more; delete {folder} to have it made again")
    return _wrapped(Tokenizer.from_file(str(file)))


def _wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_TOKEN, pad_token=NEW_PAD_TOKEN)


def _texts(data: Data, tokenizer: PreTrainedTokenizerFast) -> Iterator[str]:
    for source in data.train:
        for batch in load_comparisons(source):
            rows = [row for row in batch if isinstance(row, Comparison) and not is_held_out(prompt_hash(row), source.holdout)]
            conversations = [(*row.prompt, *response) for row in rows for response in row.responses]
            for text in render_all(conversations, tokenizer, [row.id for row in rows for _ in row.responses]):
                yield text.replace(END_TOKEN, "")


def _train(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_TOKEN, NEW_PAD_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load_tokenizer(model: Model, data: Data) -> PreTrainedTokenizerFast:
    """The tokenizer that a recipe asks for, ready to encode with.

    Its `chat_template` is the completed template, it pads on the right with a token that never ends a response, and saved and loaded
    again it is the same. If `<|pad|>` had to be added, `len(tokenizer)` is one more than the model's vocabulary may be: compare them.

    Args:
        model: `path`, or `scratch` with a tokenizer or without: then a byte-level BPE is trained on `data.train`, once.
        data: the chat template, and the texts and cache of a trained tokenizer.

    Raises:
        RecipeError: there is no usable tokenizer or template.
        DataError: the template fails, or, for a trained tokenizer, the data is refused.
    """
    if isinstance(model, PretrainedModel):
        return open_tokenizer(model.path, data.chat_template, model.revision, model.trust_remote_code)
    if model.tokenizer is not None:
        return open_tokenizer(model.tokenizer, data.chat_template)
    return prepared(trained_tokenizer(data, model.scratch.vocab_size), data.chat_template)


def open_tokenizer(
    path: str, chat_template: str = "tokenizer", revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerFast:
    """A tokenizer from a directory or the Hub; see `load_tokenizer`. With the default template this also opens an exported model's."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(Path(path).expanduser()) if Path(path).expanduser().exists() else path,
            revision=revision or "main",
            trust_remote_code=trust_remote_code,
        )
    except (OSError, ValueError, KeyError) as error:
        raise RecipeError(f"model: no tokenizer at {path}: {' '.join(str(error).split())[:300]}") from error
    if not tokenizer.is_fast:
        raise RecipeError(f"model: {path} has a slow tokenizer only; add a tokenizer.json to it, or take another model")
    return prepared(tokenizer, chat_template)


def prepared(tokenizer: PreTrainedTokenizerFast, chat_template: str) -> PreTrainedTokenizerFast:
    """The same tokenizer, with its template completed and its padding set."""
    tokenizer.chat_template = resolve_template(chat_template, tokenizer)
    tokenizer.padding_side = "right"
    tokenizer.add_special_tokens({"pad_token": choose_pad_token(tokenizer, edge_tokens(tokenizer).end)})
    return tokenizer
