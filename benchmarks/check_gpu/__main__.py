"""Check on a CUDA GPU what a CPU cannot show, and print a Markdown table.

    python -m benchmarks.check_gpu                        # compute capability 8.0 or newer; all groups
    python -m benchmarks.check_gpu --groups kernel tf32   # some of them
    python -m benchmarks.check_gpu --dry_run              # on a CPU with tiny sizes: checks this script, not the GPU
    python -m benchmarks.check_gpu --wheels wheels        # download wheels for a machine without a network

Needs torch 2.11 or newer, transformers 5.17 or newer, and no network. Each row is printed and appended to --output as
soon as it is known. The exit status is 1 if a row is FAILED. The groups, in order:

    kernel     varlen_attn in bf16 and fp16 against SDPA in fp32, output and gradients
    gradients  rewards and gradients of 4 layers of Qwen2.5-7B's width: padded and packed in bf16, against fp32
    noise      rewards from 28 layers in bf16: packed against padded, a padded batch against one by one
    speed      positions/s, pairs/s, MFU and memory of LoRA training: padded, packed, trees of 4 and 7 responses
    training   train.py packed and padded; train.sh (ZeRO-3 on one rank), full and LoRA
    tf32       precision of an fp32 product in Triton, which vLLM uses for fp32 attention
"""

import argparse
import gc
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

from benchmarks.check_gpu.packages import check_required, download
from benchmarks.check_gpu.table import Row, Table, device_description

GROUPS = ("kernel", "gradients", "noise", "speed", "training", "tf32")


def load_groups(dry_run: bool) -> dict[str, Callable[[], Iterator[Row]]]:
    """Return the functions of the groups, with their sizes. The imports take about 10 seconds."""
    from functools import partial

    import torch

    from benchmarks.check_gpu import models, numerics, speed, tf32, training
    from reward_model.model import attention

    if dry_run:
        device, attend, tokens, sizes = "cpu", attention.sequence_attention, 1, models.TINY
    elif torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0):
        device, attend, tokens, sizes = "cuda", attention._varlen_attention, 50, models.QWEN_7B
    else:
        sys.exit("error: torch finds no CUDA GPU of compute capability 8.0 or newer. Pass --dry_run to try the script.")
    functions = (
        partial(numerics.kernel, device, tokens, attend),
        partial(numerics.gradients, device, sizes | {"num_hidden_layers": 2 if dry_run else 4}),
        partial(numerics.noise, device, sizes, pairs=2 if dry_run else 24),
        partial(speed.speed, device, sizes, (128,) if dry_run else (8192, 16384), attend),
        partial(training.training, models.TINY if dry_run else models.ONE_BILLION, dry_run),
        partial(tf32.tf32, device),
    )
    return dict(zip(GROUPS, functions, strict=True))


def run_groups(groups: dict[str, Callable[[], Iterator[Row]]], table: Table) -> None:
    """Add the rows of all groups to the table; an error in a group becomes a row and does not stop the run."""
    import torch

    for name, group in groups.items():
        started = time.perf_counter()
        try:
            for row in group():
                table.add(name, row)
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            table.add(name, Row("error", f"{type(error).__name__}: {str(error)[:300]}", False))
        table.add(name, Row("time of this group", f"{time.perf_counter() - started:.0f} s"))
        # A model refers to itself through its replaced `forward`, so only the garbage collector frees its memory.
        gc.collect()
        torch.cuda.empty_cache()  # does nothing without a GPU


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry_run", action="store_true")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=GROUPS)
    parser.add_argument("--output", type=Path, default=Path("save/check_gpu.md"), help="default: %(default)s")
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="download wheels to this directory and exit")
    args = parser.parse_args(argv)
    if args.wheels:
        download(args.wheels)
        return
    check_required()
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    # As train.sh sets it: every batch has a different length.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    groups = load_groups(args.dry_run)
    title = "DRY RUN on a CPU: this proves nothing" if args.dry_run else device_description()
    table = Table(args.output, f"{title}, {date.today()}")
    run_groups({name: groups[name] for name in args.groups}, table)
    sys.exit(table.finish())


if __name__ == "__main__":
    main()
