"""README and docs are correct: commands run, translations match, links resolve, and pictures are up to date."""

import doctest
import importlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers import ROOT, run, write_files

DOCS = ["README.md", *(f"docs/{file.name}" for file in sorted((ROOT / "docs").glob("*.md")))]
TRANSLATIONS = {name: name.replace("README", "README_zh").replace("docs/", "docs/zh/") for name in DOCS}
# Commands that install packages, run for hours, need a GPU, or serve until they are stopped.
NOT_RUN_HERE = (
    "make ",
    "sh train.sh",
    "MODEL=Qwen/",
    "NNODES=2",
    "sh infer_vllm.sh save/demo",
    ".venv/bin/python -m vllm",
    ".venv/bin/hf download",
)
# Arguments added to a command, so that it takes seconds.
SMALLER = {
    "training_speed": "--rounds 1 --pairs 4 --batch_size 2 --model tiny",
    "rank_balance": "--rounds 1 --pairs 16",
    "tokenizing_speed": "--rounds 1",
    "preparing_speed": "--pairs 1000",
    "scoring_speed": "--groups 2 --answers 2",
    "scoring_batch": "--pairs 4 --rounds 1 --tokens 512 1024",
    "serving_speed": "--requests 20 --rounds 1 --prompts 0",
}
LONGEST = "docs/benchmarks.md"  # runs in parallel with the other pages
ADDRESS = "http://127.0.0.1:5001"
# In place of the benchmarks that a page downloads.
JUDGEBENCH = {"question": "2 + 2?", "response_A": "4", "response_B": "5", "label": "A>B", "source": "mmlu-pro-math"}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def code_blocks(name: str) -> list[tuple[str, str]]:
    """Return the language and the code of each block of a page."""
    return re.findall(r"^```(\w*)\n(.*?)^```", read(name), re.M | re.S)


def headings(name: str) -> list[str]:
    without_code = re.sub(r"^```.*?^```", "", read(name), flags=re.M | re.S)
    return re.findall(r"^#+ .*", without_code, re.M)


def test_every_page_has_a_translation() -> None:
    assert {file.name for file in (ROOT / "docs/zh").glob("*.md")} == {Path(name).name for name in DOCS[1:]}


@pytest.mark.parametrize("name", DOCS)
def test_translation_has_the_same_code_and_structure(name: str) -> None:
    translation = TRANSLATIONS[name]
    assert code_blocks(name) == code_blocks(translation)
    levels = [[heading.split()[0] for heading in headings(page)] for page in (name, translation)]
    assert levels[0] == levels[1]
    assert read(name).count("\n|") == read(translation).count("\n|"), "the tables differ in their number of rows"
    assert read(name).count("\n- ") == read(translation).count("\n- "), "the lists differ in their number of items"


@pytest.mark.parametrize("name", [*DOCS, *TRANSLATIONS.values(), "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_and_pictures_exist(name: str) -> None:
    for target in re.findall(r'\]\(([^)\s]+)\)|src="([^"]+)"', read(name)):
        path, _, anchor = "".join(target).partition("#")
        file = (ROOT / name).parent / path
        assert file.exists(), path
        if anchor:
            titles = [heading.lstrip("# ").lower() for heading in headings(str(file.resolve().relative_to(ROOT)))]
            assert anchor in [re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles]


def test_commands_of_all_pages_run(base_model, runs, tmp_path) -> None:
    """Use a copy of the checkout, a tiny model instead of the demo model, and its server instead of port 5001."""
    checkout, served = tmp_path / "a fresh clone", runs["usual template"]
    for file in subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True).split():
        (checkout / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, checkout / file)
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "python").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    (checkout / ".venv" / "bin" / "python").chmod(0o755)
    (checkout / "models").mkdir()
    (checkout / "models" / "SmolLM2-135M-Instruct").symlink_to(base_model)
    (checkout / "save").mkdir()
    (checkout / "save" / "demo").symlink_to(served.model)
    write_files(checkout / "save/suite", {"judgebench.jsonl": [JUDGEBENCH]})
    client = checkout / "client.py"
    client.write_text(client.read_text(encoding="utf-8").replace(ADDRESS, served.url), encoding="utf-8")

    page_of: dict[tuple[str, str], str] = {}  # a block that several pages have runs once
    for page in DOCS:
        for block in code_blocks(page):
            page_of.setdefault(block, page)
    ran, skipped = [], []

    def run_pages(pages: Collection[str]) -> None:
        for language, code in (block for block, page in page_of.items() if page in pages):
            if language == "sh" and code.startswith(NOT_RUN_HERE):
                skipped.append(code)
            elif language in ("sh", "python"):
                more = next((arguments for name, arguments in SMALLER.items() if name in code), "")
                code = f"{code.strip()} {more}".replace(ADDRESS, served.url)
                command = [sys.executable if language == "python" else "sh", "-c", code]
                result = run(*command, cwd=checkout, OMP_NUM_THREADS="1")
                assert "Traceback" not in result.stderr
                ran.append(code)

    run_pages(["README.md"])  # other pages use its files
    with ThreadPoolExecutor() as pool:  # imports, which take most of the time, use one core
        list(pool.map(run_pages, ([LONGEST], {*DOCS[1:]} - {LONGEST})))
    assert ran
    assert all(any(code.startswith(prefix) for code in skipped) for prefix in NOT_RUN_HERE), "no page has this command"
    assert (checkout / "save/zh-merged/model.safetensors").exists()


def test_examples_of_the_design_page_run() -> None:
    for code in (code for language, code in code_blocks("docs/design.md") if language == "pycon"):
        example = doctest.DocTestParser().get_doctest(code, {}, "docs/design.md", None, 0)
        assert doctest.DocTestRunner().run(example).failed == 0


def test_demo_data_is_balanced() -> None:
    run(sys.executable, "-m", "data.demo.check")


def test_requirement_files_differ_only_in_torch_vllm_and_bitsandbytes() -> None:
    gpu, cpu = (
        {line for line in read(name).splitlines() if not line.startswith("#")}
        for name in ("requirements.txt", "requirements-cpu.txt")
    )
    assert {re.split("[=-]", line)[0] for line in gpu ^ cpu} == {"torch", "vllm", "bitsandbytes"}
    assert all("==" in line for line in gpu | cpu), "not pinned"


@pytest.mark.parametrize("script", ["train.sh", "infer_vllm.sh", "data/demo/run.sh"])
def test_scripts_are_valid_sh(script: str) -> None:
    run("sh", "-n", ROOT / script)


@pytest.mark.parametrize("picture", [file.stem for file in sorted((ROOT / "docs").glob("*.svg"))])
def test_picture_is_up_to_date(picture: str) -> None:
    assert importlib.import_module(f"docs.draw_{picture}").draw() == read(f"docs/{picture}.svg")
