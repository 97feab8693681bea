"""Lengths of a pair in tokens, for prepare_data.py --tokenizer."""

from functools import cached_property
from typing import Any

from jinja2 import TemplateError

from reward_model import RowError
from reward_model.data.pair import SIDES, Pair, common_prefix_length
from reward_model.model.tokenization import cut_tokens, encode_pairs, load_tokenizer, render


class TokenLengths:
    """Tokens of the shared prefix and of each side's rest, rendered as in training; every process loads its own
    tokenizer at the first pair.

    Raises RowError for a pair with a side longer than `max_length`, or that the chat template refuses.
    """

    def __init__(self, model: str, max_length: int | None) -> None:
        self.model, self.max_length = model, max_length

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        tokenizer = load_tokenizer(self.model)
        return tokenizer, cut_tokens(tokenizer)

    def __call__(self, pair: Pair) -> tuple[int, int, int]:
        tokenizer, cutters = self._loaded
        try:
            both = [render(pair[side], tokenizer, pair.get("tools")) for side in SIDES]
        except TemplateError as error:
            raise RowError("template", f"refused by the tokenizer's chat template: {error}.") from None
        (chosen,), (rejected,) = encode_pairs(both[:1], both[1:], tokenizer, cutters)
        longest = max(len(chosen), len(rejected))
        if self.max_length and longest > self.max_length:
            raise RowError(
                "too long", f"the longer side has {longest} tokens, more than --max_length {self.max_length}."
            )
        prefix = common_prefix_length((chosen, rejected))
        return prefix, len(chosen) - prefix, len(rejected) - prefix
