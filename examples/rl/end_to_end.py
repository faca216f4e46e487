"""From a reward model to a better policy, on a laptop: best of n, then GRPO with TRL, with rewards of `RewardScorer` or of a server.

    rmtrain train recipes/quickstart.yaml
    pip install trl
    python examples/rl/end_to_end.py runs/quickstart

    rmtrain serve runs/quickstart --port 8000 &
    python examples/rl/end_to_end.py runs/quickstart --server http://127.0.0.1:8000

The policy is a language model of 0.6 million weights that first learns to write reviews, as many kind as unkind ones, and then to write
those that the reward model prefers. Besides the reward, the table has the share of kind reviews, which is what the labels mean: a reward
that rises alone would be a reward that is being exploited.
"""

import argparse
import json
import tempfile
import urllib.request
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
import torch
from datasets import Dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PrinterCallback, Trainer, set_seed
from transformers.utils import logging
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from rmtrain import RewardScorer

DATA = Path(__file__).resolve().parents[2] / "recipes" / "data"
Messages = list[dict[str, str]]
Reward = Callable[..., list[float]]
QUIET = {"report_to": [], "use_cpu": True, "bf16": False, "save_strategy": "no", "disable_tqdm": True, "logging_steps": 10**6}


def read(name: str) -> list[dict[str, str]]:
    """Return rows with `prompt`, `chosen` and `rejected`."""
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def user(prompt: str) -> Messages:
    """Return a conversation that waits for a reply."""
    return [{"role": "user", "content": prompt}]


def reply(text: str) -> Messages:
    """Return the reply to a conversation."""
    return [{"role": "assistant", "content": text}]


def reward_of_server(url: str) -> Reward:
    """Return a reward function for TRL that asks `rmtrain serve`: one request for all completions of a step."""

    def server_reward(prompts: Sequence[Messages], completions: Sequence[Messages], **_: object) -> list[float]:
        query = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
        request = urllib.request.Request(f"{url}/get_reward", json.dumps({"query": query}).encode())
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["rewards"]

    return server_reward


def make_policy(rows: Sequence[dict[str, str]], tokenizer: PreTrainedTokenizerBase, steps: int, folder: str) -> LlamaForCausalLM:
    """Train a tiny language model on both responses of each row, and save it; yours would be a pretrained one."""
    sizes = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 3, "num_attention_heads": 4}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    policy = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=256, **sizes, **ends))
    texts = [{"messages": user(row["prompt"]) + reply(row[side])} for row in rows for side in ("chosen", "rejected")]
    arguments = SFTConfig(folder, max_steps=steps, per_device_train_batch_size=32, learning_rate=3e-3, **QUIET)
    train(SFTTrainer(policy, args=arguments, train_dataset=Dataset.from_list(texts), processing_class=tokenizer))
    policy.save_pretrained(folder)
    return policy


def train(trainer: Trainer) -> None:
    """Train without printing the log."""
    trainer.remove_callback(PrinterCallback)
    trainer.train()


@torch.no_grad()
def sample(policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], count: int) -> list[list[str]]:
    """Return `count` completions of each prompt."""
    tokenizer.padding_side = "left"
    conversations = [user(prompt) for prompt in prompts for _ in range(count)]
    inputs = tokenizer.apply_chat_template(
        conversations, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    ids = policy.eval().generate(**inputs, do_sample=True, max_new_tokens=48)[:, inputs["input_ids"].shape[1] :]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [texts[first : first + count] for first in range(0, len(texts), count)]


def kind_words(rows: Sequence[dict[str, str]]) -> tuple[set[str], set[str]]:
    """Return the words that are in chosen responses alone, and those in rejected ones alone."""
    chosen, rejected = (
        {word for row in rows for word in row[side].replace(".", " ").replace(",", " ").split()}
        for side in ("chosen", "rejected")
    )
    return chosen - rejected, rejected - chosen


def main() -> None:
    """Print mean rewards and shares of kind reviews: of the policy, of the best of n, and of the policy after GRPO."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="run directory, or directory of a reward model")
    parser.add_argument("--server", metavar="URL", help="address of `rmtrain serve`, which then computes all rewards")
    parser.add_argument("--policy-steps", type=int, default=250, help="steps in which the policy learns to write reviews")
    parser.add_argument("--steps", type=int, default=40, help="steps of GRPO")
    parser.add_argument("--prompts", type=int, default=64, help="prompts of the table")
    arguments = parser.parse_args()
    set_seed(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.simplefilter("ignore", FutureWarning)

    reward: Reward = RewardScorer(arguments.model) if arguments.server is None else reward_of_server(arguments.server)
    run = Path(arguments.model)
    tokenizer = AutoTokenizer.from_pretrained(run / "model" if (run / "model").is_dir() else run)
    rows, prompts = read("sentiment_train.jsonl"), [row["prompt"] for row in read("sentiment_test.jsonl")][: arguments.prompts]
    kind, unkind = kind_words(rows)

    def show(name: str, replies: Sequence[Sequence[str]]) -> None:
        """Print a line about the reply with the highest reward to each prompt."""
        best: list[tuple[float, str]] = []
        for prompt, texts in zip(prompts, replies, strict=True):
            rewards = reward(prompts=[user(prompt)] * len(texts), completions=[reply(text) for text in texts])
            best.append(max(zip(rewards, texts, strict=True)))
        words = [set(text.replace(".", " ").replace(",", " ").split()) for _, text in best]
        share = sum(bool(each & kind) and not each & unkind for each in words) / len(words)
        print(
            f"{name:<14} reward {sum(value for value, _ in best) / len(best):+6.2f}   kind {share:4.0%}   {best[0][1]!r}",
            flush=True,
        )

    with tempfile.TemporaryDirectory() as folder:
        policy = make_policy(rows, tokenizer, arguments.policy_steps, folder)
        replies = sample(policy, tokenizer, prompts, 8)
        for count in (1, 2, 4, 8):
            show(f"best of {count}", [texts[:count] for texts in replies])
        settings = GRPOConfig(
            folder,
            max_steps=arguments.steps,
            per_device_train_batch_size=64,
            num_generations=8,
            max_completion_length=48,
            learning_rate=3e-4,
            beta=0.05,  # stay near the policy: without it, texts become what the reward model has never seen
            **QUIET,
        )
        questions = Dataset.from_list([{"prompt": user(row["prompt"])} for row in rows])
        trainer = GRPOTrainer(folder, reward_funcs=[reward], args=settings, train_dataset=questions, processing_class=tokenizer)
        train(trainer)
        show("after GRPO", sample(trainer.model, tokenizer, prompts, 1))


if __name__ == "__main__":
    main()
