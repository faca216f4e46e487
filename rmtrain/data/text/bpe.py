"""A byte-level BPE trained on the training data, for models that start from nothing."""

from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rmtrain.data.cache import made_once
from rmtrain.data.claim import Claim
from rmtrain.data.comparison import Comparison
from rmtrain.data.hashes import is_held_out, prompt_hash
from rmtrain.data.raw.identity import digest, source_identity
from rmtrain.data.rows.loading import load_comparisons
from rmtrain.data.text.render import render_all
from rmtrain.data.text.special_tokens import NEW_PAD_TOKEN
from rmtrain.data.text.templates import resolve_template
from rmtrain.errors import DataError
from rmtrain.recipe.schema import Data

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

    made_once(folder, build)
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
