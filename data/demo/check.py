"""Check the properties that the demo data promises; exits with 1 and says which fails.

python -m data.demo.check
"""

import json
import sys
from collections import Counter
from pathlib import Path

from reward_model.data.pair import check_pair, prompt_key, shared_messages

HERE = Path(__file__).resolve().parent

FILES = {"train": HERE / "train.jsonl", "eval": HERE / "eval.jsonl", "zh": HERE.parent / "demo_zh" / "train.jsonl"}
LEAST = {"train": 256, "eval": 64, "zh": 64}


def problems() -> list[str]:
    """What is wrong, one sentence each."""
    found, prompts = [], {}
    for name, file in FILES.items():
        lines = file.read_text(encoding="utf-8").splitlines()
        pairs = [json.loads(line) for line in lines]
        prompts[name] = {prompt_key(shared_messages(check_pair(pair))) for pair in pairs}
        if len(pairs) < LEAST[name]:
            found.append(f"{file}: {len(pairs)} pairs, fewer than {LEAST[name]}.")
        longer = sum(len(pair["chosen"][-1]["content"]) > len(pair["rejected"][-1]["content"]) for pair in pairs)
        if not 0.4 <= longer / len(pairs) <= 0.6:
            found.append(f"{file}: in {longer / len(pairs):.0%} of the pairs chosen is longer, a give-away.")
        sources = Counter(pair["source"] for pair in pairs)
        if len(sources) < 6 or max(sources.values()) > 2 * min(sources.values()):
            found.append(f"{file}: too few or uneven categories: {dict(sources)}.")
    if shared := prompts["train"] & prompts["eval"]:
        found.append(f"{len(shared)} prompts stand in both train.jsonl and eval.jsonl.")
    return found


if __name__ == "__main__":
    for problem in (wrong := problems()):
        print(problem)
    sys.exit(bool(wrong))
