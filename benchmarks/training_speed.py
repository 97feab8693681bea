"""Training speed of packed rows against stock trl.RewardTrainer: the same rows, order, dtype, optimizer, one process.

    python -m benchmarks.training_speed --data data/demo/train.jsonl --model models/SmolLM2-135M-Instruct
    python -m benchmarks.training_speed --data dialogues --model random --pairs 64 --batch_size 8 --json out.json
    python -m benchmarks.training_speed --data lists --answers 4 --model random --pairs 24 --batch_size 6

`--data` is any file of pairs, or `dialogues`: generated ones, about 150 tokens shared and 50 of their own a side; or
`lists`: all pairs of `--answers` answers to each prompt, as long as UltraFeedback's (Cui et al. 2023, Table 1: 185
tokens a prompt, 305 an answer). `--model` is any model folder, or a random Llama with the demo model's tokenizer:
`random` has 25 M parameters of body, `tiny` 3 M.
Stock is trl's trainer with its own tokenization, collator and padded forward; for lists, `pairs` are packed rows
without trees. The sides take turns, round by round. On a GPU that has it, all compute in bf16 autocast.
"""

import argparse
import copy
import json
import resource
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    logging,
)
from trl import RewardConfig, RewardTrainer

from benchmarks.generated import dialogues, lists
from reward_model.data.dataset import load_pairs
from reward_model.model.checkpoint import set_pad_token
from reward_model.model.modeling import install
from reward_model.model.packing_check import choose_attention
from reward_model.model.tokenization import load_tokenizer, set_unused_pad_token, tokenize_pairs
from reward_model.training.arguments import bf16_is_fast
from reward_model.training.collator import PairCollator

ROOT = Path(__file__).resolve().parent.parent

DEMO_MODEL = str(ROOT / "models/SmolLM2-135M-Instruct")
SIDES = ("stock", "pairs", "ours")
RANDOM = {
    "random": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8},
    "tiny": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 4},
}


def now() -> float:
    """Seconds, after a GPU has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class StepTimes(TrainerCallback):
    """`seconds` from the first step's begin to the last step's end, data loading between the steps included, and
    `forward_backward`, the seconds of each step before the optimizer's turn."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step_begin = now()
        if state.global_step == 0:
            self.begin, self.forward_backward = self.step_begin, []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.forward_backward.append(now() - self.step_begin)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds = now() - self.begin


def make_rows(args: argparse.Namespace, folder: str) -> tuple[PreTrainedTokenizerBase, Dataset, Dataset]:
    """The tokenizer, the pairs as trl takes them, and the same tokenized."""
    template = str(ROOT / "data/demo/chatml.jinja") if args.model in RANDOM else None
    tokenizer = load_tokenizer(DEMO_MODEL if args.model in RANDOM else args.model, template)
    source = Path(args.data)
    if args.data in ("dialogues", "lists"):
        made = dialogues(args.pairs) if args.data == "dialogues" else lists(args.pairs, args.answers)
        source = Path(folder) / "pairs.jsonl"
        source.write_text("".join(json.dumps(pair) + "\n" for pair in made))
    pairs = load_pairs(str(source))[0]
    if args.data != "lists":
        pairs = pairs.shuffle(seed=0)
    tokenized = tokenize_pairs(pairs, tokenizer, None, None, "benchmark")
    fits = np.flatnonzero(np.array(tokenized["length"][:]) <= args.max_length)[: args.pairs]
    set_unused_pad_token(tokenizer, [tokenized])
    texts = [{side: json.loads(pair[side]) for side in ("chosen", "rejected")} for pair in pairs.select(fits)]
    return tokenizer, Dataset.from_list(texts), tokenized.select(fits)


def make_model(name: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A model of RANDOM, the same at every call, or the one in a folder."""
    torch.manual_seed(0)
    if sizes := RANDOM.get(name):
        config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=8192, num_labels=1, **sizes)
        model = AutoModelForSequenceClassification.from_config(config)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=1, dtype=torch.float32)
    set_pad_token(model, tokenizer)
    return model


def make_trainers(args: argparse.Namespace, folder: str, sides: tuple[str, ...]) -> dict[str, RewardTrainer]:
    """A trainer of each side, on equal copies of one model and the same rows."""
    tokenizer, texts, tokenized = make_rows(args, folder)
    model = make_model(args.model, tokenizer)
    rows = {"stock": texts, "pairs": tokenized.remove_columns("prompt"), "ours": tokenized}
    trainers = {}
    for side in sides:
        config = RewardConfig(
            output_dir=f"{folder}/{side}",
            per_device_train_batch_size=args.batch_size,
            max_steps=args.pairs // args.batch_size,
            max_length=None,
            learning_rate=1e-5,
            bf16=bf16_is_fast(),
            gradient_checkpointing=args.gradient_checkpointing,
            train_sampling_strategy="sequential",
            remove_unused_columns=side == "stock",
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        own = copy.deepcopy(model)
        if side == "stock":
            own.set_attn_implementation(args.stock_attention)
        else:
            install(own)
            if reason := choose_attention(own, tokenizer.pad_token_id):
                sys.exit(f"error: {reason}")
        trainers[side] = RewardTrainer(
            model=own,
            args=config,
            train_dataset=rows[side],
            processing_class=copy.deepcopy(tokenizer),
            data_collator=None if side == "stock" else PairCollator(pad_token_id=tokenizer.pad_token_id),
            callbacks=[StepTimes],
        )
    return trainers


def timing(trainer: RewardTrainer) -> StepTimes:
    return next(callback for callback in trainer.callback_handler.callbacks if isinstance(callback, StepTimes))


def gradients(trainer: RewardTrainer, batch: dict) -> torch.Tensor:
    """Flat gradients of one batch."""
    trainer.model.train()
    trainer.model.zero_grad()
    with torch.autocast(trainer.args.device.type, torch.bfloat16, trainer.args.bf16):
        loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])


def matmul_peak(rounds: int = 10) -> float:
    """Return the GFLOP/s of the best of some matrix products, in the dtype of the training.

    On a GPU they are large, since a small one ends before the host has started the next, and timed by the device.
    """
    device, dtype = ("cuda", torch.bfloat16) if bf16_is_fast() else ("cpu", torch.float32)
    size = 8192 if device == "cuda" else 2048
    a, b = torch.randn(2, size, size, device=device, dtype=dtype).unbind()
    a @ b  # loads the kernel
    marks = [torch.Event(device, enable_timing=True) if device == "cuda" else HostEvent() for _ in range(rounds + 1)]
    marks[0].record()
    for mark in marks[1:]:
        a @ b
        mark.record()
    now()
    return 2 * size**3 / min(begin.elapsed_time(end) for begin, end in pairwise(marks)) / 1e6


class HostEvent:
    """A torch.Event on a CPU, which has none that measures time."""

    def record(self) -> None:
        self.time = time.perf_counter()

    def elapsed_time(self, end: "HostEvent") -> float:
        return 1000 * (end.time - self.time)


def peak_memory(side: str) -> float:
    """MB that a step takes beyond weights, gradients and optimizer states, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.training_speed", *sys.argv[1:], "--memory_of", side]
    return float(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure_memory(args: argparse.Namespace) -> None:
    """Peak after one step on the shortest pair (weights, gradients, optimizer) against the peak after all batches."""
    with tempfile.TemporaryDirectory() as folder:
        (trainer,) = make_trainers(args, folder, (args.memory_of,)).values()
        rows = trainer.train_dataset
        length = [len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows]
        shortest = rows.select([int(np.argmin(length))])
        trainer.args.max_steps, trainer.train_dataset = 1, shortest
        trainer.train()
        own = memory_mb()
        trainer.args.max_steps, trainer.train_dataset = args.pairs // args.batch_size, rows
        trainer.train()
        print(memory_mb() - own)


def memory_mb() -> float:
    """MB that this process has had at once: of the GPU if there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--pairs", type=int, default=16, help="pairs of a round; default: %(default)s")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--answers", type=int, default=4, help="of each prompt, for lists; default: %(default)s")
    parser.add_argument("--stock_attention", default="sdpa", help="of the stock side; default: %(default)s")
    parser.add_argument("--max_length", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    parser.add_argument("--memory_of", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.set_verbosity_error()
    if args.memory_of:
        measure_memory(args)
        return

    sides = SIDES if args.data == "lists" else ("stock", "ours")
    memory = {side: peak_memory(side) for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        trainers = make_trainers(args, folder, sides)
        batches = {side: list(trainer.get_train_dataloader()) for side, trainer in trainers.items()}
        flops, first = {}, {}
        for side in sides:  # this warms up, too
            with FlopCounterMode(display=False) as counter:
                first[side] = gradients(trainers[side], batches[side][0])
            flops[side] = counter.get_total_flops()
        kinds = ("step", "forward_backward", "first_forward_backward")
        seconds: dict[str, dict[str, list[float]]] = {side: {kind: [] for kind in kinds} for side in sides}
        losses, peak = {}, 0.0
        for round_ in range(args.rounds):
            for side in sides[:: -1 if round_ % 2 else 1]:
                trainers[side].train()
                times = timing(trainers[side])
                for kind, value in zip(
                    kinds, (times.seconds, sum(times.forward_backward), times.forward_backward[0]), strict=True
                ):
                    seconds[side][kind].append(value)
                losses.setdefault(side, [log["loss"] for log in trainers[side].state.log_history if "loss" in log])
            peak = max(peak, matmul_peak())  # in every round: on shared machines it changes

    pairs = len(batches["ours"]) * args.batch_size
    positions = {side: sum(batch["input_ids"].numel() for batch in batches[side]) for side in sides}
    figures: dict[str, Any] = {"matmul_peak_gflops": peak, "position_ratio": positions["stock"] / positions["ours"]}
    for side in sides:
        step, alone, first_alone = (np.median(seconds[side][kind]) for kind in kinds)
        figures[side] = {
            "pairs_per_second": pairs / step,
            "forward_backward_pairs_per_second": pairs / alone,
            "forward_backward_gflops": flops[side] / first_alone / 1e9,
            "token_positions": positions[side],
            "peak_memory_mb": memory[side],
        }
    for side in sides[:-1]:
        for kind in ("step", "forward_backward"):
            ratios = np.array(seconds[side][kind]) / np.array(seconds["ours"][kind])
            name = f"{kind}_ratio" if side == "stock" else f"{kind}_ratio_to_{side}"
            figures[name] = {"median": np.median(ratios), "min": ratios.min(), "max": ratios.max()}
    figures["largest_loss_difference"] = np.abs(np.subtract(losses["stock"], losses["ours"])).max()
    figures["relative_gradient_difference"] = ((first["ours"] - first["stock"]).norm() / first["stock"].norm()).item()
    report(args, figures)
    if args.json:
        args.json.write_text(json.dumps({"arguments": vars(args), **figures}, default=str, indent=2) + "\n")


def report(args: argparse.Namespace, figures: dict[str, Any]) -> None:
    """The table that a reader of the README knows."""
    print(f"\n{args.data}, {args.model}, {args.pairs} pairs, batch size {args.batch_size}, {args.rounds} rounds")
    sides = [side for side in SIDES if side in figures]
    print(f"{'':<40}" + "".join(f"{side:>12}" for side in sides) + f"{'ratio':>10}")
    stock, ours = figures["stock"], figures["ours"]
    for name in stock:
        ratio = stock[name] / ours[name] if name in ("token_positions", "peak_memory_mb") else ours[name] / stock[name]
        print(f"{name:<40}" + "".join(f"{figures[side][name]:>12,.2f}" for side in sides) + f"{ratio:>10.2f}")
    for name, ratio in figures.items():
        if "_ratio" in name and isinstance(ratio, dict):
            print(f"{name.replace('_', ' ')}: {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})")
    share = ours["forward_backward_gflops"] / figures["matmul_peak_gflops"]
    print(f"matmul peak {figures['matmul_peak_gflops']:.1f} GFLOP/s; ours runs at {share:.0%} of it")
    print(
        f"largest difference of losses {figures['largest_loss_difference']:.1e}, "
        f"relative difference of gradients {figures['relative_gradient_difference']:.1e}"
    )


if __name__ == "__main__":
    main()
