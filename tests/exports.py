"""Small exported reward models, without a training run."""

from pathlib import Path
from typing import Any

import torch

from rmtrain.data.text.tokenizer import prepared
from rmtrain.model.build import build_reward_model
from rmtrain.model.export_dir import golden_texts, write_export
from rmtrain.recipe.schema import Architecture, ScratchModel
from tests.helpers import byte_bpe

LONGEST = 256


def tiny_export(
    directory: Path, architecture: str = "llama", seed: int = 1, template: str = "simple_chat", spread: float = 4.0
) -> Path:
    """Export a model with random weights, scaled up so that rewards of different texts differ clearly."""
    torch.set_num_threads(1)
    tokenizer: Any = prepared(byte_bpe(), template)
    sizes = Architecture(architecture=architecture, hidden_size=32, layers=2, heads=2, vocab_size=512, max_positions=LONGEST)
    model = build_reward_model(ScratchModel(scratch=sizes), None, tokenizer, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(spread)
    write_export(model, tokenizer, directory, golden_texts(tokenizer, LONGEST), {})
    return directory
