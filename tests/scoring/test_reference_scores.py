"""Reference scores: a server with other scores than the model was saved with is stopped, with the cause."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import CHATML, ENDS_WITH_EOS, PAIRS, ROOT, VARIANTS, Server, free_port, is_gone, jsonl, run
from safetensors.torch import load_file, save_file

import client
import evaluate
from infer_transformers import infer_transformers
from reward_model import InputError
from reward_model.model.reference_scores import FILE
from reward_model.scoring.reference_check import check_reference_scores

MEAN = '{"pooling_type": "MEAN", "use_activation": false}'
USUAL, ENDS = list(VARIANTS)[:2]


def change_weights(change: Callable[[str, torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        file = folder / "model.safetensors"
        weights = {name: change(name, tensor).contiguous() for name, tensor in load_file(file).items()}
        save_file(weights, file, {"format": "pt"})

    return apply


def template(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "chat_template.jinja").write_text(text)


def in_steps(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """As eight bits with one scale for each row would keep it."""
    step = (tensor.abs().amax(-1, keepdim=True) / 127).clamp(min=1e-9)  # the row of a pad token may be zero
    return (tensor / step).round() * step if tensor.dim() == 2 else tensor


def another_tokenizer(folder: Path) -> None:
    """The same alphabet without merges: every text has other tokens."""
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:40]
    file.write_text(json.dumps(tokenizer))


def noise(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """As another adapter would leave it: the attention's projections moved."""
    moved = tensor + 0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1))
    return moved if "_proj" in name else tensor


WITHOUT_LAST_EOS = ENDS_WITH_EOS.replace("+ eos_token }}", "}}{% if not loop.last %}{{ eos_token }}{% endif %}")
SYSTEM = "{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}"
# The server, what is changed in a copy of its model before the reference scores are written, and the cause reported.
FAULTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "appended token": (ENDS, template(WITHOUT_LAST_EOS), "the server appends '<.im_end.>' to the conversation"),
    "system message": (USUAL, template(SYSTEM + CHATML), r"the server leaves out '<.im_start.>system\\nBe kind"),
    "other template": (
        USUAL,
        template(CHATML.replace("start|>", "start|> ")),
        "chat template: at character 13",
    ),
    "other checkpoint": (USUAL, change_weights(lambda _, weight: weight.roll(1, 0)), "tokens but different weights"),
    "other adapter": ("LoRA, merged", change_weights(noise), "tokens but different weights"),
    "other tokenizer": (USUAL, another_tokenizer, "the same text has different tokens"),
}


# Drift is not a fault: it is reported with its figure, and the server continues.
DRIFTS = {
    "weights in bf16": (lambda _, it: it.bfloat16().float(), "bfloat16 explains it"),
    "weights in 8 bits": (in_steps, "are rounded|coarsely rounded"),
}


@pytest.mark.parametrize("drift", DRIFTS)
def test_rounded_weights_are_reported(runs, drift: str, tmp_path: Path) -> None:
    folder = shutil.copytree(runs[USUAL].model, tmp_path / "changed")
    change_weights(DRIFTS[drift][0])(folder)
    evaluate.reference(evaluate.parse_arguments(["reference", str(folder)]))
    found = check_reference_scores(folder, client.RewardClient(runs[USUAL].url))
    warning = rf"^warning: scores differ by up to 0\.\d+, but rounding explains only 0.0005: .*({DRIFTS[drift][1]})"
    assert re.search(warning, found)


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_against_the_server(runs, fault: str, tmp_path: Path) -> None:
    name, change, cause = FAULTS[fault]
    folder = shutil.copytree(runs[name].model, tmp_path / "changed")
    change(folder)
    evaluate.reference(evaluate.parse_arguments(["reference", str(folder)]))
    with pytest.raises(InputError, match=cause) as error:
        check_reference_scores(folder, client.RewardClient(runs[name].url))
    print(f"{fault}: {error.value}")


def test_a_sigmoid_is_reported(runs, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = client.RewardClient(runs[USUAL].url)
    body = judge.body
    monkeypatch.setattr(judge, "body", lambda *args: body(*args) | {"use_activation": True})
    with pytest.raises(InputError, match="the server applies a sigmoid; start it with use_activation false"):
        check_reference_scores(runs[USUAL].model, judge)


def test_a_clean_server_passes(runs) -> None:
    for name, one in runs.items():  # a template that renders reasoning has a conversation more
        found, count = check_reference_scores(one.model, client.RewardClient(one.url)), 14 if "LoRA" in name else 13
        start = f"{count} scores match the reference scores of "
        assert found.startswith(start) and float(found.split("within ")[1][:7]) < 1e-4, found
        log = one.log.read_text()
        assert start in log and "Ready. Try it: " in log
        assert log.startswith("Starting ") and "serving" not in log.splitlines()[0]
    shown = run(sys.executable, "client.py", "check", "--model_dir", one.model, "--base_url", one.url).stdout
    assert shown.startswith("14 scores match the reference scores")


def test_scores_that_are_not_finite_are_refused(base_model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(base_model, num_labels=1)
    model.score.weight.data[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(base_model).save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match="non-finite"):
        evaluate.reference(evaluate.parse_arguments(["reference", str(tmp_path / "model")]))
    conversations = [{"messages": [], "tools": None, "score": float("nan")}]
    (tmp_path / FILE).write_text(json.dumps({"conversations": conversations}))
    with pytest.raises(InputError, match="not finite"):
        check_reference_scores(tmp_path, client.RewardClient())


def test_changes_in_the_directory_are_reported(runs, tmp_path: Path) -> None:
    """Without tokens or scores: a template, the pad token (eos again, where Transformers looks for the end)."""
    one = runs[ENDS]
    judge = client.RewardClient(one.url)
    folder = shutil.copytree(one.model, tmp_path / "changed")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": config["eos_token_id"]}))
    with pytest.raises(InputError, match="pad_token_id in .* was changed"):
        check_reference_scores(folder, judge)
    (folder / "config.json").write_text(json.dumps(config))
    template(CHATML)(folder)
    with pytest.raises(InputError, match=r"chat_template\.jinja was changed after the reference scores"):
        check_reference_scores(folder, judge)
    (folder / FILE).unlink()
    missing = "has no reference_scores.json, so the served scores are not checked; write them with: python evaluate.py"
    assert missing in check_reference_scores(folder, judge)


def zero_head(folder: Path) -> list[str]:
    change_weights(lambda name, weight: weight * (name != "score.weight"))(folder)
    return ["--dtype=bfloat16", "--served_model_name", "judge", "second-name"]


# What is changed in a model with reference scores, and the flags it is served with; and the error of infer_vllm.sh.
STARTS: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "mean": (lambda _: ["--pooler-config", MEAN], "the server uses mean pooling over all tokens; start it with"),
    "zero": (zero_head, "the served reward head is zero"),
}


@pytest.mark.slow
def test_a_server_with_other_scores_is_stopped(runs, tmp_path: Path) -> None:
    """Two at once; no process is left behind. test_client.py has the other causes."""
    started = {}
    for name, (prepare, _) in STARTS.items():
        folder = shutil.copytree(runs[USUAL].model, tmp_path / name)
        command = ["sh", "infer_vllm.sh", str(folder), "--max-model-len", "512", *prepare(folder)]
        env = {**os.environ, "PORT": str(free_port()), "VLLM_CPU_KVCACHE_SPACE": "1"}
        log = open(tmp_path / f"{name}.log", "w")  # noqa: SIM115
        started[name] = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True)
    for name, (_, message) in STARTS.items():
        assert started[name].wait(timeout=480) == 1
        text = (tmp_path / f"{name}.log").read_text()
        assert "error: " in text and message in text and "Ready." not in text, text[-3000:]
        assert is_gone(started[name].pid)
    assert re.match(r"Starting .* as judge at http://127.0.0.1:\d+ in bfloat16\.", (tmp_path / "zero.log").read_text())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--port {taken}", "HOST=127.0.0.1 PORT={taken} is in use, or is not an address of this machine"),
        (
            "--max-model-len 512 --port={taken}",
            "HOST=127.0.0.1 PORT={taken} is in use, or is not an address of this machine",
        ),
        ("--host 0.0.0.0", "HOST=0.0.0.0 accepts connections from other machines; set VLLM_API_KEY"),
        ("--host=::", "HOST=:: accepts connections from other machines; set VLLM_API_KEY"),
        ("--api-key secret", "Set VLLM_API_KEY instead"),
        ("--api_key=secret", "Set VLLM_API_KEY instead"),
        ("--ssl-certfile a.pem --ssl-keyfile b.pem", "--ssl-certfile: the server would not answer at http"),
        ("--uds=/tmp/socket", "--uds: the server would not answer at http"),
        ("--headless", "Set CHECK=0"),
    ],
)
def test_flags_that_move_the_server_are_read_or_refused(flags: str, message: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        taken = listening.getsockname()[1]
        shown = run("sh", "infer_vllm.sh", "a model", *flags.format(taken=taken).split(), check=False, VLLM_API_KEY="")
    assert shown.returncode == 1 and shown.stderr.startswith("error: ") and shown.stderr.count("\n") == 1
    assert message.format(taken=taken) in shown.stderr and "secret" not in shown.stderr


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(("flags", "expected"), [((), "F32=ieee"), (("--dtype", "bfloat16"), "F32=unset")])
def test_fp32_on_a_gpu_is_not_rounded_to_tf32(flags, expected: str, tiny_reward_model: Path, tmp_path: Path) -> None:
    """Replace nvidia-smi by a script that finds a GPU, and vLLM by one that prints its environment."""
    for name in ("infer_vllm.sh", "client.py", "reward_model"):
        (tmp_path / name).symlink_to(ROOT / name)
    executable(tmp_path / "bin/nvidia-smi", "exit 0")
    start = 'case "$*" in *vllm.entrypoints*) echo "F32=${TRITON_F32_DEFAULT:-unset} $*" ;;'
    executable(tmp_path / ".venv/bin/python", f'{start} *) exec "{sys.executable}" "$@" ;; esac')
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    shown = run("sh", tmp_path / "infer_vllm.sh", tiny_reward_model, *flags, CHECK="0", PATH=path).stdout
    assert expected in shown and "--tokenizer-mode hf" in shown
    assert ("several times slower than in bfloat16" in shown) == (not flags)


@pytest.mark.slow
def test_ctrl_c_stops_the_server_and_leaves_nothing(runs, tmp_path: Path) -> None:
    """While it starts, and when it is ready: one with normalized scores. Used ports and open addresses are refused."""
    one, normalized = runs[USUAL], shutil.copytree(runs[USUAL].model, tmp_path / "normalized")
    data = jsonl(tmp_path / "pairs.jsonl", PAIRS)
    evaluate.normalize(evaluate.parse_arguments(["normalize", str(normalized), str(data)]))
    starting, ready = Server(one.model, tmp_path / "1.log"), Server(normalized, tmp_path / "2.log")
    command = ["sh", "infer_vllm.sh", one.model]
    shown = run(*command, check=False, PORT=one.url.rsplit(":", 1)[1])
    assert (
        shown.returncode == 1
        and shown.stderr.count("\n") == 1
        and "is in use, or is not an address of this machine" in shown.stderr
    )
    shown = run(*command, check=False, HOST="0.0.0.0", PORT=str(free_port()))
    assert shown.returncode == 1 and shown.stderr.startswith(
        "error: HOST=0.0.0.0 accepts connections from other machines; set VLLM_API"
    )
    while starting.log.read_text().count("\n") < 3:
        time.sleep(0.2)
    os.killpg(starting.process.pid, signal.SIGINT)
    assert starting.process.wait(timeout=60) == 130 and is_gone(starting.process.pid)
    assert starting.log.read_text().endswith("Stopping.\n")
    ready.wait()
    conversations = [pair[side] for pair in PAIRS for side in ("chosen", "rejected")]
    served = np.array(client.RewardClient(ready.url).score_many(conversations))
    assert (served.mean(), served.std()) == pytest.approx((0, 1), abs=1e-3)
    here = infer_transformers(str(normalized), conversations)
    raw = np.array(one.in_training)
    assert served == pytest.approx(here, abs=1e-4) and here == pytest.approx((raw - raw.mean()) / raw.std(), abs=1e-4)
    os.killpg(ready.process.pid, signal.SIGINT)
    assert ready.process.wait(timeout=60) == 130 and is_gone(ready.process.pid)
    assert ready.log.read_text().endswith("Stopping.\n"), "the messages of vLLM's own shutdown are not shown"


def test_checkpoints_have_reference_scores(few_pairs, base_model, tmp_path: Path) -> None:
    import train as train_script

    arguments = "--max_steps 2 --save_steps 1 --per_device_train_batch_size 2 --report_to none --eval_size 4"
    paths = ["--model_name_or_path", base_model, "--dataset_name", few_pairs, "--output_dir", tmp_path / "out"]
    train_script.main([*map(str, paths), *arguments.split()])
    first, second, last = (
        json.loads((tmp_path / "out" / name / FILE).read_text()) for name in ("checkpoint-1", "checkpoint-2", ".")
    )
    assert len(first["conversations"]) == 13 and first["dtype"] == "float32"
    assert second == last and first["conversations"] != second["conversations"]
    assert FILE in json.loads((tmp_path / "out/checkpoint-1/complete.json").read_text())
