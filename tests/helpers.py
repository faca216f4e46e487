"""Small real tokenizers of each kind, and files of rows, for tests."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from rmtrain.recipe.schema import Data, PairSource

SENTENCES = [
    "What is the capital of France? The capital of France is Paris, a city on the river Seine.",
    "How do I bake bread? Mix flour, water, salt and yeast, wait two hours, then bake it in a hot oven.",
    "User: tell me a joke. Assistant: why did the chicken cross the road? To get to the other side.",
    "I do not know, but I can look it up for you; please wait a moment while I search.",
    "The quick brown fox jumps over the lazy dog, and then it sleeps under the old oak tree.",
    "12 + 30 = 42, which is also the answer to life, the universe and everything else.",
] * 4
LLAMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
    "{% else %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% endif %}{% endfor %}"
)


def byte_bpe(
    vocab_size: int = 420, special_tokens: Iterable[str] = ("<|endoftext|>", "<|pad|>"), **named: str
) -> PreTrainedTokenizerFast:
    """A byte-level BPE as gpt2, pythia and qwen have it: it adds no special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **(named or {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"})
    )


def llama_like(chat_template: str | None = LLAMA_TEMPLATE, **named: str) -> PreTrainedTokenizerFast:
    """A tokenizer that puts `<s>` before a text, ends with `</s>`, and has a template that writes both."""
    special = ["<unk>", "<s>", "</s>", "<|reserved_special_token_0|>"]
    tokenizer = byte_bpe(special_tokens=special, **({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | named))
    begin = ("<s>", tokenizer.convert_tokens_to_ids("<s>"))
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[begin])
    tokenizer.chat_template = chat_template
    return tokenizer


def bert_like() -> PreTrainedTokenizerFast:
    """An uncased WordPiece that puts a text between `[CLS]` and `[SEP]` and has no template and no end-of-text token."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        SENTENCES, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def roberta_like() -> PreTrainedTokenizerFast:
    """A byte-level BPE that puts a text between `<s>` and `</s>`, which are also its bos and eos tokens."""
    names = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>"}
    tokenizer = byte_bpe(special_tokens=["<s>", "<pad>", "</s>"], **names)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


def unigram_like() -> PreTrainedTokenizerFast:
    """A SentencePiece-style Unigram that puts `<s>` before a text, marks words with a prefix, and has no template."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Rows as JSON Lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def pairs(count: int, prompts: int | None = None) -> list[dict[str, str]]:
    """Different pairs of short texts, over as many prompts or over fewer."""
    return [
        {
            "prompt": f"What is {index % (prompts or count)} plus one?",
            "chosen": f"It is {index + 1}.",
            "rejected": f"I do not know, perhaps {index + 7}?",
        }
        for index in range(count)
    ]


def data_of(path: Path, cache: Path, **settings: Any) -> Data:
    """A data section that trains on one file of pairs."""
    source = {key: settings.pop(key) for key in list(settings) if key in PairSource.model_fields}
    return Data(train=[PairSource(path=str(path), **source)], cache_dir=str(cache), **{"chat_template": "simple_chat"} | settings)
