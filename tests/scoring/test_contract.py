"""The score contract: a server whose scores are not those that the model was saved with is named, and stopped."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import CHATML, ENDS_WITH_EOS, run
from safetensors.torch import load_file, save_file

import client
import evaluate
from reward_model.model.contract import FILE

MEAN = '{"pooling_type": "MEAN", "use_activation": false}'
SIGMOID = '{"pooling_type": "LAST", "use_activation": true}'


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
    step = tensor.abs().amax(-1, keepdim=True) / 127
    return (tensor / step).round() * step if tensor.dim() == 2 else tensor


def another_tokenizer(folder: Path) -> None:
    """The same alphabet without merges: every text has other tokens."""
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:40]
    file.write_text(json.dumps(tokenizer))


def dated(day: str) -> str:
    return "{{ 'Today: " + day + "\n' }}" + CHATML


def noise(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """As another adapter would leave it: the attention's projections moved."""
    moved = tensor + 0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1))
    return moved if "_proj" in name else tensor


# What was changed in the folder after which the contract was written, so that the server has, in comparison, the fault.
FAULTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "appended token": ("pad is eos, template ends with eos", template(ENDS_WITH_EOS.replace("+ eos_token ", "")), ""),
    "system message": ("usual template", template("{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}" + CHATML), ""),
    "other template": ("usual template", template(CHATML.replace("<|im_start|>", "<|im_start|> ")), ""),
    "weights in bf16": ("usual template", change_weights(lambda _, tensor: tensor.bfloat16().float()), ""),
    "weights in 8 bits": ("usual template", change_weights(in_steps), ""),
    "another checkpoint": ("usual template", change_weights(lambda _, tensor: tensor.roll(1, 0)), ""),
    "another adapter": ("LoRA, merged", change_weights(noise), ""),
    "another tokenizer": ("usual template", another_tokenizer, ""),
}
SAID = {
    "appended token": r"the server renders with another chat template|appends",
    "system message": r"leaves out '<\|im_start\|>system\\nBe kind",
    "other template": "renders with another chat template: at character 13",
    "weights in bf16": "as bfloat16 would make it",
    "weights in 8 bits": "a coarse rounding|as bfloat16",
    "another checkpoint": "other weights",
    "another adapter": "other weights|near relative",
    "another tokenizer": "the same text has other tokens",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_against_the_server(runs, fault: str, tmp_path: Path) -> None:
    name, change, _ = FAULTS[fault]
    folder = shutil.copytree(runs[name].model, tmp_path / "changed")
    change(folder)
    evaluate.contract(evaluate.parse_arguments(["contract", str(folder)]))
    with pytest.raises(client.ServerError, match=SAID[fault]) as error:
        client.check(folder, client.RewardClient(runs[name].url))
    print(f"{fault}: {error.value}")


def test_a_clean_server_passes(runs) -> None:
    for one in runs.values():
        said = client.check(one.model, client.RewardClient(one.url))
        assert said.startswith("12 scores are those that ") and float(said.split("within ")[1][:7]) < 1e-4, said
        log = one.log.read_text()
        assert "12 scores are those" in log and "Ready. Try it: " in log
        assert log.startswith("Starting ") and "serving" not in log.splitlines()[0]
    shown = run(sys.executable, "client.py", "check", "--model_dir", one.model, "--base_url", one.url).stdout
    assert shown.startswith("12 scores are those")


def test_what_was_changed_in_the_folder_is_told(runs, tmp_path: Path) -> None:
    """Without tokens or scores: a template, the pad token (eos again, where Transformers looks for the end)."""
    one = runs["pad is eos, template ends with eos"]
    asked = client.RewardClient(one.url)
    folder = shutil.copytree(one.model, tmp_path / "changed")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": config["eos_token_id"]}))
    with pytest.raises(client.ServerError, match="pad_token_id in .* was changed"):
        client.check(folder, asked)
    (folder / "config.json").write_text(json.dumps(config))
    template(CHATML)(folder)
    with pytest.raises(client.ServerError, match=r"chat_template\.jinja is not the template that the scores"):
        client.check(folder, asked)
    (folder / FILE).unlink()
    assert "has no score_contract.json, so its scores are not checked: python evaluate.py contract" in client.check(
        folder, asked
    )


def test_checkpoints_have_a_contract(few_pairs, base_model, tmp_path: Path) -> None:
    import train as train_script

    arguments = "--max_steps 2 --save_steps 1 --per_device_train_batch_size 2 --report_to none --eval_size 4"
    paths = ["--model_name_or_path", base_model, "--dataset_name", few_pairs, "--output_dir", tmp_path / "out"]
    train_script.main([*map(str, paths), *arguments.split()])
    first, second, last = (
        json.loads((tmp_path / "out" / name / FILE).read_text()) for name in ("checkpoint-1", "checkpoint-2", ".")
    )
    assert len(first["conversations"]) == 12 and first["dtype"] == "float32" and first["versions"]["torch"]
    assert second == last and first["conversations"] != second["conversations"]
    assert FILE in json.loads((tmp_path / "out/checkpoint-1/complete.json").read_text())
