"""Estimate the memory per GPU and the duration of an epoch from the shapes of a model.

    python -m docs.memory_estimate                                                   # the table of docs/recipes.md
    python -m docs.memory_estimate --recipe "Qwen2.5-7B, full, 8 x 80 GB" --pairs 8  # one recipe, part by part

Nothing here was measured on a GPU. Sources: weights, gradients and optimizer states, Rajbhandari et al. 2020 (ZeRO,
arXiv:1910.02054); activations, Korthikanti et al. 2022 (arXiv:2205.05198), adapted to gated MLPs and to attention that
does not store its scores; operations, Kaplan et al. 2020 (arXiv:2001.08361).
"""

import argparse
from dataclasses import asdict, dataclass, fields, replace

PEAK = {"H100": 989e12, "4090": 165e12}  # operations per second in bf16, dense: NVIDIA's data sheets
UTILIZATION = 0.3  # share of the peak that is reached: assumed
LINK = 50e9  # bytes per second from one GPU to other nodes (400 Gbit/s): assumed; traffic within a node is ignored
DISK, CPU_MEMORY = 1e9, 50e9  # bytes per second: assumed
GPU_FP32, CPU_FP32 = 30e12, 1.5e12  # operations per second on an H100 and on 64 cores: assumed
SCORED = 5_000  # token positions of the conversations that get reference scores
PAIRS, POSITIONS = 80_000, 1_000  # pairs in the dataset, and positions of one pair in a packed row: assumed


@dataclass
class Run:
    """The shape of a model without a vocabulary head (by default Qwen2.5-7B) and the arguments of its training."""

    layers: int = 28
    hidden: int = 3584
    heads: int = 28
    kv_heads: int = 4
    intermediate: int = 18944
    vocab: int = 152064
    head_size: int = 128
    gpus: int = 1
    zero3: bool = False
    lora: int = 0  # rank; 0 for full fine-tuning
    pairs: int = 4  # per GPU and micro-batch
    accumulation: int = 1
    max_length: int = 2048
    max_tokens: int = 0  # --max_tokens_per_micro_batch; 0 for no limit
    bf16: bool = True  # False for fp32 on a CPU
    checkpointing: bool = True
    card: str = "H100"

    @property
    def body(self) -> int:
        """Return the parameters of all layers: query, key, value, output, three matrices of the MLP, two norms."""
        heads = self.head_size * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * self.hidden * (heads + 3 * self.intermediate + 2)

    @property
    def parameters(self) -> int:
        """Return all parameters: the embedding, the layers, the last norm and the reward head."""
        return self.vocab * self.hidden + self.body + 2 * self.hidden

    @property
    def trained(self) -> int:
        """Return the parameters with a gradient: for LoRA, rank * (in + out) of each matrix, and the reward head."""
        sides = 7 * self.hidden + 2 * self.head_size * (self.heads + self.kv_heads) + 3 * self.intermediate
        return self.layers * self.lora * sides + self.hidden if self.lora else self.parameters

    def memory(self) -> dict[str, float]:
        """Return the GB per GPU at the peak, by part, for the largest possible row."""
        shards = self.gpus if self.zero3 else 1
        row = self.pairs * 2 * self.max_length  # every side of maximal length, nothing shared
        if self.max_tokens:  # a pair is never split
            row = min(row, max(self.max_tokens, 2 * self.max_length))
        size = 2 if self.bf16 else 4
        # 16 bytes: weight, gradient, two Adam moments in fp32; under ZeRO-3 weight and gradient in bf16, and master
        # weight and moments in fp32. 2 bytes: autocast's bf16 copy of the weight.
        states = self.trained * (16 / shards + (2 if self.bf16 and not (self.zero3 or self.lora) else 0))
        widths = 8 * self.hidden + 4 * self.head_size * self.kv_heads + 4 * self.intermediate
        layer = row * (size * widths + 16 * self.hidden)  # stored by one layer for backward; norms compute in fp32
        kept = row * size * self.hidden * self.layers + 2 * layer if self.checkpointing else self.layers * layer
        parts = {
            "frozen weights": 2 * self.parameters / shards if self.lora else 0,
            "weights, gradients, Adam": states,
            "gathered layers": 2 * min(self.parameters, 1e9) if self.zero3 else 0,  # stage3_max_live_parameters
            "activations": kept,
            "CUDA and NCCL, assumed": 2e9 if self.bf16 else 0,
        }
        return {name: part / 1e9 for name, part in parts.items()}

    def merge(self) -> tuple[float, float]:
        """Return the GB of main memory and the minutes that merging a LoRA adapter takes.

        Counted are reading and writing the weights, ten passes over them, and the reference scores.
        """
        scores = 2 * self.body * SCORED / (GPU_FP32 if 4 * self.parameters + 4e9 < 0.75 * 80e9 else CPU_FP32)
        weights = 4 * self.parameters / DISK + 10 * 4 * self.parameters / CPU_MEMORY
        return 4 * self.parameters / 1e9, (weights + scores) / 60

    def hours(self) -> float:
        """Return the hours of one epoch over PAIRS."""
        passes = 2 + (2 if self.lora else 4) + 2 * self.checkpointing  # forward, backward, recomputation
        attention = passes * POSITIONS * self.head_size * self.heads * self.layers
        compute = (passes * self.body + attention) * POSITIONS * PAIRS / self.gpus / PEAK[self.card] / UTILIZATION
        # Each bf16 weight is gathered for forward, recomputation and backward; gradients are reduced once.
        moved = (3 if self.lora else 4) * 2 * self.parameters * PAIRS / (self.pairs * self.gpus)
        return max(compute, moved / (8 * LINK) if self.zero3 and self.gpus > 8 else 0) / 3600


TRAIN_SH = Run(zero3=True, pairs=8, max_tokens=16384)  # the defaults of train.sh
QWEN_72 = replace(TRAIN_SH, layers=80, hidden=8192, heads=64, kv_heads=8, intermediate=29568)
RECIPES = {
    "Qwen3-0.6B, full, 1 x 24 GB": Run(28, 1024, 16, 8, 3072, 151936, accumulation=16, card="4090"),
    "Qwen2.5-7B, full, 4 x 80 GB": replace(TRAIN_SH, gpus=4, accumulation=2),
    "Qwen2.5-7B, full, 8 x 80 GB": replace(TRAIN_SH, gpus=8),
    "Qwen2.5-7B, LoRA, 1 x 80 GB": Run(lora=32, pairs=8, accumulation=8),
    "Qwen2.5-7B, LoRA, 1 x 24 GB": Run(lora=16, pairs=1, accumulation=64, card="4090"),
    "Qwen2.5-32B, LoRA, 4 x 80 GB": replace(
        TRAIN_SH, layers=64, hidden=5120, heads=40, kv_heads=8, intermediate=27648, lora=32, gpus=4, accumulation=2
    ),
    "Qwen2.5-72B, LoRA, 2 x 8 x 80 GB": replace(QWEN_72, lora=32, gpus=16, pairs=4),
    "Qwen2.5-72B, full, 4 x 8 x 80 GB": replace(QWEN_72, gpus=32, pairs=2),
}


def table_row(name: str) -> str:
    """Return the Markdown table row of a recipe."""
    run = RECIPES[name]
    parts, step = list(run.memory().values()), run.pairs * run.accumulation * run.gpus
    states, rest = sum(parts[:2]), sum(parts[2:])
    return f"| {name} | {step} | {states:.1f} | {rest:.1f} | {states + rest:.0f} | {run.hours():.1f} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=RECIPES)
    for field in fields(Run):
        parser.add_argument(f"--{field.name}", type=(lambda word: word == "True") if field.type is bool else field.type)
    given = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    if not given:
        print("\n".join(map(table_row, RECIPES)))
    else:
        run = Run(**(asdict(RECIPES.get(given.pop("recipe", ""), Run())) | given))
        print(f"{run.parameters / 1e9:.2f} billion parameters, {run.trained / 1e9:.3f} trained. GB per GPU, estimated:")
        for part, value in [*run.memory().items(), ("together", sum(run.memory().values()))]:
            print(f"{value:8.1f}  {part}")
        if run.lora:
            print("Merging the adapter takes {:.0f} GB of main memory and {:.1f} minutes.".format(*run.merge()))
        print(f"{run.hours():8.1f}  hours for {PAIRS:,} pairs of {POSITIONS:,} positions, on {run.card}")
