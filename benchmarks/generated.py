"""Pairs of words drawn at random, with lengths like those of real data."""

from itertools import combinations

import numpy as np

WORDS = "the of to and a in is it you that he was for on are with as his they at be this from have or".split()


def dialogues(number: int) -> list[dict]:
    """Pairs that share a few turns and differ in the last answer; lengths vary as those of real dialogues do."""
    random = np.random.default_rng(0)

    def text(tokens: float) -> str:
        return " ".join(random.choice(WORDS, max(1, int(tokens))))

    pairs = []
    for _ in range(number):
        turns = 1 + 2 * random.geometric(0.35)
        history = [
            {"role": ("user", "assistant")[turn % 2], "content": text(random.lognormal(2.3, 1.1))}
            for turn in range(turns)
        ]
        answers = [{"role": "assistant", "content": text(random.lognormal(3.4, 1.0))} for _ in range(2)]
        pairs.append({"chosen": [*history, answers[0]], "rejected": [*history, answers[1]]})
    return pairs


def lists(number: int, answers: int) -> list[dict]:
    """All pairs of each prompt's answers, prompt by prompt; lengths spread around UltraFeedback's means."""
    random = np.random.default_rng(0)

    def message(role: str, mean: float, spread: float) -> dict:
        tokens = random.lognormal(np.log(mean) - spread**2 / 2, spread)
        return {"role": role, "content": " ".join(random.choice(WORDS, max(1, int(tokens))))}

    pairs: list[dict] = []
    while len(pairs) < number:
        prompt = message("user", 185, 1.0)
        all_answers = [message("assistant", 305, 0.6) for _ in range(answers)]
        pairs += [{"chosen": [prompt, a], "rejected": [prompt, b]} for a, b in combinations(all_answers, 2)]
    return pairs[:number]
