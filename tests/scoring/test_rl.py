"""The reward in reinforcement learning: requests of other trainers return the scores of the server."""

import re
import threading
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


def test_the_remote_reward_of_openrlhf(runs) -> None:
    """The script of docs/serving.md, with a request of OpenRLHF."""
    (script,) = re.findall(r"```py\n(import json\n.*?)\nserver\.serve_forever\(\)\n```", DOCS, re.S)
    script = script.replace("http://127.0.0.1:5001", runs["usual template"].url).replace("5002", "0")
    scope: dict[str, Any] = {}
    exec(script, scope)
    threading.Thread(target=scope["server"].serve_forever, daemon=True).start()
    request = {"prompts": ["Hi?", "2 + 2?"], "query": ["Hi?Hello.<|im_end|>", "2 + 2?Four."], "labels": [None, None]}
    answer = requests.post(f"http://127.0.0.1:{scope['server'].server_port}", json=request, timeout=60).json()
    scope["server"].shutdown()
    both = [conversation("Hi?", "Hello."), conversation("2 + 2?", "Four.")]
    scores = client.RewardClient(runs["usual template"].url).score_many(both)
    assert answer["rewards"] == answer["scores"] == pytest.approx(scores, abs=1e-4)
    assert answer["extra_logs"].keys() == {"score"}
