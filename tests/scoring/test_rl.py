"""The reward in reinforcement learning: requests of other trainers return the scores of the server."""

import asyncio
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from helpers import PAIRS, ROOT, conversation

import client
from reward_model.model.tokenization import load_tokenizer, render

DOCS = (ROOT / "docs/serving.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_grpo_of_trl(runs, base_model, tmp_path) -> None:
    """Two steps on a tiny policy: the rewards that trl logs are the scores of its completions."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    judge, seen = client.RewardClient(runs["usual template"].url), []

    def reward(**columns: Any) -> list[float | None]:
        seen.append(
            [prompt + answer for prompt, answer in zip(columns["prompts"], columns["completions"], strict=True)]
        )
        return judge.reward(**columns)

    prompts = [pair["chosen"][:1] for pair in PAIRS[:8]]
    arguments = {"max_steps": 2, "num_generations": 4, "per_device_train_batch_size": 4, "max_completion_length": 12}
    quiet = {"logging_steps": 1, "report_to": "none", "save_strategy": "no", "bf16": False, "use_cpu": True}
    trainer = GRPOTrainer(
        model=str(base_model),
        reward_funcs=reward,
        args=GRPOConfig(output_dir=str(tmp_path), **arguments, **quiet),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
    )
    trainer.train()
    logged = [log["rewards/reward/mean"] for log in trainer.state.log_history if "rewards/reward/mean" in log]
    assert len(logged) == len(seen) == 2
    for mean, conversations in zip(logged, seen, strict=True):
        scores = judge.score_many(conversations)
        assert mean == pytest.approx(sum(scores) / 4, abs=1e-4) and max(scores) - min(scores) > 1e-3


def test_classify_as_verl_posts_it(runs) -> None:
    """The rendered text gives the same score, in `probs`."""
    one = runs["usual template"]
    tokenizer = load_tokenizer(str(one.model))
    for pair in PAIRS[:3]:
        text = render(pair["chosen"], tokenizer)
        body = {"model": "base_reward", "input": text, "use_activation": False, "add_special_tokens": False}
        (value,) = requests.post(f"{one.url}/classify", json=body, timeout=60).json()["data"][0]["probs"]
        assert value == pytest.approx(client.score(pair["chosen"], one.url), abs=1e-4)


@pytest.fixture
def snippet(runs) -> Callable[[str], Any]:
    """Return a function that finds a function in the code blocks of docs/serving.md, with the address of a server."""

    def find(name: str) -> Any:
        (code,) = (block for block in re.findall(r"```py\n(.*?)```", DOCS, re.S) if f"def {name}(" in block)
        scope: dict[str, Any] = {}
        exec(code.replace("http://127.0.0.1:5001", runs["usual template"].url), scope)
        return scope[name]

    return find


def test_reward_functions_for_other_trainers(runs, snippet) -> None:
    """With the arguments of OpenRLHF, verl and slime."""
    questions, answers, ends = ["Hi?", "2 + 2?"], ["Hello.", "Four."], ["<|im_end|>", ""]
    expected = client.RewardClient(runs["usual template"].url).score_many(map(conversation, questions, answers))

    queries = [
        f"<rendered {question}>{answer}{end}" for question, answer, end in zip(questions, answers, ends, strict=True)
    ]
    rewards = snippet("reward_func")(queries, [f"<rendered {question}>" for question in questions], questions)
    assert rewards["rewards"].tolist() == rewards["scores"].tolist() == pytest.approx(expected, abs=1e-4)

    verl = [snippet("compute_score")("math", answers[n], None, {"question": questions[n]}) for n in range(2)]
    assert verl == pytest.approx(expected, abs=1e-4)

    for question, answer, end, score in zip(questions, answers, ends, expected, strict=True):
        metadata = {"messages": [{"role": "user", "content": question}]}
        sample = SimpleNamespace(prompt="rendered", response=answer + end, metadata=metadata)
        assert asyncio.run(snippet("reward")(None, sample)) == pytest.approx(score, abs=1e-4)
