"""Measure the lengths of pairs in tokens, for prepare_data.py --tokenizer."""

import re

from reward_model import InputError, RowError
from reward_model.data.pair import SIDES, Pair, common_prefix_length
from reward_model.model.chat_template import render, special_tokens
from reward_model.model.tokenization import load_tokenizer, token_ids


class TokenLengths:
    """Count the tokens in pairs, rendered as in training.

    Args:
        model: Directory or Hub id of the tokenizer.
        max_length: Maximum length of a side, in tokens.
    """

    def __init__(self, model: str, max_length: int | None) -> None:
        self.tokenizer, self.max_length = load_tokenizer(model), max_length
        # Matches strings that the tokenizer reads as special tokens.
        self.control_tokens = re.compile("|".join(map(re.escape, special_tokens(self.tokenizer))) or "$^")

    def __call__(self, pair: Pair) -> tuple[int, int, int]:
        """Return the lengths of the shared prefix, the rest of chosen and the rest of rejected.

        Raises:
            RowError: A side is too long, both sides have the same tokens, or the chat template rejects the pair.
        """
        try:
            both = [render(pair[side], self.tokenizer, pair.get("tools")) for side in SIDES]
        except InputError as error:
            raise RowError("template", f"{error}.") from error
        chosen, rejected = token_ids(both, self.tokenizer)
        if chosen == rejected:
            raise RowError("equal tokens", "both sides have identical token ids.")
        longest = max(len(chosen), len(rejected))
        if self.max_length and longest > self.max_length:
            raise RowError(
                "too long", f"the longer side has {longest} tokens, more than --max_length {self.max_length}."
            )
        prefix = common_prefix_length((chosen, rejected))
        return prefix, len(chosen) - prefix, len(rejected) - prefix
