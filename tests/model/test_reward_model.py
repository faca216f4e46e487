"""Rewards are read at the last real token, in float32, whatever the padding, the neighbours and the training mode."""

from typing import Any

import pytest
import torch
from torch import nn

from rmtrain.model.classifier import RewardHead
from rmtrain.model.reward_model import evaluating, trainable_summary, unwrap
from rmtrain.recipe.schema import Lora
from tests.model.builders import CAUSAL, ENCODERS, build, make_batch, make_sequences, spread


@pytest.mark.parametrize("architecture", CAUSAL + ENCODERS)
def test_padded_rewards_equal_those_of_transformers(architecture: str, tokenizer: Any) -> None:
    """A padded batch gives the rewards of transformers' own forward, one sequence at a time."""
    model = build(architecture, tokenizer).eval()
    sequences = make_sequences(tokenizer)
    with torch.no_grad():
        rewards_N = model(make_batch(sequences, tokenizer.pad_token_id))
        alone = torch.stack([model.hf(input_ids=torch.tensor([ids])).logits[0, 0] for ids in sequences])
    torch.testing.assert_close(rewards_N, alone, rtol=1e-5, atol=1e-5)
    assert rewards_N.dtype == torch.float32
    assert rewards_N.shape == (len(sequences),)
    assert rewards_N._base is None, "a view would upset FSDP"
    assert spread(rewards_N) > 1e-3, "guard: rewards differ"
    assert len({len(ids) for ids in sequences}) > 1, "guard: there was padding"
    assert model.pools_last_token is (architecture in CAUSAL)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert"])
def test_trap_19_reward_does_not_depend_on_neighbours(architecture: str, tokenizer: Any) -> None:
    model = build(architecture, tokenizer).eval()
    first, second, third, fourth = make_sequences(tokenizer)
    pad = tokenizer.pad_token_id
    with torch.no_grad():
        together = model(make_batch([first, second, third, fourth], pad))
        swapped = model(make_batch([fourth, first, third, second], pad))
    torch.testing.assert_close(together, swapped[[1, 3, 2, 0]], rtol=1e-5, atol=1e-5)
    assert spread(together) > 1e-3


def test_trap_01_reward_is_read_at_last_token(tokenizer: Any) -> None:
    """Also when the pad token is the end token, where transformers reads elsewhere."""
    model = build("llama", tokenizer).eval()
    eos = tokenizer.eos_token_id
    short, long = make_sequences(tokenizer)[2], make_sequences(tokenizer)[1]
    other_end = [*short[:-1], short[0]]
    with torch.no_grad():
        rewards_N = model(make_batch([short, long, other_end, long], pad_token_id=eos))
        alone = torch.cat([model(make_batch([ids, ids], pad_token_id=eos))[:1] for ids in (short, long, other_end, long)])
        model.hf.config.pad_token_id = eos
        theirs = model.hf(input_ids=torch.tensor([short])).logits[0, 0]
    torch.testing.assert_close(rewards_N, alone, rtol=1e-5, atol=1e-5)
    assert abs(rewards_N[0] - rewards_N[2]) > 1e-4, "pairs that differ only in the last token have different rewards"
    assert abs(theirs - rewards_N[0]) > 1e-4, (
        "guard: transformers, which looks for a token that is not the pad id, reads elsewhere"
    )


def test_trap_06_head_is_float32_under_autocast() -> None:
    """Hidden states one bfloat16 step apart get different rewards."""
    head = RewardHead(64, 1, bias=False)
    torch.manual_seed(0)
    hidden_NH = torch.randn(2000, 64).bfloat16()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        rewards = head(hidden_NH)[:, 0]
        on_grid = nn.functional.linear(hidden_NH, head.weight.bfloat16())[:, 0].float()
    next_hidden = hidden_NH.clone().view(torch.int16)
    next_hidden[0, 0] += 1  # one unit in the last place
    with torch.no_grad():
        assert head(next_hidden.view(torch.bfloat16))[0, 0] != rewards[0], (
            "hidden states a bfloat16 step apart have different rewards"
        )
    assert rewards.dtype == torch.float32
    assert rewards.unique().numel() > 1990
    assert on_grid.unique().numel() < 1500, "guard: the usual way makes ties"


def test_trap_06_rewards_are_float32_under_autocast(tokenizer: Any) -> None:
    for architecture in ("llama", "bert", "roberta"):
        model = build(architecture, tokenizer).eval()
        model.computing = "bfloat16"
        with torch.no_grad():
            rewards_N = model(make_batch(make_sequences(tokenizer), tokenizer.pad_token_id))
        assert rewards_N.dtype == torch.float32
        assert not torch.equal(rewards_N, rewards_N.bfloat16().float()), f"{architecture}: rewards are on the bfloat16 grid"


@pytest.mark.parametrize("architecture", CAUSAL + ENCODERS)
def test_trap_34_training_mode_is_deterministic(architecture: str, tokenizer: Any) -> None:
    """Without dropout a model in training mode gives the same rewards twice."""
    model = build(architecture, tokenizer)
    batch = make_batch(make_sequences(tokenizer), tokenizer.pad_token_id)
    assert model.training
    with torch.no_grad():
        assert torch.equal(model(batch), model(batch))


def test_trap_34_dropout_and_modes_are_restored(tokenizer: Any) -> None:
    """Dropout makes noise if the recipe sets it, and `evaluating` restores the mode of each module."""
    model = build("gpt2", tokenizer, dropout=0.3)
    model.backbone.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    batch = make_batch(make_sequences(tokenizer), tokenizer.pad_token_id)
    with torch.no_grad():
        assert not torch.equal(model(batch), model(batch)), "guard: dropout makes noise"
    with evaluating(model):
        assert torch.equal(model(batch), model(batch))
        assert not torch.is_grad_enabled()
    assert [module.training for module in model.modules()] == modes
    assert len(set(modes)) == 2, "guard: both modes occur"
    assert model.backbone.config.attn_pdrop == model.backbone.config.resid_pdrop == model.backbone.config.embd_pdrop == 0.3


def test_mixed_dtypes_compute_under_autocast(tokenizer: Any) -> None:
    model = build("llama", tokenizer, dtype="bfloat16", lora=Lora(rank=4)).eval()
    kinds = trainable_summary(model)
    assert set(kinds["total"]) == {"float32", "bfloat16"}
    assert set(kinds["trainable"]) == {"float32"}
    with torch.no_grad():
        rewards_N = model(make_batch(make_sequences(tokenizer), tokenizer.pad_token_id))
    assert rewards_N.dtype == torch.float32
    assert torch.isfinite(rewards_N).all()
    assert spread(rewards_N) > 1e-3


@pytest.mark.parametrize(
    ("architecture", "expected"), [("gpt2", 128), ("opt", 128), ("roberta", 128), ("bert", 128), ("llama", None)]
)
def test_max_positions_counts_usable_positions(architecture: str, expected: int | None, tokenizer: Any) -> None:
    """One token more than the position embeddings hold fails."""
    model = build(architecture, tokenizer).eval()
    assert model.max_positions == expected
    assert model.declared_positions == 128, "of rotary models the configuration says it"
    if expected is not None:
        with torch.no_grad():
            model(make_batch([[5] * expected, [6]], tokenizer.pad_token_id))
            with pytest.raises((IndexError, RuntimeError)):
                model(make_batch([[5] * (expected + 1), [6]], tokenizer.pad_token_id))


def test_unwrap_finds_the_model_inside_wrappers(tokenizer: Any) -> None:
    model = build("llama", tokenizer)
    compiled = torch.compile(model)
    assert unwrap(model) is model
    assert unwrap(compiled) is model
    with pytest.raises(AssertionError, match="Linear"):
        unwrap(nn.Linear(1, 1))


def test_summary_counts_every_parameter_once(tokenizer: Any) -> None:
    model = build("llama", tokenizer, lora=Lora(rank=2))
    summary = trainable_summary(model)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert sum(summary["total"].values()) == sum(parameter.numel() for parameter in model.parameters())
    assert summary["trainable"]["float32"] == sum(p.numel() for n, p in model.named_parameters() if n in trained)
    assert all("lora_" in name or "score" in name for name in trained)
    assert trained, "guard"
