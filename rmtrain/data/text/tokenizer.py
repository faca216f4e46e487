"""The tokenizer of a run: loaded or trained, with its chat template, its padding, and an end token that is not padding."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rmtrain.data.text.bpe import trained_tokenizer
from rmtrain.data.text.special_tokens import choose_pad_token, edge_tokens
from rmtrain.data.text.templates import resolve_template
from rmtrain.errors import RecipeError
from rmtrain.recipe.schema import Data, Model, PretrainedModel


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
