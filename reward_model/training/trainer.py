"""trl's RewardTrainer with exact figures, the order of pairs that wastes least, and memory bounded by tokens."""

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch.utils.data import Sampler
from transformers.trainer_utils import EvalLoopOutput, rotate_checkpoints
from trl import RewardTrainer

from reward_model.model.attention import PathCounts
from reward_model.model.reference_scores import write_reference_scores
from reward_model.training.callbacks import Watch
from reward_model.training.checkpointing import COMPLETE, full_disk_told, mark_complete
from reward_model.training.sampler import StepSampler
from reward_model.training.utilization import flops_per_position, peak_flops


class ExactRewardTrainer(RewardTrainer):
    """Evaluates over all held-out pairs at once, each counted once, where trl takes the mean of the batches' means.

    Adds to every training log `pairs_per_second`, `tokens_per_second` (tokens of both sides, without padding, of all
    ranks), `positions_saved` (share of the padded batches' token positions that were not computed) and, on several
    ranks, `rank_balance` (positions of the mean rank over those of the one that each step waits for); on a GPU whose
    peak is known, `mfu` (model FLOPs utilization, of the positions computed) and `mfu_as_if_padded` (the utilization at
    which padded batches would be as fast). Honours
    `label_smoothing_factor` and what TrainingArguments says of batches. The model must have been through
    `reward_model.model.attention.install`, which counts.
    """

    _counted: tuple[float, list[int]] | None = None
    _evaluated: list[torch.Tensor]
    _sampler: StepSampler | None = None
    _seconds_saving = 0.0
    _after_steps: list[int]  # positions computed here, when the last log was and after each step since

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        args = self.args
        if args.train_sampling_strategy != "random":
            return super()._get_train_sampler(train_dataset)
        self._sampler = StepSampler(
            train_dataset or self.train_dataset,
            self._train_batch_size,
            self.accelerator.num_processes,
            args.gradient_accumulation_steps,
            args.seed if args.data_seed is None else args.data_seed,
            args.group_by_prompt,
            args.balance_ranks,
            args.dataloader_drop_last,
        )
        return self._sampler

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        inputs.pop("examples", None)
        share = inputs.pop("share", 1)
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
        loss = loss * share
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
            return
        if self._sampler:  # which accelerate does not tell in a resumed epoch on several ranks
            self._sampler.epoch = kwargs["epoch"]
        super()._run_epoch(*args, **kwargs)

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any) -> torch.Tensor:
        if self._counted is None:
            self._counted = (time.perf_counter(), self._counts())
            self._losses: list[torch.Tensor] = []  # of this step's micro-batches
            self._after_steps = [self._counted[1][2]]
            self._total_train_tokens = self.state.num_input_tokens_seen  # before a resumed run was stopped
        step = self._in_parts if "examples" in inputs else super().training_step
        loss = step(model, inputs, *args)
        self._losses.append(loss)
        if self.accelerator.sync_gradients:
            self._after_steps.append(self._counts()[2])
        return loss

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        loss = self.accelerator.reduce(sum(self._losses), "mean")  # all ranks stop together
        self._losses.clear()
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, Watch):
                callback.check_finite(float(loss), float(norm or 0), self.args, self.state.global_step)
        return norm

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: trl's shows how to generate text with a reward model."""

    def _in_parts(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any) -> torch.Tensor:
        """The step of one micro-batch in as many passes as --max_tokens_per_micro_batch asks for on any rank."""
        examples, ends_step = inputs["examples"], self.accelerator.sync_gradients
        parts = self.data_collator.split(list(examples))
        most = torch.tensor(len(parts), device=self.args.device)
        if torch.distributed.is_initialized():  # each pass has collectives, so all ranks make as many
            torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
        while len(parts) < most:
            part = parts.pop(max(range(len(parts)), key=lambda number: len(parts[number])))
            parts += [part[: len(part) // 2], part[len(part) // 2 :]]
        losses: list[torch.Tensor] = []
        for part in parts:
            last = len(losses) == len(parts) - 1
            self.accelerator.gradient_state._set_sync_gradients(last and ends_step)  # as Trainer does
            batch = self.data_collator(part) | {"share": len(part) / len(examples)}
            del batch["examples"]
            with nullcontext() if last else self.accelerator.no_sync(model):
                losses.append(super().training_step(model, batch, *args))
        return torch.stack(losses).sum()

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.state.num_input_tokens_seen = self._total_train_tokens
        # Older checkpoints go only when this one is whole.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        checkpoint = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}")
        (checkpoint / COMPLETE).unlink(missing_ok=True)
        since = time.perf_counter()
        with full_disk_told(checkpoint):
            super()._save_checkpoint(*args, **kwargs)
            self.args.save_total_limit = limit
            write_reference_scores(self.model, self.processing_class, checkpoint)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                mark_complete(checkpoint)
                rotate_checkpoints(self.args.output_dir, limit, self.state.best_model_checkpoint)
        self._seconds_saving += time.perf_counter() - since

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._counted is not None:
            since, before = self._counted
            self._counted = (time.perf_counter(), self._counts())
            new = [after - earlier for after, earlier in zip(self._counted[1], before, strict=True)]
            new, seconds = self._over_ranks(new), self._counted[0] - since
            logs |= speed(new, seconds)
            peak = peak_flops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
            if peak and (self.args.bf16 or self.args.fp16) and (flops := flops_per_position(self.model)):
                share = flops / seconds / peak / self.accelerator.num_processes
                logs |= {"mfu": share * new[2], "mfu_as_if_padded": share * new[3]}
            if self.accelerator.num_processes > 1:
                computed = torch.tensor(self._after_steps, device=self.args.device).diff()[None]
                each = self.accelerator.gather(computed).double()  # (ranks, steps)
                logs["rank_balance"] = (each.mean(0).sum() / each.amax(0).sum()).item()
            self._after_steps = self._after_steps[-1:]
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
            f"positions saved; {self._seconds_saving / seconds:.1%} of the time went into checkpoints"
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
