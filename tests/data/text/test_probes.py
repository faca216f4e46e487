from typing import Any

from transformers import PreTrainedTokenizerFast

from rmtrain.data.text.tokenizer import PROBES, first_change, probe
from tests.helpers import bert_like, byte_bpe, llama_like, unigram_like


class Patched(PreTrainedTokenizerFast):
    """A tokenizer that a library update has changed for one text."""

    def __call__(self, texts: Any, **settings: Any) -> Any:
        encoded = super().__call__(texts, **settings)
        encoded["input_ids"] = [
            ids[::-1] if text == "  1e-5\t1e-5" else ids for text, ids in zip(texts, encoded["input_ids"], strict=True)
        ]
        return encoded


def test_trap_38_one_text_with_other_tokens_is_named() -> None:
    before = probe(byte_bpe())
    assert first_change(before, byte_bpe()) is None
    changed = Patched(tokenizer_object=byte_bpe().backend_tokenizer, eos_token="<|endoftext|>")
    assert first_change(before, changed) == "  1e-5\t1e-5"
    assert first_change(before, byte_bpe(vocab_size=300)) is not None


def test_the_texts_are_many_and_tell_tokenizers_apart() -> None:
    assert len(set(PROBES)) == len(PROBES) >= 240
    found = [probe(made()) for made in (byte_bpe, bert_like, llama_like, unigram_like)]
    assert len({tuple(hashes) for hashes in found}) == 4
    assert all(len(set(hashes)) > 40 for hashes in found), "guard: most texts have tokens of their own"


def test_calls_before_do_not_matter() -> None:
    tokenizer = byte_bpe()
    before = probe(tokenizer)
    tokenizer(["a", "b c"], padding=True, truncation=True, max_length=1)
    assert first_change(before, tokenizer) is None
