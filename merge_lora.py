"""Merge a LoRA adapter of train.py --use_peft into its base model, for Transformers and vLLM to load as it is.

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
    parser = argparse.ArgumentParser(description="Merge a LoRA adapter with a trained reward head into its base model.")
    parser.add_argument("adapter", type=Path, help="folder with adapter_config.json")
    parser.add_argument("output_dir", type=Path, help="folder for the merged model; must not exist yet")
    parser.add_argument("--base_model", help="folder or hub id, where the adapter's own entry does not lead to it")
    parser.add_argument("--force", action="store_true", help="merge onto another base than the adapter was trained on")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    args = parser.parse_args()
    if args.output_dir.exists():
        raise InputError(f"{args.output_dir} exists already; name a new folder.")
    base = check_adapter(args.adapter, args.base_model, args.force)
    from reward_model.training.checkpointing import report_disk_full  # takes seconds

    try:
        args.output_dir.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{args.output_dir}: nothing can be written there ({error.strerror}).") from None
    print(f"Merging {args.adapter} into {base}.")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with report_disk_full(args.output_dir):
            merge_adapter(args.adapter, base, args.output_dir, args.dtype)
    except KeyboardInterrupt:
        shutil.rmtree(args.output_dir)
        print("\nStopped; nothing was kept.", file=sys.stderr)
        sys.exit(130)
    print(f"Reward model: {args.output_dir}   Serve it: sh infer_vllm.sh {quote(str(args.output_dir))}")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C among imports would be a traceback
    try:
        main()
    except InputError as error:
        print_traceback()
        sys.exit(f"error: {error}")
