"""Keep the table of results: print each row and append it to a file as soon as it is known."""

import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from benchmarks.check_gpu.packages import ROOT


class Row(NamedTuple):
    """One result. `passed` is None if the row is not a check."""

    check: str
    result: str
    passed: bool | None = None


class Table:
    """A Markdown table in a file, one line appended per row.

    Args:
        file: The file, which is overwritten.
        title: The line above the table.
    """

    def __init__(self, file: Path, title: str) -> None:
        self.file, self.failed = file, 0
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("", encoding="utf-8")
        self._append(f"{title}\n\n| group | check | result | |\n|---|---|---|---|")

    def add(self, group: str, row: Row) -> None:
        """Append a row."""
        self.failed += row.passed is False
        mark = {None: "", True: "ok", False: "FAILED"}[row.passed]
        result = row.result.replace("|", "/").replace("\n", " ")
        self._append(f"| {group} | {row.check} | {result} | {mark} |")

    def finish(self) -> int:
        """Print the path of the table, and return the exit status."""
        print(
            f"\n{self.failed} rows FAILED. Table: {self.file}" if self.failed else f"\nAll passed. Table: {self.file}"
        )
        return int(self.failed > 0)

    def _append(self, line: str) -> None:
        print(line, flush=True)
        with open(self.file, "a", encoding="utf-8") as output:
            output.write(line + "\n")


def device_description() -> str:
    """Return the GPU, the versions of the libraries and, if git is installed, the commit."""
    import torch

    parts = [torch.cuda.get_device_name(), f"CUDA {torch.version.cuda}"]
    for name in ("torch", "transformers", "trl", "peft", "deepspeed", "triton"):
        try:
            parts.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    if shutil.which("git"):
        command = ["git", "describe", "--always", "--dirty"]
        commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
        parts += [f"commit {commit}"] if commit else []
    return ", ".join(parts)
