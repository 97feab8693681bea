"""Invalid data, templates and models stop a run before weights are loaded, with a message that names place and fix."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, conversation, run, train

import client
import train as train_script
from reward_model import InputError
from reward_model.model.checkpoint import check_reward_model
from reward_model.model.lora import check_adapter

pytestmark = pytest.mark.usefixtures("no_model_is_loaded")
GOOD = {"chosen": conversation("What is 2 + 2?", "Four."), "rejected": conversation("What is 2 + 2?", "Five.")}
OTHER = {"chosen": conversation("Hello?", "Hi."), "rejected": conversation("Hello?", "No.")}
NARRATOR = [{"role": "narrator", "content": "Night."}, *GOOD["chosen"]]
SYSTEM = [{"role": "system", "content": "Be kind."}, *GOOD["chosen"]]
STRICT_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
    "{{ m.content }}{% endfor %}"
)

# Second line of pairs.jsonl -> expected message.
ROWS = {
    '{"chosen": [}': r"pairs\.jsonl:2: not valid JSON",
    json.dumps([1, 2]): r"pairs\.jsonl:2: expected an object .* found list",
    json.dumps({"chosen": GOOD["chosen"]}): r"pairs\.jsonl:2: no 'rejected' \(keys: chosen\)",
    json.dumps({"prompt": "a", "rejected": GOOD["rejected"]}): r"pairs\.jsonl:2: no 'chosen'",
    json.dumps(GOOD | {"chosen": []}): r"pairs\.jsonl:2: chosen is empty",
    json.dumps(GOOD | {"chosen": "Four."}): r"pairs\.jsonl:2: chosen is a str; expected a list of messages",
    json.dumps(
        GOOD | {"chosen": NARRATOR}
    ): r"pairs\.jsonl:2: chosen, message 1 has the role 'narrator'; expected one of",
    json.dumps(GOOD | {"chosen": GOOD["chosen"][:1]}): r"pairs\.jsonl:2: chosen ends with the role 'user'",
    json.dumps(GOOD | {"chosen": conversation("a", " ")}): r"pairs\.jsonl:2: chosen ends with an empty answer",
    json.dumps(
        GOOD | {"chosen": conversation("a", 4)}
    ): r"pairs\.jsonl:2: chosen, message 2 has content that is not text: '4'",
    json.dumps(GOOD | {"rejected": GOOD["chosen"]}): r"pairs\.jsonl:2: chosen and rejected are identical",
    json.dumps(GOOD | {"margin": "big"}): r"pairs\.jsonl:2: margin is 'big'; set a finite number",
    json.dumps(GOOD | {"margin": 1.0}): r"2 of 3 pairs have no margin. Add margins to all pairs or to none",
}


def start(base_model: Path, pairs: Path | str, output_dir: Path, *more: str) -> None:
    paths = ["--model_name_or_path", str(base_model), "--dataset_name", str(pairs), "--output_dir", str(output_dir)]
    train_script.main([*paths, "--report_to", "none", *more])


@pytest.mark.parametrize(("line", "message"), ROWS.items(), ids=range(len(ROWS)))
def test_invalid_row_stops_the_run(line: str, message: str, base_model: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("\n".join([json.dumps(OTHER), line, json.dumps(OTHER)]) + "\n")
    with pytest.raises(InputError, match=message):
        start(base_model, tmp_path / "pairs.jsonl", tmp_path / "out")


def test_invalid_file_stops_the_run(base_model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text(f'[\n  {json.dumps(GOOD)},\n  {{"chosen" 2}}\n]')
    with pytest.raises(InputError, match=r"broken\.json: not valid JSON \(.*line 3 "):
        start(base_model, broken, tmp_path / "out")
    with pytest.raises(InputError, match=r"missing\.jsonl: file not found"):
        start(base_model, tmp_path / "missing.jsonl", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no data files in this directory"):
        start(base_model, tmp_path / "empty", tmp_path / "out")


def test_unusable_template_stops_the_run(tiny_model, few_pairs: Path, tmp_path: Path) -> None:
    without = tiny_model(template=None)
    with pytest.raises(InputError, match=r"has no chat template.* --chat_template_path"):
        start(without, few_pairs, tmp_path / "out")
    (tmp_path / "pairs.jsonl").write_text(json.dumps(GOOD | {"chosen": SYSTEM}) + "\n" + json.dumps(OTHER))
    with pytest.raises(InputError, match=r"drops the text of a 'user' message"):
        start(tiny_model(template="{{ '' }}"), tmp_path / "pairs.jsonl", tmp_path / "out")
    with pytest.raises(
        InputError, match=r"pairs\.jsonl:1: chosen: the chat template rejects the conversation: No system role"
    ):
        start(tiny_model(template=STRICT_TEMPLATE), tmp_path / "pairs.jsonl", tmp_path / "out")


def test_max_length_below_all_pairs_stops_the_run(base_model: Path, few_pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"All .* longer than --max_length 8 tokens .* shortest \d+"):
        start(base_model, few_pairs, tmp_path / "out", "--max_length", "8")


def test_invalid_arguments_stop_the_run(base_model: Path, few_pairs: Path, tmp_path: Path) -> None:
    trained = tmp_path / "trained"
    (trained / "checkpoint-5").mkdir(parents=True)
    with pytest.raises(InputError, match=r"already contains a model or checkpoints.*--resume_from_checkpoint auto"):
        start(base_model, few_pairs, trained)
    with pytest.raises(InputError, match=r"contains no complete checkpoint"):
        start(base_model, few_pairs, tmp_path / "out", "--resume_from_checkpoint", "True")
    with pytest.raises(InputError, match=r"--fsdp is not supported: .* Use sh train.sh"):
        start(base_model, few_pairs, tmp_path / "out", "--fsdp", "full_shard")
    with pytest.raises(InputError, match=r"Unknown argument --learning_rat in the command line"):
        start(base_model, few_pairs, tmp_path / "out", "--learning_rat", "1e-5")
    (tmp_path / "args.json").write_text('{"output_dir": "out", "learning_rat": 1e-5}')
    with pytest.raises(InputError, match=r"Unknown argument --learning_rat in .*args\.json"):
        train_script.main([str(tmp_path / "args.json")])
    adapter = tmp_path / "adapter"  # weights, but no config.json
    adapter.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (adapter / name).write_text("{}")
    with pytest.raises(InputError, match=r"is a LoRA adapter\. Merge it first"):
        start(adapter, few_pairs, tmp_path / "out")
    with pytest.raises(InputError, match=r"no model is neither a directory nor a Hub id"):
        start(tmp_path / "no model", few_pairs, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train.py x.json", "infer_transformers.py M q a", "evaluate.py --model M D"])
def test_ctrl_c_during_imports_prints_no_traceback(command: str, base_model: Path) -> None:
    paths = {"M": str(base_model), "D": "data/demo/eval.jsonl"}
    arguments = [paths.get(word, word) for word in command.split()]
    process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.send_signal(signal.SIGINT)
    assert (process.communicate(timeout=20)[1], process.returncode) == ("", -signal.SIGINT)


@pytest.mark.slow
def test_script_prints_an_error_in_one_line(base_model: Path, tmp_path: Path) -> None:
    paths = ["--model_name_or_path", base_model, "--dataset_name", "nowhere.jsonl", "--output_dir", tmp_path / "o"]
    result = train(*paths, check=False)
    assert result.returncode != 0 and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: nowhere.jsonl: file not found")


def test_only_reward_models_are_served(base_model: Path, tmp_path: Path) -> None:
    result = run("sh", ROOT / "infer_vllm.sh", base_model, check=False)
    assert result.returncode == 1 and "Qwen2ForCausalLM, which has no reward head" in result.stderr
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"LoRA adapter\. Merge it first: .*python merge_lora.py"):
        check_reward_model(str(tmp_path))
    (tmp_path / "adapter_config.json").unlink()
    classifier = {"architectures": ["Qwen2ForSequenceClassification"], "id2label": {"0": "a", "1": "b"}}
    (tmp_path / "config.json").write_text(json.dumps(classifier))
    with pytest.raises(InputError, match="classifier with 2 labels"):
        check_reward_model(str(tmp_path))


def test_adapter_without_a_trained_head_is_not_merged(base_model: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base_model), LoraConfig(target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match="no trained reward head"):
        check_adapter(tmp_path / "adapter")


def test_client_reports_a_missing_server() -> None:
    with pytest.raises(
        client.ServerError, match=r"Cannot reach a server at http://127\.0\.0\.1:9: .* Start one: sh infer_vllm"
    ):
        client.get_score_api("a", "b", base_url="http://127.0.0.1:9", retries=0)
    result = run(
        sys.executable, "client.py", "--base_url", "http://127.0.0.1:9", "--retries", "1", "a", "b", check=False
    )
    assert result.returncode == 1 and "Traceback" not in result.stderr
