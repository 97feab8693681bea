"""trl's RewardTrainer with the run's speed in its logs."""

import re
import time
from collections import defaultdict
from typing import Any

import torch
from trl import RewardTrainer

from reward_model.model.attention import PathCounts


class ThroughputTrainer(RewardTrainer):
    """Adds to every training log `pairs_per_second`, `tokens_per_second` (tokens of both sides, without padding, of all
    ranks) and `positions_saved` (share of the padded batches' token positions that were not computed).

    The model must have been through `reward_model.model.attention.install`, which counts.
    """

    _counted: tuple[float, list[int]] | None = None

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self._counted is None:
            self._counted = (time.perf_counter(), self._counts())
        return super().training_step(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._counted is not None:
            since, before = self._counted
            self._counted = (time.perf_counter(), self._counts())
            new = [after - earlier for after, earlier in zip(self._counted[1], before, strict=True)]
            logs |= speed(*self._over_ranks(new), seconds=self._counted[0] - since)
        # One of several evaluation sets: trl would log its accuracy as eval_accuracy like that of every other.
        for name in [key[len("eval_") : -len("_loss")] for key in logs if re.fullmatch("eval_.+_loss", key)]:
            metrics = self._metrics["eval"]
            self._metrics["eval"] = defaultdict(list, {f"{name}_{key}": value for key, value in metrics.items()})
        super().log(logs, start_time)

    def totals(self, seconds: float) -> str:
        """One line for the end of the run."""
        pairs, tokens, positions, padded = self._over_ranks(self._counts())
        figures = speed(pairs, tokens, positions, padded, seconds)
        return (
            f"{pairs:,} pairs in {seconds:.0f} s: {figures['pairs_per_second']:.2f} pairs/s, "
            f"{figures['tokens_per_second']:,.0f} tokens/s, {figures['positions_saved']:.0%} of {padded:,} token "
            "positions saved"
        )

    def _counts(self) -> list[int]:
        module = next(module for module in self.model.modules() if hasattr(module, "path_counts"))
        counts: PathCounts = module.path_counts
        return [counts.pairs, counts.real_tokens, counts.positions, counts.padded_positions]

    def _over_ranks(self, counts: list[int]) -> list[int]:
        return self.accelerator.reduce(torch.tensor(counts, device=self.args.device)).tolist()


def speed(pairs: int, tokens: int, positions: int, padded_positions: int, seconds: float) -> dict[str, float]:
    """The logged figures from counts over `seconds`."""
    return {
        "pairs_per_second": pairs / seconds,
        "tokens_per_second": tokens / seconds,
        "positions_saved": 1 - positions / padded_positions,
    }
