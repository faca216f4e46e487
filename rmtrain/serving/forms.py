"""The forms of requests and answers: ours, OpenRLHF's and slime's `get_reward`, and vLLM's `classify`, which verl asks.

Sources: `openrlhf/cli/serve_rm.py` and `openrlhf/utils/agent.py`, `slime/rollout/rm_hub`, `verl/experimental/reward_loop/reward_loop.py`,
and `vllm/entrypoints/pooling/classify/protocol.py`.
"""

import json
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rmtrain.data.comparison import Comparison, TokenizedComparison
from rmtrain.data.rows.messages import kind_of
from rmtrain.data.rows.readers import Line, Malformed, parse
from rmtrain.errors import DataError
from rmtrain.evaluation.scorer import CONVERSATION, InputRow, RewardScorer, parse_input, turns, variables_of

WHERE = "request"
MOST_CHARACTERS = 64 * 2**20
"""Characters of the prompt times the number of responses: each response is rendered with its prompt."""
Rewards = Sequence[Sequence[float]]
Answer = Callable[[Rewards], Any]
"""Makes the answer, as JSON values, from the rewards of each row."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that was read: the rows to score, and what makes the answer from their rewards."""

    rows: Sequence[TokenizedComparison]
    answer: Answer


class Forms:
    """Reads requests for a model.

    Args:
        scorer: renders and encodes; it is not asked for a reward.
        name: of the model, in answers.
    """

    def __init__(self, scorer: RewardScorer, name: str) -> None:
        self.scorer, self.name = scorer, name
        labels = getattr(scorer.model.backbone.config, "id2label", None) or {}
        self.label = labels.get(0)

    def score(self, body: bytes) -> Asked:
        """Read a line of `rmtrain score`; the answer is `reward`, or `rewards` in the order of `responses`, and `truncated` if it was cut.

        Raises DataError for everything that is wrong with it, as the other forms do.
        """
        line = parse_input(Line(WHERE, body), 1, self.scorer.variables)
        _check_size(line)
        rows, (is_cut,) = self.scorer.encoder.encode_for_scoring([line.request])

        def answer(rewards: Rewards) -> Any:
            (of_row,) = rewards
            found = {"reward": of_row[0]} if line.several is None else {"rewards": list(of_row)}
            return {**found, "truncated": True} if is_cut else found

        return Asked(rows, answer)

    def get_reward(self, body: bytes) -> Asked:
        """Read OpenRLHF's form, whose `query` is a list of texts that are rendered already, or of conversations; or slime's.

        A text is a prompt with its response, as a policy writes them; other keys, such as `prompts` and `labels`, are ignored. slime sends
        one `prompt`, which is such a text or messages, and one `response`; its answer is the reward itself.
        """
        row = _parse(body)
        if "query" in row:
            rows = self._encode(_items(row["query"], "query"), "query")
            return Asked(rows, _openrlhf)
        if "prompt" not in row or not isinstance(row.get("response"), str):
            raise DataError(f"{WHERE}: expected query, a list of texts; or prompt and response; it has: {_keys(row)}")
        prompt, response = row["prompt"], row["response"]
        whole = prompt + response if isinstance(prompt, str) else [*_items(prompt, "prompt"), _reply(response)]
        return Asked(self._encode([whole], "prompt"), lambda rewards: rewards[0][0])

    def classify(self, body: bytes) -> Asked:
        """Read vLLM's form: `input`, a text that is rendered already, or several; or `messages`. `probs` has the raw reward."""
        row = _parse(body)
        if CONVERSATION in row:
            values = variables_of(row.get("tools"), row.get("chat_template_kwargs"), WHERE)
            request = self._conversation(row[CONVERSATION], f"{WHERE}: {CONVERSATION}", values)
            rows: Sequence[TokenizedComparison] = self.scorer.encoder.encode_for_scoring([request])[0]
        else:
            given = row.get("input")
            rows = self._encode([given] if isinstance(given, str) else _texts(given), "input")
        tokens = sum(len(row.sequences[0]) for row in rows)

        def answer(rewards: Rewards) -> Any:
            data = [
                {"index": index, "label": self.label, "probs": list(of_row), "num_classes": 1}
                for index, of_row in enumerate(rewards)
            ]
            usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, "prompt_tokens_details": None}
            about = {"id": f"classify-{uuid.uuid4().hex}", "object": "list", "created": int(time.time()), "model": self.name}
            return {**about, "data": data, "usage": usage}

        return Asked(rows, answer)

    def _encode(self, items: Sequence[Any], name: str) -> Sequence[TokenizedComparison]:
        """Return a row with one response for each item, which is a rendered text or messages, in their order."""
        places = [f"{WHERE}: {name}[{number}]" for number in range(len(items))]
        texts = [number for number, item in enumerate(items) if isinstance(item, str)]
        others = [number for number, item in enumerate(items) if not isinstance(item, str)]
        requests = [self._conversation(items[number], places[number]) for number in others]
        encoder = self.scorer.encoder
        rendered, _ = encoder.encode_texts_for_scoring([items[number] for number in texts], [places[number] for number in texts])
        conversations, _ = encoder.encode_for_scoring(requests)
        rows = dict(zip([*texts, *others], [*rendered, *conversations], strict=True))
        return [rows[number] for number in range(len(items))]

    def _conversation(self, messages: Any, place: str, variables: dict[str, Any] | None = None) -> Comparison:
        checked = turns(messages, place, "user", ends_with_reply=True)
        return Comparison(place, "", checked[:-1], (checked[-1:],), (), variables=variables or {})


def _openrlhf(rewards: Rewards) -> Any:
    flat = [of_row[0] for of_row in rewards]
    return {"rewards": flat, "scores": flat, "extra_logs": {}}


def _parse(body: bytes) -> dict[str, Any]:
    row = parse(Line(WHERE, body))
    if isinstance(row, Malformed):
        raise DataError(row.detail)
    return row


def _items(value: Any, name: str) -> list[Any]:
    """Return a list, or raise DataError, naming the key."""
    if not isinstance(value, list):
        raise DataError(f"{WHERE}: {name} is {kind_of(value)}; expected a list")
    return value


def _texts(value: Any) -> list[str]:
    for number, item in enumerate(_items(value, "input")):
        if not isinstance(item, str):
            raise DataError(f"{WHERE}: input[{number}] is {kind_of(item)}; expected a text, as the chat template renders it")
    return list(value)


def _reply(response: str) -> dict[str, str]:
    return {"role": "assistant", "content": response}


def _keys(row: dict[str, Any]) -> str:
    return ", ".join(map(str, row)) or "nothing"


def _check_size(line: InputRow) -> None:
    """Raise DataError where rendering all responses with a long prompt would take too much memory."""
    request = line.request
    prompt = len(json.dumps([request.prompt, dict(request.variables)], default=str))
    if prompt * len(request.responses) > MOST_CHARACTERS:
        problem = f"{len(request.responses):,} responses to a prompt of {prompt:,} characters"
        raise DataError(f"{WHERE}: {problem}; send them in several requests")
