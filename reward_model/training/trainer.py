"""trl's RewardTrainer with exact figures: of every held-out pair once, and of the run's speed."""

import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers.trainer_utils import EvalLoopOutput, rotate_checkpoints
from trl import RewardTrainer

from reward_model.model.attention import PathCounts
from reward_model.model.contract import write_contract
from reward_model.training.saving import COMPLETE, mark_complete


class ExactRewardTrainer(RewardTrainer):
    """Evaluates over all held-out pairs at once, each counted once, where trl takes the mean of the batches' means.

    Adds to every training log `pairs_per_second`, `tokens_per_second` (tokens of both sides, without padding, of all
    ranks) and `positions_saved` (share of the padded batches' token positions that were not computed). Honours
    `label_smoothing_factor`. The model must have been through `reward_model.model.attention.install`, which counts.
    """

    _counted: tuple[float, list[int]] | None = None
    _evaluated: list[torch.Tensor]

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        chosen, rejected = outputs.logits.squeeze(-1).chunk(2)
        difference = chosen - rejected - inputs.get("margin", 0)
        # Conservative Bradley-Terry (Mitchell 2023): -(1 - e) log sigmoid(d) - e log sigmoid(-d), since
        # log sigmoid(-d) = log sigmoid(d) - d.
        if smoothing := self.args.label_smoothing_factor:
            loss = loss + smoothing * difference.mean()
        if not self.model.training:
            pairs = torch.stack([chosen, rejected, difference], dim=1).float()
            self._evaluated.append(self.accelerator.gather_for_metrics(pairs).cpu())
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        self._evaluated = []
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        self._metrics["eval"].clear()  # trl's means of batches
        figures = self._figures(*torch.cat(self._evaluated).double().unbind(1))
        output.metrics.update({f"{metric_key_prefix}_{name}": value.item() for name, value in figures.items()})
        return output

    def _figures(self, chosen: torch.Tensor, rejected: torch.Tensor, difference: torch.Tensor) -> dict[str, Any]:
        """Figures of pairs from their rewards and what the loss is taken of; a tie counts half, as in evaluate.py."""
        margins = chosen - rejected
        losses = F.softplus(-difference) + self.args.label_smoothing_factor * difference
        losses += (self.args.center_rewards_coefficient or 0.0) * (chosen + rejected) ** 2
        rewards = torch.cat([chosen, rejected])
        return {
            "loss": losses.mean(),
            "accuracy": torch.heaviside(margins, margins.new_tensor(0.5)).mean(),
            "margin": margins.mean(),
            "min_reward": rewards.min(),
            "mean_reward": rewards.mean(),
            "max_reward": rewards.max(),
        }

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # A run that died after its last checkpoint has no step left; Trainer would make one more.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self._counted is None:
            self._counted = (time.perf_counter(), self._counts())
            self._total_train_tokens = self.state.num_input_tokens_seen  # before a resumed run was stopped
        return super().training_step(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.state.num_input_tokens_seen = self._total_train_tokens
        # Older checkpoints go only when this one is whole.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        checkpoint = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}")
        (checkpoint / COMPLETE).unlink(missing_ok=True)
        super()._save_checkpoint(*args, **kwargs)
        self.args.save_total_limit = limit
        write_contract(self.model, self.processing_class, checkpoint)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            mark_complete(checkpoint)
            rotate_checkpoints(self.args.output_dir, limit, self.state.best_model_checkpoint)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._counted is not None:
            since, before = self._counted
            self._counted = (time.perf_counter(), self._counts())
            new = [after - earlier for after, earlier in zip(self._counted[1], before, strict=True)]
            logs |= speed(self._over_ranks(new), self._counted[0] - since)
        super().log(logs, start_time)

    def totals(self, seconds: float) -> str:
        """One line for the end of the run."""
        counts = self._over_ranks(self._counts())
        if not any(counts):
            return f"No step was left after step {self.state.global_step}."
        figures = speed(counts, seconds)
        return (
            f"{counts[0]:,} pairs in {seconds:.0f} s: {figures['pairs_per_second']:.2f} pairs/s, "
            f"{figures['tokens_per_second']:,.0f} tokens/s, {figures['positions_saved']:.0%} of {counts[3]:,} token "
            "positions saved"
        )

    def _counts(self) -> list[int]:
        module = next(module for module in self.model.modules() if hasattr(module, "path_counts"))
        counts: PathCounts = module.path_counts
        return [counts.pairs, counts.real_tokens, counts.positions, counts.padded_positions]

    def _over_ranks(self, counts: list[int]) -> list[int]:
        return self.accelerator.reduce(torch.tensor(counts, device=self.args.device)).tolist()


def speed(counts: list[int], seconds: float) -> dict[str, float]:
    """The logged figures from counts (pairs, tokens, positions, padded positions) over `seconds`."""
    pairs, tokens, positions, padded_positions = counts
    return {
        "pairs_per_second": pairs / seconds,
        "tokens_per_second": tokens / seconds,
        "positions_saved": 1 - positions / padded_positions,
    }
