"""Merge a LoRA adapter trained with train.py --use_peft into its base model, for Transformers and vLLM.

python merge_lora.py save/my-run/checkpoint-100 save/my-merged-model
"""

import argparse
import shutil
import signal
import sys
from pathlib import Path
from shlex import quote

from reward_model import InputError, print_traceback
from reward_model.model.lora import check_adapter, merge_adapter


def main() -> None:
    """Run the command-line interface."""
    parser = argparse.ArgumentParser(description="Merge a LoRA adapter with a trained reward head into its base model.")
    parser.add_argument("adapter", type=Path, help="directory that contains adapter_config.json")
    parser.add_argument("output_dir", type=Path, help="directory for the merged model; must not exist")
    parser.add_argument("--base_model", help="directory or Hub id; default: the base model recorded in the adapter")
    parser.add_argument("--force", action="store_true", help="merge even if the base model has different weights")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    args = parser.parse_args()
    if args.output_dir.exists():
        raise InputError(f"{args.output_dir} already exists. Pass a new directory.")
    base_model = check_adapter(args.adapter, args.base_model, args.force)
    from reward_model.training.checkpointing import report_disk_full  # takes seconds to import

    try:
        args.output_dir.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{args.output_dir} cannot be written ({error.strerror}).") from error
    print(f"Merging {args.adapter} into {base_model}.")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with report_disk_full(args.output_dir):
            merge_adapter(args.adapter, base_model, args.output_dir, args.dtype)
    except KeyboardInterrupt:
        shutil.rmtree(args.output_dir)
        print("\nStopped; nothing was saved.", file=sys.stderr)
        sys.exit(130)
    print(f"Reward model: {args.output_dir}   Serve it: sh infer_vllm.sh {quote(str(args.output_dir))}")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # exit quietly on Ctrl-C while slow imports run
    try:
        main()
    except InputError as error:
        print_traceback()
        sys.exit(f"error: {error}")
