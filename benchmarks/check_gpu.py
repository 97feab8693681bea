"""What only a GPU can show, as a table to paste: `make check-gpu`. Not run on a GPU yet.

    python -m benchmarks.check_gpu            # needs a CUDA GPU of compute capability 8.0 or newer; about 10 minutes
    python -m benchmarks.check_gpu --dry_run  # tries this script on a CPU with tiny sizes: proves nothing

Needs torch 2.11 or newer, transformers, accelerate, peft, trl and datasets, and no network. Exits with 1 if a row of
the table says FAILED.
"""

import argparse
import importlib.util
import itertools
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForSequenceClassification, LlamaConfig, PreTrainedTokenizerFast

import train as train_script
from benchmarks.generated import WORDS
from benchmarks.training_speed import ROOT
from reward_model.model import attention
from reward_model.model.attention import sequence_attention
from reward_model.model.modeling import install
from reward_model.model.packing import pack
from reward_model.model.packing_check import choose_attention
from reward_model.training.collator import PairCollator

Row = tuple[str, str, bool]  # what was checked, what was found, whether that is right
TINY = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8}
BIG = {"hidden_size": 1024, "intermediate_size": 5120, "num_hidden_layers": 28, "num_attention_heads": 16}  # 0.5 B


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def kernel(device: str, tokens: int) -> Iterator[Row]:
    """varlen_attn in half precision against SDPA in fp32, output and gradients of a row of trees and pairs."""
    parts = [(9, [5, 7, 3, 8]), (0, [6, 2]), (3, [4, 4])]
    row = pack([([0] * (p * tokens), [[0] * (b * tokens) for b in branches]) for p, branches in parts])
    sequences = [row[name] for name in ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")]
    sequences = [value.to(device) if isinstance(value, torch.Tensor) else value for value in sequences]
    index = row["key_index"].to(device)
    kinds = itertools.product((torch.bfloat16, torch.float16), (64, 128), (8, 2), (None, 4 * tokens))
    for dtype, size, key_heads, window in kinds:
        torch.manual_seed(0)
        shapes = [(row["input_ids"].shape[1], heads, size) for heads in (8, key_heads, key_heads)]
        states = [torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for shape in shapes]
        results = []
        for attend, cast in ((attention._varlen_attention, dtype), (sequence_attention, torch.float32)):
            query, key, value = (part.to(cast) for part in states)
            output = attend(query, key[index], value[index], *sequences, scale=size**-0.5, window=window)
            results.append([output, *torch.autograd.grad((output.float() ** 2).sum(), states)])
        worst = max(difference(found, expected) for found, expected in zip(*results, strict=True))
        name = f"varlen_attn, {str(dtype)[6:]}, head {size}, {key_heads} of 8 key heads, window {window}"
        yield name, f"differs by {worst:.1e} from SDPA in fp32", worst < 2e-2


def model(device: str, sizes: dict[str, int]) -> Iterator[Row]:
    """Rewards and gradients of packed and of padded pairs in bf16, both against padded pairs in fp32."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=2048, num_labels=1, pad_token_id=0, num_key_value_heads=2, **sizes)
    net = AutoModelForSequenceClassification.from_config(config).to(device)
    install(net)
    choose_attention(net, 0)
    prefix, *answers = (torch.randint(3, 2048, (length,)).tolist() for length in (90, 70, 40, 100, 60))
    pairs = itertools.combinations([prefix + answer for answer in answers], 2)
    examples = [{"prompt": "p", "chosen_ids": chosen, "rejected_ids": rejected} for chosen, rejected in pairs]
    results = []
    for shared_prefix, half in ((False, False), (False, True), (True, True)):
        batch = PairCollator(0, shared_prefix=shared_prefix)(examples)
        batch = {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in batch.items()}
        net.zero_grad()
        with torch.autocast(device, torch.bfloat16, half):
            chosen, rejected = net(**batch, use_cache=False).logits.squeeze(-1).chunk(2)
        (-torch.nn.functional.logsigmoid(chosen - rejected).mean()).backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in net.parameters()])
        results.append((torch.cat([chosen, rejected]).detach(), gradient))
    for number, name in enumerate(("rewards", "gradients")):
        exact, padded, packed = (result[number] for result in results)
        padded, packed = difference(padded, exact), difference(packed, exact)
        text = f"padded differ by {padded:.1e}, packed by {packed:.1e} from padded in fp32"
        yield f"{name} of a tree in bf16", text, packed < 2 * padded + 1e-3


def folder_of_a_model(folder: Path, sizes: dict[str, int]) -> Path:
    """A random Llama with grouped heads, and a tokenizer that was trained here."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made = trainers.BpeTrainer(vocab_size=2048, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator([" ".join(WORDS)] * 9 + [(ROOT / "data/demo/train.jsonl").read_text("utf-8")], made)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = (ROOT / "data/demo/chatml.jinja").read_text("utf-8")
    tokenizer.save_pretrained(folder)
    positions = {"max_position_embeddings": 8192, "num_key_value_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), num_labels=1, pad_token_id=0, **positions, **sizes)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return folder


def training(folder: Path, sizes: dict[str, int]) -> Iterator[Row]:
    """A few steps of train.py on packed rows and on padded ones."""
    base = folder_of_a_model(folder / "small", sizes)
    losses = []
    for shared_prefix in ("True", "False"):
        paths = ["--model_name_or_path", base, "--dataset_name", ROOT / "data/demo/train.jsonl"]
        more = "--max_steps 5 --logging_steps 1 --report_to none --save_strategy no --eval_strategy no --shared_prefix"
        words = [*paths, "--output_dir", folder / shared_prefix, *more.split(), shared_prefix]
        trainer = train_script.main(list(map(str, words)))
        losses.append([log["loss"] for log in trainer.state.log_history if "loss" in log])
    worst = max(abs(packed - padded) for packed, padded in zip(*losses, strict=True))
    yield "5 steps of train.py, packed and padded", f"losses differ by at most {worst:.1e}", worst < 2e-2


def speed(folder: Path, sizes: dict[str, int], run: str) -> Iterator[Row]:
    """benchmarks/training_speed.py, whose own table is printed above; this one has its ratios."""
    base = folder_of_a_model(folder / "big", sizes)
    for stock, data in itertools.product(
        ("sdpa", "flash_attention_2"), ("dialogues --batch_size 8", "lists --batch_size 6")
    ):
        name = f"training_speed, {data}, stock with {stock}"
        if stock == "flash_attention_2" and not importlib.util.find_spec("flash_attn"):
            yield name, "NOT RUN: flash_attn is not installed", True
            continue
        words = f"--data {data} {run} --stock_attention {stock}".split()
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.training_speed", "--model", base, *words],
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        print(done.stdout[done.stdout.rfind("\n\n") :], done.stderr[-2000:] if done.returncode else "")
        ratios = [line for line in done.stdout.splitlines() if line.startswith("step ratio")]
        yield name, "; ".join(ratios) or f"exit status {done.returncode}", done.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry_run", action="store_true")
    dry = parser.parse_args().dry_run
    device, small, big, run = "cuda", SMALL, BIG, "--pairs 96 --rounds 3"
    if dry:
        device, small, big, run = "cpu", TINY, TINY, "--pairs 24 --rounds 1"
        attention._varlen_attention = sequence_attention
    elif not (torch.cuda.is_available() and attention._has_kernel(torch.device("cuda"))):
        sys.exit("error: torch finds no CUDA GPU of compute capability 8.0 or newer, and this is about nothing else.")
    machine = "DRY RUN on a CPU: this proves nothing" if dry else torch.cuda.get_device_name()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        groups = (
            kernel(device, 2 if dry else 50),
            model(device, small),
            training(folder, small),
            speed(folder, big, run),
        )
        rows = [row for group in groups for row in group]
    print(f"\n{machine}, torch {torch.__version__}\n\n| check | found | |\n|---|---|---|")
    for name, found, right in rows:
        print(f"| {name} | {found} | {'ok' if right else 'FAILED'} |")
    sys.exit(not all(right for _, _, right in rows))


if __name__ == "__main__":
    main()
