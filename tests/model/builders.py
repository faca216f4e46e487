"""Tiny models, tokenizers and batches for the tests of rmtrain/model."""

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from rmtrain.batching.layout import MicroBatch, lay_out
from rmtrain.data.comparison import PAIR, Preference, TokenizedComparison
from rmtrain.errors import RmtrainError
from rmtrain.model.build import build_reward_model, scratch_config
from rmtrain.model.reward_model import RewardModel
from rmtrain.recipe.schema import Architecture, Lora, ScratchModel
from tests.comparisons import tokenized

if TYPE_CHECKING:
    import pytest  # benchmarks/gpu.py builds these models where there is none

CAUSAL = ("llama", "qwen2", "qwen3", "gemma", "phi3", "gpt_neox", "gpt2", "opt", "olmo2", "mixtral")
ENCODERS = ("bert", "modernbert", "deberta-v2", "roberta", "distilbert", "electra")
TEXTS = (
    "The cat sat on the mat.<eos>",
    "Tell me a joke, please. Why did the chicken cross the road? To get to the other side!<eos>",
    "No.<eos>",
    "A longer answer, which says the same thing twice, and then says the same thing twice again.<eos>",
)


@cache
def _bpe() -> str:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<eos>", "<pad>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(TEXTS, trainer)
    return bpe.to_str()


def make_tokenizer() -> Any:
    """Return a byte-level BPE of at most 320 tokens with an end token, another pad token and a chat template."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_bpe()), eos_token="<eos>", pad_token="<pad>")
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }} {% endfor %}"
    return tokenizer


def make_sequences(tokenizer: Any) -> list[list[int]]:
    """Return four token sequences of different lengths, each ending in one end token."""
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]


def make_golden(tokenizer: Any) -> list[tuple[str, list[int]]]:
    return list(zip(TEXTS, make_sequences(tokenizer), strict=True))


def make_batch(sequences: Sequence[Sequence[int]], pad_token_id: int) -> MicroBatch:
    """Lay out pairs of neighbouring sequences as one padded micro-batch."""
    pairs = [
        TokenizedComparison(str(n), "test", (sequences[n], sequences[n + 1]), 0, 0, PAIR) for n in range(0, len(sequences), 2)
    ]
    return lay_out(pairs, pad_token_id)


def scratch(architecture: str, *, hidden_size: int = 32, key_value_heads: int | None = None, **model: Any) -> ScratchModel:
    sizes = Architecture(
        architecture=architecture, hidden_size=hidden_size, layers=2, heads=4, key_value_heads=key_value_heads, max_positions=128
    )
    return ScratchModel(scratch=sizes, **model)


def build(architecture: str, tokenizer: Any, *, lora: Lora | None = None, seed: int = 1, **model: Any) -> RewardModel:
    return build_reward_model(scratch(architecture, **model), lora, tokenizer, seed)


def make_base(
    directory: Path,
    tokenizer: Any,
    architecture: str = "llama",
    change: Callable[[Any], None] | None = None,
    hidden_size: int = 32,
) -> Path:
    """Write a base model without a score head: weights, configuration, tokenizer."""
    config = scratch_config(scratch(architecture, hidden_size=hidden_size).scratch, tokenizer)
    torch.manual_seed(3)
    model = (AutoModelForCausalLM if architecture in CAUSAL else AutoModelForMaskedLM).from_config(config)
    if change is not None:
        change(model)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def make_reward_model(directory: Path, tokenizer: Any, architecture: str = "llama", labels: int = 1) -> Path:
    """Write a sequence-classification model, without a tokenizer."""
    config = scratch_config(scratch(architecture).scratch, tokenizer)
    config.num_labels = labels
    torch.manual_seed(4)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(directory)
    return directory


def edit_json(file: Path, **values: Any) -> None:
    """Set keys of a JSON file; `...` removes one."""
    content = json.loads(file.read_text())
    content.update(values)
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def only_problem(refusal: "pytest.ExceptionInfo[RmtrainError]") -> str:
    """Return the only problem of an error, which must be one line."""
    (problem,) = refusal.value.problems
    assert "\n" not in problem
    return problem


def spread(rewards: torch.Tensor) -> float:
    """Return the largest minus the smallest reward; guards against tests that compare constants."""
    return float(rewards.max() - rewards.min())


def comparisons(vocabulary: int = 200, end: int = 1, longer: int = 1) -> list[TokenizedComparison]:
    """K of 2, 4 and 7; prefixes of no, one, many, and all but one token; margins, and all pairs as edges.

    `longer` is a factor on prefixes of several tokens, and on the longest responses.
    """
    rng = np.random.default_rng(0)

    def some(count: int) -> list[int]:
        return rng.integers(3, vocabulary, count).tolist()

    rows = []
    for number, (responses, prefix) in enumerate([(2, 0), (2, 13), (4, 1), (7, 17), (4, 20)]):
        shared = some(prefix * longer if prefix > 1 else prefix)
        sides = [[*shared, 3 + k, *some(int(rng.integers(1, 14 * longer))), end] for k in range(responses)]
        edges = tuple(Preference(a, b, 0.1 * number) for a in range(responses) for b in range(a + 1, responses))
        rows.append(tokenized(f"s:{number}", *sides, preferences=edges))
    base = some(9)
    rows.append(tokenized("s:5", [*base, end], [*base, 5]))
    return rows


def amplified(model: RewardModel) -> RewardModel:
    """Set larger random weights, so that attention matters: fresh models hardly look at their context."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
    return model.train()
