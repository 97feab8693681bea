"""The READMEs tell the truth: their commands run, both have the same ones, and the demo data keeps its promises."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run

# Commands that set up this environment or start this test run, need a GPU, or are run in test_parity (the server).
NOT_RUN_HERE = ["make ", "sh train.sh", "MODEL=Qwen/", "NNODES=2", "sh infer_vllm.sh save/demo"]


def code_blocks(readme: str, language: str = "") -> list[str]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / readme).read_text(encoding="utf-8"), re.M | re.S)
    return [code for name, code in blocks if language in ("", name)]


def test_both_readmes_have_the_same_code_and_structure() -> None:
    assert code_blocks("README.md") == code_blocks("README_zh.md")
    headings = [
        [line.split()[0] for line in (ROOT / name).read_text(encoding="utf-8").splitlines() if line.startswith("#")]
        for name in ("README.md", "README_zh.md")
    ]
    assert headings[0] == headings[1]


def test_commands_of_the_readme(base_model, runs, tmp_path) -> None:
    """In a copy of the checkout, with a tiny model in the place of the demo's."""
    checkout = tmp_path / "a fresh clone"
    for file in subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True).split():
        (checkout / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, checkout / file)
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "python").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    (checkout / ".venv" / "bin" / "python").chmod(0o755)
    (checkout / "models").mkdir()
    (checkout / "models" / "SmolLM2-135M-Instruct").symlink_to(base_model)
    (checkout / "save").mkdir()
    served = runs["usual template"]
    (checkout / "save" / "demo").symlink_to(served.model)

    ran = 0
    for command in code_blocks("README.md", "sh"):
        if command.startswith(tuple(NOT_RUN_HERE)):
            continue
        if "client.py" in command:
            command = command.replace("client.py", f"client.py --base_url {served.url}")
        command = command.replace("http://127.0.0.1:5001", served.url)
        if "training_speed" in command:
            command = command.strip() + " --rounds 1 --pairs 4 --batch_size 2"
        if "tokenizing_speed" in command:
            command = command.strip() + " --rounds 1"
        shown = run("sh", "-c", command, cwd=checkout)
        assert "Traceback" not in shown.stderr
        ran += 1
    assert ran >= 6
    assert (checkout / "save/zh-merged/model.safetensors").exists()


def test_demo_data_keeps_its_promises() -> None:
    run(sys.executable, "-m", "data.demo.check")


def test_requirement_files_differ_in_torch_and_vllm_only() -> None:
    gpu, cpu = (
        {line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")}
        for name in ("requirements.txt", "requirements-cpu.txt")
    )
    assert {re.split("[=-]", line)[0] for line in gpu ^ cpu} == {"torch", "vllm"}


@pytest.mark.parametrize("script", ["train.sh", "infer_vllm.sh", "data/demo/run.sh"])
def test_scripts_parse_under_sh(script: str) -> None:
    run("sh", "-n", ROOT / script)


def test_picture_is_drawn_from_the_masks(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs/draw_packed_row.py", tmp_path / "docs")
    run(sys.executable, tmp_path / "docs/draw_packed_row.py", PYTHONPATH=str(ROOT))
    assert (tmp_path / "docs/packed_row.svg").read_text() == (ROOT / "docs/packed_row.svg").read_text()
