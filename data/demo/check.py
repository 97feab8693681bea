"""Check that the demo data is balanced; print each problem, and exit with status 1 if there are any.

python -m data.demo.check
"""

import json
import sys
from collections import Counter
from pathlib import Path

from reward_model.data.pair import check_pair, prompt_key, shared_messages

HERE = Path(__file__).resolve().parent

FILES = {"train": HERE / "train.jsonl", "eval": HERE / "eval.jsonl", "zh": HERE.parent / "demo_zh" / "train.jsonl"}
MIN_PAIRS = {"train": 256, "eval": 64, "zh": 64}


def problems() -> list[str]:
    """Return the problems with the demo data, one sentence each."""
    found, prompts = [], {}
    for name, file in FILES.items():
        lines = file.read_text(encoding="utf-8").splitlines()
        pairs = [json.loads(line) for line in lines]
        prompts[name] = {prompt_key(shared_messages(check_pair(pair))) for pair in pairs}
        if len(pairs) < MIN_PAIRS[name]:
            found.append(f"{file}: {len(pairs)} pairs, fewer than {MIN_PAIRS[name]}.")
        longer = sum(len(pair["chosen"][-1]["content"]) > len(pair["rejected"][-1]["content"]) for pair in pairs)
        if not 0.4 <= longer / len(pairs) <= 0.6:
            found.append(
                f"{file}: chosen is longer in {longer / len(pairs):.0%} of the pairs, so length predicts the label."
            )
        sources = Counter(pair["source"] for pair in pairs)
        if len(sources) < 6 or max(sources.values()) > 2 * min(sources.values()):
            found.append(f"{file}: too few or unbalanced sources: {dict(sources)}.")
    if shared := prompts["train"] & prompts["eval"]:
        found.append(f"{len(shared)} prompts are in both train.jsonl and eval.jsonl.")
    return found


if __name__ == "__main__":
    found = problems()
    for problem in found:
        print(problem)
    sys.exit(bool(found))
