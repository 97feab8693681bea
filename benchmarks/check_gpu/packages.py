"""Find the packages that a bare GPU machine lacks, and download their wheels on a machine with a network.

Only the standard library is imported here, so that a missing package is reported at once.
"""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
REQUIRED = ("torch", "transformers", "accelerate", "peft", "datasets", "trl", "orjson")
# Without these, only the runs of train.sh are skipped.
DEEPSPEED = ("deepspeed", "hjson", "pydantic", "msgpack", "ninja", "psutil", "cpuinfo", "einops")
# Packages that training images usually lack, with the versions in requirements.txt unless given here. datasets 5.2.0
# needs dill below 0.4.2 and multiprocess below 0.70.20.
WHEELS = ("trl", "datasets", "dill==0.4.1", "multiprocess==0.70.19", "orjson", "peft", "hjson")
WITH_DEPENDENCIES = ("pydantic",)  # needs an exact version of pydantic_core
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def missing(names: tuple[str, ...]) -> list[str]:
    """Return the modules that are not installed."""
    return [name for name in names if not find_spec(name)]


def check_required() -> None:
    """If a required package is missing, exit with the commands that install it."""
    if names := missing(REQUIRED):
        sys.exit(
            f"error: {', '.join(names)} not installed for {sys.executable}. On a machine with a network run\n"
            "  python -m benchmarks.check_gpu --wheels wheels\n"
            "copy the directory here and install it:\n"
            f"  {sys.executable} -m pip install --no-index --no-deps wheels/*.whl"
        )


def download(directory: Path) -> None:
    """Download the wheels for Python 3.12 on x86-64 Linux into a directory, and build DeepSpeed's from its sdist."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.split("==")[0]: line for line in lines if "==" in line}
    pip = [sys.executable, "-m", "pip"]
    target = ["--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp"]
    target += [word for platform in PLATFORMS for word in ("--platform", platform)]
    fetch = [*pip, "download", "--quiet", "--dest", str(directory), *target]
    subprocess.run([*fetch, "--no-deps", *(pinned.get(name, name) for name in WHEELS)], check=True)
    subprocess.run([*fetch, *WITH_DEPENDENCIES], check=True)
    build = [*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(directory), pinned["deepspeed"]]
    subprocess.run(build, check=True)
    files = sorted(directory.glob("*.whl"))
    for file in files:
        print(f"{file.stat().st_size / 2**20:6.2f} MiB  {file.name}")
    print(f"{sum(file.stat().st_size for file in files) / 2**20:6.2f} MiB  in total")
    print(f"Install them with: python3 -m pip install --no-index --no-deps {directory}/*.whl")
