"""trl's RewardTrainer with exact metrics, an efficient order of pairs, and a limit on the tokens in each pass."""

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch.utils.data import Sampler
from transformers.trainer_utils import EvalLoopOutput, HubStrategy
from trl import RewardTrainer

from reward_model.model.checkpoint import set_served_architecture
from reward_model.training.callbacks import TrainingMonitor
from reward_model.training.loss import pair_losses
from reward_model.training.sampler import StepSampler
from reward_model.training.throughput import Throughput

# The metrics that evaluations (`eval_…`) and the training log report for a set of pairs.
METRICS = ("loss", "accuracy", "margin", "min_reward", "mean_reward", "max_reward")


class ExactRewardTrainer(RewardTrainer):
    """Report metrics over all pairs, each counted once, whereas trl averages the averages of its batches.

    Every training log also contains `pairs_per_second`, `tokens_per_second` (tokens on both sides without padding, over
    all ranks), `positions_saved` (share of the padded batches' token positions that were not computed), on several
    ranks `rank_balance` (positions on the average rank divided by those on the rank that each step waits for), and, on
    a GPU whose peak is known, `mfu` (model FLOPs utilization for the positions computed) and `mfu_as_if_padded` (the
    utilization that padded batches would need to be equally fast).

    The model must be prepared by `reward_model.model.modeling.install`, and the collator must be a `PairCollator`.
    """

    throughput: Throughput | None = None
    _sampler: StepSampler | None = None

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
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        """Return the loss of a batch, weighted by its `share` of the micro-batch that it is part of."""
        inputs.pop("examples", None)
        share = inputs.pop("share", 1.0)
        outputs = model(**inputs, use_cache=False)
        chosen, rejected = outputs.logits.squeeze(-1).chunk(2)
        losses = pair_losses(
            chosen,
            rejected,
            inputs.get("margin"),
            self.args.loss_type,
            self.args.label_smoothing_factor,
            self.args.center_rewards_coefficient,
        )
        pairs = torch.stack([losses, chosen, rejected], dim=1).detach().float()
        if self.model.training:
            self._trained.append(pairs)
        else:
            self._evaluated.append(self.accelerator.gather_for_metrics(pairs).cpu())
        loss = losses.mean() * share
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """Evaluate, and report metrics over all pairs."""
        self._evaluated: list[torch.Tensor] = []
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        metrics = pair_metrics(torch.cat(self._evaluated))
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Private, because Trainer checks no flag before the first step of an epoch: a run that was killed between its
        # last checkpoint and the final save would take one step too many.
        # test_resuming_after_the_last_step_only_saves fails if Trainer stops calling this method.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        if self._sampler:  # accelerate does not forward the epoch when several ranks resume
            self._sampler.epoch = kwargs["epoch"]
        super()._run_epoch(*args, **kwargs)

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any) -> torch.Tensor:
        """Run a micro-batch, in several passes if it exceeds --max_tokens_per_micro_batch, and record its metrics."""
        if self.throughput is None:
            self.throughput = Throughput(self.model, self.accelerator, self.args.bf16 or self.args.fp16)
            self._trained: list[torch.Tensor] = []  # pairs on this rank since the last log
            self._losses: list[torch.Tensor] = []  # one for each micro-batch of this step
        step = self._step_in_parts if "examples" in inputs else super().training_step
        loss = step(model, inputs, *args)
        self._losses.append(loss)
        if self.accelerator.sync_gradients:
            self.throughput.end_step()
        return loss

    def _step_in_parts(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any) -> torch.Tensor:
        """Run a micro-batch in several passes; the rank with the largest micro-batch determines how many."""
        examples, ends_step = inputs["examples"], self.accelerator.sync_gradients
        parts = self.data_collator.split(list(examples))
        most = torch.tensor(len(parts), device=self.args.device)
        if torch.distributed.is_initialized():  # passes contain collectives, so all ranks must run equally many
            torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
        while len(parts) < most:
            part = parts.pop(max(range(len(parts)), key=lambda number: len(parts[number])))
            parts += [part[: len(part) // 2], part[len(part) // 2 :]]
        losses: list[torch.Tensor] = []
        for part in parts:
            last = len(losses) == len(parts) - 1
            self.accelerator.sync_gradients = last and ends_step
            batch = self.data_collator(part) | {"share": len(part) / len(examples)}
            del batch["examples"]
            with nullcontext() if last else self.accelerator.no_sync(model):
                losses.append(super().training_step(model, batch, *args))
        return torch.stack(losses).sum()

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        # Private, because no callback sees the norm before the optimizer step, which would spread nan to all weights.
        # test_loss_that_is_not_finite_stops_the_run_and_names_its_pairs fails if Trainer stops calling this method.
        norm = super()._get_grad_norm(model, grad_norm)
        loss = float(self.accelerator.reduce(sum(self._losses), "mean"))  # all ranks stop together
        self._losses.clear()
        # In fp16 the scaler skips steps whose gradient is not finite.
        if not math.isfinite(loss) or not (self.args.fp16 or math.isfinite(float(norm or 0))):
            monitor = next(one for one in self.callback_handler.callbacks if isinstance(one, TrainingMonitor))
            monitor.stop_at_bad_batch(loss, float(norm or 0), self.args, self.state.global_step)
        return norm

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model with the architecture name that vLLM knows. train.py uploads the complete model later."""
        super().save_model(output_dir, _internal_call=True)  # False would upload it
        if self.args.should_save:
            set_served_architecture(Path(output_dir or self.args.output_dir))

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: trl's card would show how to generate text with a reward model. train.py writes its own card."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add metrics over all pairs since the last log to `logs`, and log them. Runs on all ranks."""
        if "loss" in logs and self.throughput:
            rows = [row for pairs in self._trained for row in pairs.tolist()]
            metrics = pair_metrics(torch.tensor(gather_object(rows)))
            logs |= {name: value for name, value in metrics.items() if name != "loss"} | self.throughput.log()
            self._trained.clear()
            # Saved in the checkpoint, so that a resumed run continues the count.
            self.state.num_input_tokens_seen += int(logs["num_tokens"])
            logs["num_tokens"] = self.state.num_input_tokens_seen
        super().log(logs, start_time)


def pair_metrics(pairs: torch.Tensor) -> dict[str, float]:
    """Return the METRICS of `pairs`, `(pairs, 3)`: loss, chosen reward and rejected reward of each pair.

    A tie counts as half, as in evaluate.py.
    """
    losses, chosen, rejected = pairs.double().unbind(1)
    margins = chosen - rejected
    accuracy = torch.heaviside(margins, margins.new_tensor(0.5)).mean()
    rewards = pairs[:, 1:]
    metrics = (losses.mean(), accuracy, margins.mean(), rewards.min(), rewards.mean(), rewards.max())
    return {name: value.item() for name, value in zip(METRICS, metrics, strict=True)}


def configure_trainer(args: Any, checkpoint: str | None, has_eval: bool, has_other_towers: bool) -> None:
    """Adapt the arguments for trl's trainer, and disable what train.py has already done or will do itself.

    Args:
        args: The arguments of the run, changed in place.
        checkpoint: Checkpoint to resume from.
        has_eval: Whether there are pairs to evaluate on.
        has_other_towers: Whether the model has a vision tower or similar, whose parameters get no gradients from text.
            By default, DDP waits for the gradients of all parameters.
    """
    args.resume_from_checkpoint = checkpoint
    args.max_length = args.chat_template_path = args.model_init_kwargs = None  # done; trl would filter row by row
    args.disable_dropout = False  # done; trl would disable LoRA's dropout as well
    args.remove_unused_columns = False  # the collator selects columns
    args.hub_strategy = HubStrategy.END  # else Trainer would copy checkpoints (LoRA: the adapter) over the model
    if not has_eval:
        args.eval_strategy = "no"
    if has_other_towers and args.ddp_find_unused_parameters is None:
        args.ddp_find_unused_parameters = True
