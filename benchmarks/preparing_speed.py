"""Measure the rows per second and the peak memory of prepare_data.py on generated pairs of 3 KB each.

    python -m benchmarks.preparing_speed --pairs 1000000

Needs disk space for three copies of the data in --directory: the source, the validated pairs, and the output.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
WORDS = (
    "the of to and a in is it you that he was for on are with as his they at be this from have or by one had".split()
)


def generate(path: Path, number: int) -> None:
    """Write pairs of about 3 KB: 60 words in a prompt and 250 in an answer on average, with lognormal lengths."""
    random = np.random.default_rng(0)
    text = " ".join(random.choice(WORDS, 100_000))
    with open(path, "w") as file:
        for pair in tqdm(range(number), desc="generating", unit=" pairs", unit_scale=True):
            lengths = (random.lognormal(0, 0.6, 3) * (250, 1050, 1050)).astype(int) + 10
            starts = random.integers(0, len(text) - 20_000, 3)
            prompt, *answers = (
                text[start : start + min(length, 20_000)] for start, length in zip(starts, lengths, strict=True)
            )
            user = {"role": "user", "content": f"{pair}: {prompt}"}
            sides = ([user, {"role": "assistant", "content": f"{answer}."}] for answer in answers)
            file.write(json.dumps(dict(zip(("chosen", "rejected"), sides, strict=True))) + "\n")


def memory(process: psutil.Process) -> int:
    """Return the bytes used by a process and its children; shared pages are counted once per process."""
    total = 0
    for member in (process, *process.children(recursive=True)):
        try:
            total += member.memory_info().rss
        except psutil.NoSuchProcess:  # the process has ended
            continue
    return total


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--directory", type=Path, help="directory for temporary files (default: the system's)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.directory) as directory:
        source = Path(directory, "source.jsonl")
        generate(source, args.pairs)
        start, peak = time.perf_counter(), 0
        command = [sys.executable, ROOT / "prepare_data.py", source, "--output", Path(directory, "pairs.jsonl")]
        process = psutil.Popen([str(part) for part in command])
        while process.poll() is None:
            peak = max(peak, memory(process))
            time.sleep(0.1)
        seconds = time.perf_counter() - start
        size = source.stat().st_size / 1e9
    if process.returncode:
        sys.exit(f"error: prepare_data.py exited with status {process.returncode}")
    speed = f"{seconds:.0f} s, {args.pairs / seconds:,.0f} rows/s"
    print(f"{args.pairs:,} pairs, {size:.2f} GB: {speed}, peak {peak / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
