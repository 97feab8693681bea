"""Lengths of a pair in tokens, for prepare_data.py --tokenizer."""

import re

from reward_model import InputError, RowError
from reward_model.data.pair import SIDES, Pair, common_prefix_length
from reward_model.model.chat_template import render, special_tokens
from reward_model.model.tokenization import load_tokenizer, token_ids


class TokenLengths:
    """Tokens of the shared prefix and of each side's rest, rendered as in training; `control_tokens` are the texts that
    the tokenizer takes for tokens of its own.

    Raises RowError for a pair with a side longer than `max_length`, whose sides become the same tokens, or that the
    chat template refuses.
    """

    def __init__(self, model: str, max_length: int | None) -> None:
        self.tokenizer, self.max_length = load_tokenizer(model), max_length
        self.control_tokens = re.compile("|".join(map(re.escape, special_tokens(self.tokenizer))) or "$^")

    def __call__(self, pair: Pair) -> tuple[int, int, int]:
        try:
            both = [render(pair[side], self.tokenizer, pair.get("tools")) for side in SIDES]
        except InputError as error:
            raise RowError("template", f"{error}.") from error
        chosen, rejected = token_ids(both, self.tokenizer)
        if chosen == rejected:
            raise RowError("equal tokens", "both sides become the same tokens.")
        longest = max(len(chosen), len(rejected))
        if self.max_length and longest > self.max_length:
            raise RowError(
                "too long", f"the longer side has {longest} tokens, more than --max_length {self.max_length}."
            )
        prefix = common_prefix_length((chosen, rejected))
        return prefix, len(chosen) - prefix, len(rejected) - prefix
