"""Rows in the shape of each dataset of docs/DATASETS.md, written for the tests, and their comparisons."""

from typing import Any, NamedTuple

from rmtrain.data.comparison import Message


class Compared(NamedTuple):
    """A comparison in short: `u: ` and so on before the text of a turn, the turns of a response joined by ` / `."""

    prompt: str
    responses: list[str]
    edges: list[tuple[int, ...] | tuple[int, int, float]]


class Rows(NamedTuple):
    """Rows of a dataset, and the result of each: a comparison, or the reason why it is dropped."""

    rows: list[dict[str, Any]]
    expected: list[Compared | str]


def u(text: str) -> Message:
    return {"role": "user", "content": text}


def a(text: str) -> Message:
    return {"content": text, "role": "assistant"}


def s(text: str) -> Message:
    return {"role": "system", "content": text}


def pair(prompt: str = "u: q", chosen: str = "good", rejected: str = "bad", margin: float | None = None) -> Compared:
    return Compared(prompt, [chosen, rejected], [(0, 1)] if margin is None else [(0, 1, margin)])


TRL_STYLE = Rows(
    [
        {"prompt": "q", "chosen": [u("q"), a("good")], "rejected": [u("q"), a("bad")]},
        {"prompt": "q", "chosen": [u("q"), a("x"), u("r"), a("good")], "rejected": [u("q"), a("x"), u("r"), a("bad")]},
    ],
    [pair(), pair("u: q / a: x / u: r")],
)
PLAIN = Rows(
    [{"prompt": "q", "chosen": "good", "rejected": "bad"}, {"prompt": "q", "chosen": "", "rejected": "bad"}],
    [pair(), "empty_response"],
)
ULTRAFEEDBACK = Rows(
    [
        {
            "prompt": "q",
            "prompt_id": "7f",
            "messages": [u("q"), a("good")],
            "score_chosen": 8.5,
            "score_rejected": 6.0,
            "chosen": [u("q"), a("good")],
            "rejected": [u("q"), a("bad")],
        },
        {
            "prompt": "q",
            "chosen": [u("q"), a("same")],
            "rejected": [u("q"), a("same")],
            "score_chosen": 5.0,
            "score_rejected": 5.0,
        },
    ],
    [pair(margin=2.5), "identical"],
)
WHOLE = Rows(
    [
        {"chosen": [u("q"), a("good")], "rejected": [u("q"), a("bad")], "source": "magpie"},
        {"chosen": [u("q"), a("x"), u("r"), a("good")], "rejected": [u("q"), a("y"), u("r"), a("bad")], "source": "magpie"},
        {"chosen": [u("q"), a("good")], "rejected": [u("other"), a("bad")], "source": "offset"},
    ],
    [pair(), Compared("u: q", ["a: x / u: r / a: good", "a: y / u: r / a: bad"], [(0, 1)]), "different_prompts"],
)
TULU = Rows(
    [
        {
            "id": "1",
            "source": "wildchat",
            "prompt": "r",
            "chosen": [u("q"), a("x"), u("r"), a("good")],
            "rejected": [u("q"), a("x"), u("r"), a("bad")],
        }
    ],
    [pair("u: q / a: x / u: r")],
)
SHP = Rows(
    [
        {
            "post_id": "p1",
            "domain": "askbaking",
            "history": "q",
            "human_ref_A": "bad",
            "human_ref_B": "good",
            "labels": 0,
            "score_ratio": 3.0,
        },
        {
            "post_id": "p1",
            "domain": "askbaking",
            "history": "q",
            "human_ref_A": "good",
            "human_ref_B": "so so",
            "labels": 1,
            "score_ratio": 2.0,
        },
        {
            "post_id": "p1",
            "domain": "askbaking",
            "history": "q",
            "human_ref_A": "a",
            "human_ref_B": "b",
            "labels": 1,
            "score_ratio": 1.9,
        },
        *(
            {"post_id": "p1", "history": "q", "human_ref_A": f"good {n}", "human_ref_B": "bad", "labels": 1, "score_ratio": 9.0}
            for n in range(4)
        ),
    ],
    [pair(), pair(rejected="so so"), "filtered", *(pair(chosen=f"good {n}") for n in range(3)), "capped"],
)
ARENA_TALKS = {
    "conversation_a": [u("q"), a("x"), u("r"), a("one")],
    "conversation_b": [u("q"), a("y"), u("r"), a("two")],
    "model_a": "m1",
    "model_b": "m2",
}
ARENA_SIDES = ["a: x / u: r / a: one", "a: y / u: r / a: two"]


def arena(both_bad: str) -> Rows:
    winners = ["model_a", "model_b", "tie", both_bad]
    sides = [ARENA_SIDES, ARENA_SIDES[::-1]]
    rows = [ARENA_TALKS | {"winner": winner} for winner in winners]
    return Rows(rows, [*(Compared("u: q", list(both), [(0, 1)]) for both in sides), "tie", "tie"])


def parts(text: str, **more: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text, **more}]


def with_parts(rows: Rows) -> Rows:
    """The same talks, contents as lists of parts; the last row has a picture."""
    talks = [
        {
            key: [m | {"content": parts(m["content"])} for m in cell] if isinstance(cell, list) else cell
            for key, cell in row.items()
        }
        for row in rows.rows
    ]
    picture = {"role": "user", "content": [*parts("see"), {"type": "image", "image": "x.png"}]}
    talks.append(talks[0] | {"conversation_a": [picture, a("one")], "conversation_b": [picture, a("two")]})
    return Rows(talks, [*rows.expected, "not_text"])


def safe(better: int, safer: int) -> dict[str, Any]:
    return {
        "prompt": "q",
        "response_0": "zero",
        "response_1": "one",
        "better_response_id": better,
        "safer_response_id": safer,
        "is_response_0_safe": True,
        "is_response_1_safe": False,
        "response_0_severity_level": 0,
    }


def helpsteer(prompt: str, response: str, *values: int) -> dict[str, Any]:
    return {"prompt": prompt, "response": response} | dict(
        zip(["helpfulness", "correctness", "coherence", "complexity", "verbosity"], values, strict=True)
    )


def rated(response: str, *ratings: str, **more: Any) -> dict[str, Any]:
    names = ["instruction_following", "truthfulness", "honesty", "helpfulness"]
    marks = {name: {"Rating": rating, "Rationale": "so"} for name, rating in zip(names, ratings, strict=True)}
    return {"model": "m", "response": response, "annotations": marks, "overall_score": 10.0, "fine-grained_score": 1.0, **more}


CATALOGUE = {
    "trl-internal-testing/sentiment-trl-style": TRL_STYLE,
    "trl-internal-testing/descriptiveness-trl-style": TRL_STYLE,
    "trl-internal-testing/tldr-preference-trl-style": TRL_STYLE,
    "trl-internal-testing/hh-rlhf-trl-style": TRL_STYLE,
    "HuggingFaceH4/ultrafeedback_binarized": ULTRAFEEDBACK,
    "Anthropic/hh-rlhf": Rows(
        [
            {"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"},
            {
                "chosen": "\n\nHuman: q\n\nAssistant: x\n\nHuman: r\n\nAssistant: good",
                "rejected": "\n\nHuman: q\n\nAssistant: x\n\nHuman: r\n\nAssistant: bad",
            },
            {"chosen": "\n\nHuman: q\n\nAssistant:", "rejected": "\n\nHuman: q\n\nAssistant: bad"},
            {
                "chosen": "\n\nHuman: q\n\nAssistant: x\n\nHuman: r\n\nAssistant: good",
                "rejected": "\n\nHuman: q\n\nAssistant: y\n\nHuman: r\n\nAssistant: bad",
            },
        ],
        [pair(), pair("u: q / a: x / u: r"), "empty_response", "different_prompts"],
    ),
    "trl-lib/ultrafeedback_binarized": Rows(
        [
            {"chosen": [a("good")], "rejected": [u("q"), a("bad")], "score_chosen": 8.0, "score_rejected": 7.5},
            {"chosen": [u("q"), a("good")], "rejected": [u("q"), a("bad")], "score_chosen": 8.0, "score_rejected": 7.5},
        ],
        ["different_prompts", pair(margin=0.5)],
    ),
    "trl-lib/hh-rlhf-helpful-base": Rows(
        [{"prompt": [u("q"), a("x"), u("r")], "chosen": [a("good")], "rejected": [a("bad")]}], [pair("u: q / a: x / u: r")]
    ),
    "trl-lib/tldr-preference": PLAIN,
    "trl-lib/lm-human-preferences-sentiment": PLAIN,
    "trl-lib/lm-human-preferences-descriptiveness": Rows(
        [{"prompt": [u("q")], "chosen": [a("good")], "rejected": [a("bad")]}, *PLAIN.rows], [pair(), *PLAIN.expected]
    ),
    "zen-standard": Rows(
        [{"prompt": "Beautiful is better than", "chosen": " ugly.", "rejected": " the moon."}],
        [pair("u: Beautiful is better than", " ugly.", " the moon.")],
    ),
    "zen-conversational": Rows([{"prompt": [u("q")], "chosen": [a("good")], "rejected": [a("bad")]}], [pair()]),
    "zen-implicit": Rows([{"chosen": [u("q"), a("good")], "rejected": [u("q"), a("bad")]}], [pair()]),
    "trl-internal-testing/hh-rlhf-helpful-base-trl-style": TRL_STYLE,
    "allenai/ultrafeedback_binarized_cleaned": ULTRAFEEDBACK,
    "Skywork/Skywork-Reward-Preference-80K-v0.2": WHOLE,
    "Skywork/Skywork-Reward-Preference-80K-v0.1": WHOLE,
    "allenai/llama-3.1-tulu-3-8b-preference-mixture": TULU,
    "allenai/llama-3.1-tulu-3-70b-preference-mixture": TULU,
    "allenai/tulu-2.5-preference-data": WHOLE,
    "hendrydong/preference_700K": WHOLE,
    "RLHFlow/UltraFeedback-preference-standard": Rows(
        [row | {"chosen_score": score, "rejected_score": 1.0} for row, score in zip(WHOLE.rows[:2], [4.0, None], strict=True)],
        [pair(margin=3.0), WHOLE.expected[1]],
    ),
    "Intel/orca_dpo_pairs": Rows(
        [{"system": text, "question": "q", "chosen": "good", "rejected": "bad"} for text in ("Be brief.", "")],
        [pair("s: Be brief. / u: q"), pair()],
    ),
    "argilla/distilabel-intel-orca-dpo-pairs": Rows(
        [
            {
                "system": "",
                "input": "q",
                "chosen": "good",
                "rejected": "bad",
                "status": status,
                "chosen_score": score,
                "rating": [score, 1],
            }
            for status, score in (("unchanged", 9), ("tie", 9), ("swapped", 7), ("swapped", 8), ("tie", None))
        ],
        [pair(), "filtered", "filtered", pair(), "filtered"],
    ),
    "argilla/dpo-mix-7k": Rows(
        [
            WHOLE.rows[0] | {"chosen_rating": 5.0, "rejected_rating": 3.5},
            WHOLE.rows[0] | {"chosen_rating": None, "rejected_rating": None},
        ],
        [pair(margin=1.5), pair()],
    ),
    "argilla/ultrafeedback-binarized-preferences": Rows(
        [{"instruction": "q", "chosen_response": "good", "rejected_response": "bad", "chosen_avg_rating": 5.0}], [pair()]
    ),
    "argilla/ultrafeedback-binarized-preferences-cleaned": Rows(
        [ULTRAFEEDBACK.rows[0] | {"chosen-rating": 4.75, "rejected-rating": 2.0}], [pair(margin=2.75)]
    ),
    "lvwerra/stack-exchange-paired": Rows(
        [{"qid": 4, "question": "q", "response_j": f"good {n}", "response_k": "bad", "metadata": ["x"]} for n in range(11)],
        [*(pair(chosen=f"good {n}") for n in range(10)), "capped"],
    ),
    "Dahoas/synthetic-instruct-gptj-pairwise": PLAIN,
    "dpo_alpaca.json": Rows(
        [{"instruction": "q", "input": text, "chosen": "good", "rejected": "bad"} for text in ("with this", "")],
        [pair("u: q\nwith this"), pair()],
    ),
    "dpo_sharegpt.json": Rows(
        [
            {
                "conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "q"}],
                "chosen": {"from": "gpt", "value": "good"},
                "rejected": {"from": "gpt", "value": "bad"},
            }
        ],
        [pair("s: Be brief. / u: q")],
    ),
    "dpo_v1.jsonl": Rows(
        [
            {
                f"{side}_messages": [
                    {"role": role, "content": [{"type": "text", "value": text}], "loss_weight": 0.0}
                    for role, text in (("user", "q"), ("assistant", reply))
                ]
                for side, reply in (("chosen", "good"), ("rejected", "bad"))
            }
        ],
        [pair()],
    ),
    "rm_swift.jsonl": Rows(
        [
            {"messages": [u("q"), a("good")], "rejected_response": "bad"},
            {"messages": [u("q"), a("x"), u("r"), a("good")], "rejected_response": "bad"},
        ],
        [pair(), pair("u: q / a: x / u: r")],
    ),
    "nvidia/HelpSteer3": Rows(
        [
            {
                "domain": "general",
                "language": "english",
                "context": [u("q")],
                "response1": "one",
                "response2": "two",
                "overall_preference": n,
            }
            for n in (-3, 2, 0)
        ],
        [pair(chosen="one", rejected="two", margin=3.0), pair(chosen="two", rejected="one", margin=2.0), "tie"],
    ),
    "helpsteer2-preference": Rows(
        [
            {
                "split": split,
                "prompt": "q",
                "response_1": "one",
                "response_2": "two",
                "preference_strength": n,
                "preference_statement": "x",
            }
            for split, n in (("train", -2), ("train", 1), ("validation", 3), ("train", 0))
        ],
        [pair(chosen="one", rejected="two"), pair(chosen="two", rejected="one"), "filtered", "tie"],
    ),
    "stanfordnlp/SHP": SHP,
    "stanfordnlp/SHP-2": SHP,
    "saferlhf-helpful": Rows(
        [safe(0, 1), safe(1, 0)], [pair(chosen="zero", rejected="one"), pair(chosen="one", rejected="zero")]
    ),
    "saferlhf-safe": Rows([safe(0, 1), safe(1, 0)], [pair(chosen="one", rejected="zero"), pair(chosen="zero", rejected="one")]),
    "lmarena-ai/arena-human-preference-55k": Rows(
        [
            {
                "id": 30192,
                "model_a": "m1",
                "model_b": "m2",
                "prompt": '["q", "r"]',
                "response_a": '["x", "one"]',
                "response_b": '["y", "two"]',
                "winner_model_a": hot[0],
                "winner_model_b": hot[1],
                "winner_tie": hot[2],
            }
            for hot in ((1, 0, 0), (0, 1, 0), (0, 0, 1))
        ]
        + [
            {
                "prompt": '["q"]',
                "response_a": '["one \\u00e9"]',
                "response_b": reply,
                "winner_model_a": "1",
                "winner_model_b": "0",
                "winner_tie": "0",
            }
            for reply in ('["two"]', "[null]", '["\\ud83d"]')
        ],
        [
            Compared("u: q", list(ARENA_SIDES), [(0, 1)]),
            Compared("u: q", ARENA_SIDES[::-1], [(0, 1)]),
            "tie",
            pair(chosen="one é", rejected="two"),
            "empty_message",
            "not_json",
        ],
    ),
    "lmarena-ai/arena-human-preference-100k": arena("tie (bothbad)"),
    "lmarena-ai/arena-human-preference-140k": with_parts(arena("both_bad")),
    "lmsys/chatbot_arena_conversations": arena("tie (bothbad)"),
    "openai/webgpt_comparisons": Rows(
        [
            {
                "question": {"dataset": "eli5", "full_text": "q"},
                "answer_0": "zero",
                "answer_1": "one",
                "score_0": n,
                "score_1": -n,
            }
            for n in (1.0, -0.5, 0.0)
        ],
        [pair(chosen="zero", rejected="one"), pair(chosen="one", rejected="zero"), "tie"],
    ),
    "openai/summarize_from_feedback": Rows(
        [
            {
                "info": {"post": post, "title": "t"},
                "summaries": [{"text": "zero", "policy": "p"}, {"text": "one"}],
                "choice": choice,
            }
            for post, choice in (("q", 0), ("q", 1), (None, 0))
        ],
        [pair(chosen="zero", rejected="one"), pair(chosen="one", rejected="zero"), "empty_prompt"],
    ),
    "nvidia/HelpSteer2": Rows(
        [
            helpsteer("q", "bad", 3, 3, 3, 1, 2),
            helpsteer("q", "good", 4, 4, 4, 2, 2),
            helpsteer("r", "one", 2, 2, 2, 2, 2),
            helpsteer("r", "two", 2, 2, 2, 2, 2),
            helpsteer("t", "verbose", 3, 3, 3, 1, 4),
            helpsteer("t", "good", 3, 3, 3, 1, 1),
        ],
        [pair(), "tie", "tie", Compared("u: t", ["good", "verbose"], [(0, 1)])],
    ),
    "berkeley-nest/Nectar": Rows(
        [
            {
                "prompt": "\n\nHuman: q\n\nAssistant: x\n\nHuman: r\n\nAssistant: ",
                "good_natured": True,
                "answers": [{"answer": f"answer {rank}", "model": "m", "rank": float(rank)} for rank in (2, 1, 3)],
            }
        ],
        [Compared("u: q / a: x / u: r", ["answer 1", "answer 2", "answer 3"], [(0, 1), (0, 2), (1, 2)])],
    ),
    "openbmb/UltraFeedback": Rows(
        [
            {
                "source": "evol",
                "instruction": "q",
                "models": ["m"] * 4,
                "completions": [
                    rated("3.25", "3", "3", "3", "4"),
                    rated("no number", "5", "5", "N/A", "5"),
                    rated("5", "5", "5", "5", "5"),
                    rated("3", "3", "3", "3", "3"),
                ],
            },
            {"instruction": "q", "completions": [rated("one", "3", "3", "3", "3"), rated("two", "3", "3", "3", "4")]},
        ],
        [Compared("u: q", ["5", "3.25", "3"], [(0, 1), (0, 2)]), "below_min_gap"],
    ),
    "allenai/reward-bench": Rows(
        [{"id": 1, "prompt": "q", "chosen": "good", "rejected": "bad", "chosen_model": "m", "subset": "donotanswer"}], [pair()]
    ),
    "allenai/reward-bench-2": Rows(
        [
            {"id": "1", "prompt": "q", "chosen": ["good"], "rejected": ["b", "c", "d"], "subset": "Math", "num_correct": 1},
            {"id": "2", "prompt": "q", "chosen": ["red", "blue"], "rejected": ["noon"], "subset": "Ties"},
        ],
        [Compared("u: q", ["good", "b", "c", "d"], [(0, 1), (0, 2), (0, 3)]), "filtered"],
    ),
    "THU-KEG/RM-Bench": Rows(
        [{"id": 1, "prompt": "q", "chosen": ["c1", "c2", "c3"], "rejected": ["r1", "r2", "r3"], "domain": "chat"}],
        [Compared("u: q", ["c1", "c2", "c3", "r1", "r2", "r3"], [(one, other) for one in (0, 1, 2) for other in (3, 4, 5)])],
    ),
    "llmbar_natural.json": Rows(
        [{"input": "q", "output_1": "one", "output_2": "two", "label": label} for label in (1, 2)],
        [pair(chosen="one", rejected="two"), pair(chosen="two", rejected="one")],
    ),
    "pandalm_test.json": Rows(
        [
            {"instruction": "q", "input": text, "response1": "one", "response2": "two"}
            | {f"annotator{n + 1}": vote for n, vote in enumerate(votes)}
            for text, votes in (("x", (1, 1, 2)), ("", (2, 2, 2)), ("", (1, 2, 0)), ("", (0, 0, 1)))
        ],
        [pair("u: q\nx", "one", "two"), pair(chosen="two", rejected="one"), "tie", "tie"],
    ),
}
REFUSED = {
    "trl-lib/ultrafeedback-gpt-3.5-turbo-helpfulness": [{"prompt": "q", "completion": "a", "label": True}],
    "trl-lib/kto-mix-14k": [{"prompt": [u("q")], "completion": [a("a")], "label": False}],
    "trl-lib/rlaif-v": [
        {
            "images": [{"path": "x.png"}],
            "prompt": [{"role": "user", "content": [{"type": "image"}, *parts("q")]}],
            "chosen": [{"role": "assistant", "content": parts("good")}],
            "rejected": [{"role": "assistant", "content": parts("bad")}],
        }
    ]
    * 1000,
}
