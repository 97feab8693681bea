"""Per-pair metadata, kept without the text: hashes, lengths and flags, one row of a FACTS array for each pair."""

import json
from collections.abc import Callable, Iterable

import numpy as np
from xxhash import xxh3_64_intdigest

from reward_model.data.pair import SIDES, Messages, Pair, message_text, prompt_key, shared_messages

MARKDOWN_STARTS = ("- ", "* ", "• ", "#", "```", "| ", *(f"{number}. " for number in range(1, 10)))
REFUSALS = (
    *("i can't", "i cannot", "i can not", "i won't", "i'm sorry", "i am sorry", "i'm unable", "i am unable"),
    *("as an ai", "i apologize", "not able to help", "抱歉", "对不起", "无法", "作为一个人工智能", "作为ai"),
)

# `part` and `file` are the indices of the pair's source and file. `prompt` is the length of what both sides share,
# `chosen` and `rejected` are the lengths of the rest of each side, in characters; the lengths in tokens are 0 without a
# tokenizer. `unfinished`: the answer ends in the middle of a word.
SIDE_FACTS = (("markdown", "u2"), ("refuses", "?"), ("unfinished", "?"))
FACTS = np.dtype(
    [("part", "u2"), ("file", "u2"), ("row", "u4"), ("source", "u2"), ("prompt_hash", "u8"), ("chosen_hash", "u8")]
    + [("rejected_hash", "u8"), ("prompt", "u4"), ("chosen", "u4"), ("rejected", "u4"), ("prompt_tokens", "u4")]
    + [("chosen_tokens", "u4"), ("rejected_tokens", "u4"), ("turns", "u2"), ("has_margin", "?")]
    + [(f"{side}_{fact}", kind) for side in SIDES for fact, kind in SIDE_FACTS]
)


def pair_facts(pair: Pair, token_lengths: Callable[[Pair], tuple[int, int, int]] | None = None) -> tuple:
    """Return the FACTS of a validated pair, starting with `prompt_hash`.

    Args:
        pair: The pair.
        token_lengths: Returns the lengths of the prompt, chosen and rejected in tokens (see `model.token_lengths`).
    """
    shared = shared_messages(pair)
    prompt, *answers = (_text(messages) for messages in (shared, *(pair[side][len(shared) :] for side in SIDES)))
    # The same answers with different tools make a different pair.
    tools = json.dumps(pair["tools"], sort_keys=True, default=str) if "tools" in pair else ""
    return (
        prompt_key(shared),
        *(xxh3_64_intdigest((answer + tools).encode()) for answer in answers),
        *map(len, (prompt, *answers)),
        *(token_lengths(pair) if token_lengths else (0, 0, 0)),
        sum(message["role"] == "user" for message in shared),
        "margin" in pair,
        *(fact for answer in answers for fact in (_count_markdown(answer), _refuses(answer), _is_unfinished(answer))),
    )


def facts_array(pairs: Iterable[Pair]) -> np.ndarray:
    """Return an array of the FACTS of pairs from a single source."""
    return np.array([(0, 0, 0, 0, *pair_facts(pair)) for pair in pairs], dtype=FACTS)


def trivial_judges(facts: np.ndarray) -> dict[str, float]:
    """Return the accuracy of simple rules that ignore meaning, a baseline for any model; ties count as half."""

    def accuracy(chosen: np.ndarray, rejected: np.ndarray) -> float:
        return float(np.mean((chosen > rejected) + 0.5 * (chosen == rejected)))

    return {
        "the longer answer": accuracy(facts["chosen"], facts["rejected"]),
        "the shorter answer": accuracy(facts["rejected"], facts["chosen"]),
        "more bullet points and markdown": accuracy(facts["chosen_markdown"], facts["rejected_markdown"]),
        "fewer refusals": accuracy(facts["rejected_refuses"], facts["chosen_refuses"]),
    }


def _text(messages: Messages) -> str:
    return "\n".join(map(message_text, messages))


def _count_markdown(answer: str) -> int:
    lines = sum(line.startswith(MARKDOWN_STARTS) for line in answer.split("\n"))
    return min(lines + answer.count("**"), 65535)


def _refuses(answer: str) -> bool:
    start = answer[:300].lower().replace("’", "'")
    return any(phrase in start for phrase in REFUSALS)


def _is_unfinished(answer: str) -> bool:
    """Return whether text seems to end in the middle of a word or number; always False in scripts without spaces."""
    return answer[-1:].isalnum() and answer[-1] < "\u0e00"
