"""What is known of a pair without its text: hashes, lengths and marks, as one row of an array of FACTS."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from xxhash import xxh3_64_intdigest

from reward_model.data.formats import Options
from reward_model.data.pair import SIDES, Messages, Pair, message_text, prompt_key, shared_messages

# What is counted and kept unless --drop names it: what conflicts.py finds, and the doubts about a text (pair.doubt).
DOUBTS = ("duplicate", "cut off", "different prompts", "control characters", "broken encoding", "control tokens")
# Index of a reason that conflicts.py has against a pair; 0 is none.
REASONS = ("", "duplicate", "both orders", "contradiction", "cut off")
GOOD = 0

SCRIPTS = ("Latin", "Cyrillic", "Greek", "Arabic", "Hebrew", "Devanagari", "Thai", "Hangul", "Kana", "Han", "other")
# The first word of a letter's Unicode name, where it is not the script's own name.
SCRIPT_NAMES = {"CJK": "Han", "HIRAGANA": "Kana", "KATAKANA": "Kana"}
# What a line of markdown begins with.
MARKDOWN = ("- ", "* ", "• ", "#", "```", "| ", *(f"{number}. " for number in range(1, 10)))
REFUSALS = (
    *("i can't", "i cannot", "i can not", "i won't", "i'm sorry", "i am sorry", "i'm unable", "i am unable"),
    *("as an ai", "i apologize", "not able to help", "抱歉", "对不起", "无法", "作为一个人工智能", "作为ai"),
)

# Lengths are characters, and tokens where a tokenizer was given (else 0): `prompt` is what both sides share, `chosen`
# and `rejected` their own rest. `open`: the answer ends within a word.
FACTS = np.dtype(
    [("part", "u2"), ("file", "u2"), ("row", "u4"), ("source", "u2"), ("prompt_hash", "u8"), ("chosen_hash", "u8")]
    + [("rejected_hash", "u8"), ("prompt", "u4"), ("chosen", "u4"), ("rejected", "u4"), ("prompt_tokens", "u4")]
    + [("chosen_tokens", "u4"), ("rejected_tokens", "u4"), ("turns", "u2"), ("script", "u1"), ("has_margin", "?")]
    + [
        (f"{side}_{fact}", kind)
        for side in SIDES
        for fact, kind in [("markdown", "u2"), ("refuses", "?"), ("open", "?")]
    ]
)


class Work(NamedTuple):
    """What every process needs to convert and check rows: two checks that are only loaded when asked for among them.

    `token_lengths` is a `model.token_lengths.TokenLengths` and `control_tokens` what its tokenizer takes for more than
    text; `check_prompt` is a `contamination.Contamination.check`.
    """

    options: Options
    drop: tuple[str, ...] = ()
    token_lengths: Callable[[Pair], tuple[int, int, int]] | None = None
    control_tokens: re.Pattern[str] | None = None
    check_prompt: Callable[[Messages], None] | None = None


def pair_facts(pair: Pair, work: Work) -> tuple:
    """FACTS of a checked pair, from `prompt_hash` on; raises RowError for one too long or contaminated."""
    shared = shared_messages(pair)
    if work.check_prompt:
        work.check_prompt(shared)
    prompt, *answers = (_text(messages) for messages in (shared, *(pair[side][len(shared) :] for side in SIDES)))
    # An answer that is right with some tools may be wrong with others.
    tools = json.dumps(pair["tools"], sort_keys=True, default=str) if "tools" in pair else ""
    return (
        prompt_key(shared),
        *(xxh3_64_intdigest((answer + tools).encode()) for answer in answers),
        *map(len, (prompt, *answers)),
        *(work.token_lengths(pair) if work.token_lengths else (0, 0, 0)),
        sum(message["role"] == "user" for message in shared),
        script(prompt + answers[0][:200]),
        "margin" in pair,
        *(fact for answer in answers for fact in (_markdown(answer), _refuses(answer), _open(answer))),
    )


def trivial_judges(facts: np.ndarray) -> dict[str, float]:
    """Accuracy of judges that read nothing; a tie counts as half. A reward model must beat the best of them."""

    def accuracy(for_chosen: np.ndarray, for_rejected: np.ndarray) -> float:
        return float(np.mean((for_chosen > for_rejected) + 0.5 * (for_chosen == for_rejected)))

    return {
        "the longer answer": accuracy(facts["chosen"], facts["rejected"]),
        "the shorter answer": accuracy(facts["rejected"], facts["chosen"]),
        "more bullet points and markdown": accuracy(facts["chosen_markdown"], facts["rejected_markdown"]),
        "fewer refusals": accuracy(facts["rejected_refuses"], facts["chosen_refuses"]),
    }


def script(text: str) -> int:
    """Index into SCRIPTS of the writing system that most letters at the text's begin belong to."""
    if text[:300].isascii():
        return 0
    letters = [unicodedata.name(letter, "other").split()[0] for letter in text[:300] if letter.isalpha()]
    names = Counter(SCRIPT_NAMES.get(name, name.capitalize()) for name in letters)
    if names["Kana"] > len(letters) / 10:  # Japanese, however many Han characters it has
        return SCRIPTS.index("Kana")
    most = names.most_common(1)[0][0] if names else "Latin"
    return SCRIPTS.index(most if most in SCRIPTS else "other")


def _text(messages: Messages) -> str:
    return "\n".join(map(message_text, messages))


def _markdown(answer: str) -> int:
    lines = sum(line.startswith(MARKDOWN) for line in answer.split("\n"))
    return min(lines + answer.count("**"), 65535)


def _refuses(answer: str) -> bool:
    start = answer[:300].lower().replace("’", "'")
    return any(phrase in start for phrase in REFUSALS)


def _open(answer: str) -> bool:
    """Whether a text ends within a word or number; scripts without spaces between words do not count."""
    return answer[-1:].isalnum() and answer[-1] < "\u0e00"
