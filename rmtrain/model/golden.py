"""Conversations of ours whose rewards an export must reproduce: no row of anybody's data travels with a model."""

from typing import Any

from rmtrain.data.comparison import Message
from rmtrain.data.text.render import render_all
from rmtrain.data.text.tokenize import encode_conversations

EXCHANGES = (
    ("How many legs has a spider?", "Eight."),
    (
        "Name a river.",
        "The Danube. It rises in the Black Forest and reaches the Black Sea after 2,850 kilometres and ten countries.",
    ),
    ("What is 7 times 8?", "56"),
    ("How do I boil an egg?", "Put it into boiling water for seven minutes,\n\nthen into cold water. Salt it, and eat it warm."),
)


def golden_texts(tokenizer: Any, max_length: int) -> list[tuple[str, list[int]]]:
    """Rendered conversations with their ids, of different lengths, none longer than `max_length` tokens unless all are."""
    single = [_messages([exchange]) for exchange in EXCHANGES]
    conversations = [*single, _messages(EXCHANGES)]
    texts = render_all(conversations, tokenizer, [f"golden text {number}" for number in range(len(conversations))])
    pairs = list(zip(texts, encode_conversations(conversations, tokenizer), strict=True))
    fitting = [pair for pair in pairs if len(pair[1]) <= max_length]
    return fitting or [min(pairs, key=lambda pair: len(pair[1]))]


def _messages(exchanges: Any) -> list[Message]:
    return [
        {"role": role, "content": text}
        for exchange in exchanges
        for role, text in zip(("user", "assistant"), exchange, strict=True)
    ]
