"""Generate preference pairs with random words, and with lengths distributed as in real data."""

from itertools import combinations

import numpy as np

WORDS = "the of to and a in is it you that he was for on are with as his they at be this from have or".split()


def random_text(random: np.random.Generator, words: float) -> str:
    return " ".join(random.choice(WORDS, max(1, int(words))))


def dialogues(number: int) -> list[dict]:
    """Return pairs of multi-turn conversations that share about 150 tokens and differ in the last response."""
    random = np.random.default_rng(0)
    pairs = []
    for _ in range(number):
        turns = 1 + 2 * random.geometric(0.35)
        history = [
            {"role": ("user", "assistant")[turn % 2], "content": random_text(random, random.lognormal(2.3, 1.1))}
            for turn in range(turns)
        ]
        chosen, rejected = (
            {"role": "assistant", "content": random_text(random, random.lognormal(3.4, 1.0))} for _ in range(2)
        )
        pairs.append({"chosen": [*history, chosen], "rejected": [*history, rejected]})
    return pairs


def lists(number: int, responses: int) -> list[dict]:
    """Return all pairs of several responses to each prompt, prompt by prompt.

    Lengths are distributed around the means in UltraFeedback (Cui et al. 2023, arXiv:2310.01377, Table 1: 185 tokens
    for a prompt, 305 for a response).
    """
    random = np.random.default_rng(0)

    def message(role: str, mean: float, spread: float) -> dict:
        tokens = random.lognormal(np.log(mean) - spread**2 / 2, spread)
        return {"role": role, "content": random_text(random, tokens)}

    pairs: list[dict] = []
    while len(pairs) < number:
        prompt = message("user", 185, 1.0)
        answers = [message("assistant", 305, 0.6) for _ in range(responses)]
        pairs += [{"chosen": [prompt, a], "rejected": [prompt, b]} for a, b in combinations(answers, 2)]
    return pairs[:number]
