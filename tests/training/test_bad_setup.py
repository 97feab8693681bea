"""An invalid setup stops a run before weights are loaded, and all of its problems are reported at once."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import LINEAR, demo_pairs, jsonl, run, tiny_config, train
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

import train as train_script
from reward_model import InputError
from reward_model.model import checkpoint
from reward_model.model.checkpoint import check_reward_model, check_saved_template, light_tokenizer, serving_dtype
from reward_model.training.arguments import DataArguments, parse_arguments
from reward_model.training.data import check_tokens, read_pairs
from reward_model.training.validation import check_setup

pytestmark = pytest.mark.usefixtures("no_model_is_loaded")
PAIRS = demo_pairs()[:8]
# Arguments added to valid ones -> expected message.
ARGUMENTS = {
    "--learning_rate nan": r"--optim adamw_torch_fused: Invalid learning rate: nan",
    "--num_train_epochs 0": r"--num_train_epochs 0 must be greater than 0",
    "--max_steps 0": r"--max_steps 0 must be greater than 0, or -1",
    "--per_device_train_batch_size 0": r"--per_device_train_batch_size 0 must be greater than 0",
    "--per_device_eval_batch_size -2": r"--per_device_eval_batch_size -2 must be greater",
    "--gradient_accumulation_steps 0": r"--gradient_accumulation_steps 0 must be greater",
    "--max_length 0": r"--max_length 0 must be greater than 0",
    "--eval_size nan": r"--eval_size nan: pass a fraction",
    "--save_steps 0": r"--save_steps 0 must be greater than 0",
    "--label_smoothing_factor 0.7": r"--label_smoothing_factor 0\.7 must be in \[0, 0\.5\)",
    "--bf16 True": r"--bf16 needs a GPU",
    "--fp16 True": r"--fp16 and --dtype float16 need a GPU",
    "--dtype float16": r"--fp16 and --dtype float16 need a GPU",
    "--fp16 True --bf16 True --use_cpu True": r"At most one of fp16 and bf16",
    "--report_to nobody": r"--report_to nobody is not installed or is unknown",
    "--lora_r 8": r"--lora_r has no effect without --use_peft",
    "--use_peft --lora_r -1": r"--lora_r -1 must be greater than 0",
    "--use_peft --lora_target_modules nothing": r"--lora_target_modules nothing: No modules were targeted",
    "--use_peft --lora_task_type CAUSAL_LM": r"CAUSAL_LM does not save the reward head",
    "--load_in_4bit True --use_peft": r"need a package: pip install bitsandbytes",
    "--load_in_8bit True": r"need --use_peft",
    "--torch_compile True": r"--torch_compile is not supported: every batch has a different length",
    "--pad_token x": r"--pad_token is not supported",
    "--attn_implementation flash_attention_2": "the model cannot be loaded: .* seem to be installed",
    "--attn_implementation nonsense": "the model cannot be loaded: .* is not supported",
    "--optim adamw_bnb_8bit": r"--optim adamw_bnb_8bit: You need to install `bitsandbytes`",
    "--optim galore_adamw": r"--optim galore_adamw: You need to install `galore_torch`",
    "--optim lomo": r"--optim lomo: You need to install `lomo_optim`",
    "--optim schedule_free_adamw": r"--optim schedule_free_adamw: You need to install `schedulefree`",
    "--optim sgd --optim_args momentum=x": r"--optim_args momentum=x: could not convert string to float: 'x'",
    "--adam_beta1 1": r"--optim adamw_torch_fused: Invalid beta parameter at index 0: 1\.0",
    "--lr_scheduler_type cosine_with_min_lr": r"cosine_with_min_lr: One of min_lr or min_lr_rate should",
    "--lr_scheduler_type warmup_stable_decay": r"warmup_stable_decay: .* missing 1 required .*: 'num_decay_steps'",
    '--lr_scheduler_kwargs {"power":2}': r"_kwargs \{'power': 2\}: .* unexpected keyword argument 'power'",
    "--learning_rate 1e-8 --lr_scheduler_type polynomial": r"lr_end \(1e-07\) must be smaller than initial lr",
    '--gradient_checkpointing_kwargs {"all":true}': r"\{'all': True\}: Unexpected keyword arguments: all",
    '--model_init_kwargs {"nonsense":1}': "the model cannot be loaded: .*nonsense",
    '--accelerator_config {"steps":1}': r"got an unexpected keyword argument 'steps'",
    "--use_liger_kernel True": r"--use_liger_kernel needs a package: pip install liger-kernel",
    "--activation_offloading True": r"--activation_offloading needs a GPU",
    "--push_to_hub True": r"--push_to_hub True: ",
    "--deepspeed ds_config_zero3.json": r"--deepspeed needs a launcher, even for a single GPU\. Start with sh train",
    "--eos_token <end>": r"--eos_token <end> is not in the vocabulary",
    "--save_strategy best": r"--metric_for_best_model None is not reported\. Choose one of loss, accuracy, margin",
    "--save_strategy best --metric_for_best_model f1": r"--metric_for_best_model f1 is not reported",
    "--metric_for_best_model loss --benchmark_files data/demo/eval.jsonl": r"Choose one of held_out_loss, held_out_acc",
    "--dataset_train_split train_sft": r"need a Hub dataset; .* is a local path",
    "--model_name_or_path owner/nowhere": r"owner/nowhere: not a local directory, and the Hub has no model",
    "--dataset_name owner/nowhere": r"owner/nowhere: not a local directory, and the Hub has no dataset",
    "--output_dir /dev/full": r"--output_dir /dev/full cannot be written",
    "--output_dir /proc/me/out": r"--output_dir /proc/me/out cannot be written \(/proc: ",
    "--resume_from_checkpoint nowhere": r"--resume_from_checkpoint nowhere has no trainer_state\.json",
    "--deepspeed no.json": r"--deepspeed no\.json cannot be read: No such file",
    "--deepspeed train.py": r"--deepspeed train\.py is not valid JSON",
    "--template_date tomorrow": r"--template_date tomorrow is not a date such as 2024-07-26",
    "--chat_template_kwargs no": r"--chat_template_kwargs no is not a JSON object",
    '--chat_template_kwargs {"thinking":true}': r"the chat template has no variable thinking",
    "--chat_template_path no.jinja": r"--chat_template_path no\.jinja does not exist",
}


def remove_tensors(model: Path, part: str) -> None:
    weights = {name: tensor for name, tensor in load_file(model / "model.safetensors").items() if part not in name}
    save_file(weights, model / "model.safetensors", {"format": "pt"})


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def change_config(model: Path, **changes: object) -> None:
    file = model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def replace_weights_by_an_index(model: Path) -> None:
    (model / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


# Change of a valid base model -> expected message.
MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "config broken": (lambda model: (model / "config.json").write_text("{"), r"config\.json is broken: Expecting"),
    "config is a list": (
        lambda model: (model / "config.json").write_text("[]"),
        r"config\.json is broken: expected an object, found a list",
    ),
    "hidden size": (lambda model: change_config(model, hidden_size=96), r"has the shape \[\d+, 128\] in the weights"),
    "more layers": (
        lambda model: change_config(model, num_hidden_layers=4, layer_types=["full_attention"] * 4),
        r"model\.layers\.2\..* more weights are missing",
    ),
    "a layer missing": (lambda model: remove_tensors(model, ".1."), r"model\.layers\.1\..* more weights are missing"),
    "unknown model type": (
        lambda model: change_config(model, model_type="what"),
        r"Transformers has no sequence classifier for what",
    ),
    "config with a wrong type": (
        lambda model: change_config(model, num_attention_heads="four"),
        r"config\.json cannot be loaded",
    ),
    "no head": (
        lambda model: change_config(model, architectures=["Qwen2ForSequenceClassification"], id2label={"0": "a"}),
        r"no reward head \(score\.weight\)",
    ),
    "weights missing": (lambda model: (model / "model.safetensors").unlink(), r"no weights \(model\.safetensors\)"),
    "weights truncated": (lambda model: truncate(model / "model.safetensors"), r"model\.safetensors cannot be read: "),
    "weights are a pointer": (
        lambda model: (model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1"),
        r"model\.safetensors cannot be read: ",
    ),
    "a shard missing": (replace_weights_by_an_index, r"model-00001-of-00002\.safetensors cannot be read: No such file"),
    "tokenizer missing": (
        lambda model: [file.unlink() for file in model.glob("tokenizer*")],
        r"the tokenizer cannot be loaded",
    ),
    "tokenizer broken": (lambda model: truncate(model / "tokenizer.json"), r"the tokenizer cannot be loaded"),
    "template broken": (
        lambda model: (model / "chat_template.jinja").write_text("{% for m in messages %}"),
        r"chat template has a syntax error on line 1",
    ),
    "template drops the answer": (
        lambda model: (model / "chat_template.jinja").write_text("{{ messages[0].content }}"),
        r"drops the text of a 'assistant' message",
    ),
    "tokenizer of another model": (
        lambda model: shrink_vocabulary(model),
        r"the model's vocabulary has only 100",
    ),
    "short context": (
        lambda model: change_config(model, max_position_embeddings=16),
        r"at most 16\. Pass --max_length 16",
    ),
}


def shrink_vocabulary(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    for name, tensor in weights.items():
        if len(tensor) == 640:
            weights[name] = tensor[:100].clone()
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    change_config(model, vocab_size=100)


# Valid arguments that resemble those above.
VALID_ARGUMENTS = [
    "--attn_implementation eager",
    "--optim adafactor",
    "--optim sgd --optim_args momentum=0.9,nesterov=true",
    '--lr_scheduler_type cosine_with_min_lr --lr_scheduler_kwargs {"min_lr_rate":0.1}',
    '--gradient_checkpointing_kwargs {"use_reentrant":false} --dataloader_num_workers 1 --eos_token <|im_end|>',
    '--model_init_kwargs {"max_position_embeddings":4096} --use_peft --lr_scheduler_type reduce_lr_on_plateau',
    "--save_strategy best --metric_for_best_model eval_accuracy",
    "--metric_for_best_model held_out_accuracy --benchmark_files data/demo/eval.jsonl",
]


def write_rows(directory: Path, name: str, rows: list[object]) -> Path:
    directory.mkdir(exist_ok=True)
    return jsonl(directory / name, rows)


def write_training_pairs_as_test_pairs(directory: Path) -> Path:
    write_rows(directory, "test.jsonl", PAIRS[:4])
    return write_rows(directory, "train.jsonl", PAIRS).parent


def write_huge_integer(directory: Path) -> Path:
    file = write_rows(directory, "pairs.jsonl", [PAIRS[0] | {"margin": 12345678}])
    file.write_text(file.read_text().replace("12345678", "9" * 5000))
    return file


# Data -> expected message.
DATA: dict[str, tuple[Callable[[Path], Path], str]] = {
    "training pairs as test pairs": (write_training_pairs_as_test_pairs, r"4 of 4 test pairs are also training pairs"),
    "rejected rows": (lambda d: write_rows(d, "pairs.rejected.jsonl", PAIRS), r"rows that prepare_data.py rejected"),
    "tools that are not a list": (lambda d: write_rows(d, "pairs.jsonl", [PAIRS[0] | {"tools": "none"}]), r"tools"),
    "margin beyond floats": (
        lambda d: write_rows(d, "pairs.jsonl", [PAIRS[0] | {"margin": int("9" * 400)}]),
        r"pairs\.jsonl:1: margin is 9+; set a finite number",
    ),
    "5,000 digits": (write_huge_integer, r"pairs\.jsonl:1: not valid JSON \(Exceeds the limit"),
}


def start(model: Path, pairs: Path, output_dir: Path, more: str = "") -> None:
    paths = ["--model_name_or_path", str(model), "--dataset_name", str(pairs), "--output_dir", str(output_dir)]
    train_script.main([*paths, *"--report_to none --eval_size 0".split(), *more.split()])


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_invalid_arguments_stop_the_run(arguments: str, base_model: Path, few_pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=ARGUMENTS[arguments]):
        start(base_model, few_pairs, tmp_path / "out", arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", VALID_ARGUMENTS)
def test_valid_arguments_are_accepted(arguments: str, base_model: Path, few_pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a model was loaded"):
        start(base_model, few_pairs, tmp_path / "out", arguments)


@pytest.mark.slow
def test_ddp_trains_a_model_with_a_vision_tower(make_tokenizer, few_pairs: Path, tmp_path: Path) -> None:
    """Text gives the tower no gradients, which DDP waits for by default when gradients are checkpointed."""
    from transformers import AutoModelForImageTextToText

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = tiny_config("gemma3_text", **sizes, num_key_value_heads=1, head_dim=16).to_dict()
    vision = sizes | {"image_size": 28, "patch_size": 14}
    config = tiny_config("gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=4)
    model = tmp_path / "model"
    AutoModelForImageTextToText.from_config(config).save_pretrained(model)
    make_tokenizer().save_pretrained(model)
    more = "--max_steps 3 --per_device_train_batch_size 2 --eval_size 0 --report_to none --save_strategy no".split()
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "train.py"]
    paths = ["--model_name_or_path", model, "--dataset_name", few_pairs, "--output_dir", tmp_path / "out"]
    assert "Reward model: " in run(*launch, *paths, *more, OMP_NUM_THREADS="1").stdout


@pytest.mark.parametrize("case", MODELS)
def test_invalid_models_stop_the_run(case: str, base_model: Path, few_pairs: Path, tmp_path: Path) -> None:
    model = shutil.copytree(base_model, tmp_path / "model")
    damage, message = MODELS[case]
    damage(model)
    with pytest.raises(InputError, match=message):
        start(model, few_pairs, tmp_path / "out")


@pytest.mark.parametrize("case", DATA)
def test_invalid_data_stops_the_run(case: str, base_model: Path, tmp_path: Path) -> None:
    write, message = DATA[case]
    with pytest.raises(InputError, match=message):
        start(base_model, write(tmp_path / "data"), tmp_path / "out")


def test_output_directory_that_is_a_file_is_refused(base_model: Path, few_pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        start(base_model, few_pairs, few_pairs)
    with pytest.raises(InputError, match="cannot be written"):
        start(base_model, few_pairs, few_pairs / "out")


def test_pairs_with_identical_tokens_are_reported(base_model: Path, capsys: pytest.CaptureFixture) -> None:
    from datasets import Dataset
    from transformers import AutoConfig

    model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(base_model))
    equal = {"chosen_ids": [5, 6, 7], "rejected_ids": [5, 6, 7], "prefix_length": 2, "length": 3}
    check_tokens({"training": Dataset.from_list([equal, equal | {"rejected_ids": [5, 6, 8]}])}, model, verbose=True)
    assert "training: 1 of 2 pairs have identical token ids on both sides" in capsys.readouterr().out
    with pytest.raises(InputError, match="All 1 training pairs have identical token ids on both sides"):
        check_tokens({"training": Dataset.from_list([equal])}, model, verbose=True)


@pytest.mark.slow
def test_all_problems_are_reported_at_once(base_model: Path, tmp_path: Path) -> None:
    """The script prints one line for each, without a traceback, and exits with 1."""
    model = shutil.copytree(base_model, tmp_path / "model")
    truncate(model / "model.safetensors")
    paths = ["--model_name_or_path", model, "--dataset_name", tmp_path / "no.jsonl", "--output_dir", "/dev/full"]
    result = train(*paths, "--max_length", "0", "--learning_rate", "nan", check=False)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    for error, part in zip(errors, ("--max_length", "--output_dir", "model.safetensors", "no.jsonl"), strict=True):
        assert part in error


def test_held_out_pairs_next_to_the_training_file_are_used(base_model: Path, tmp_path: Path, capsys) -> None:
    pairs = write_rows(tmp_path, "pairs.jsonl", PAIRS)
    write_rows(tmp_path, "pairs.eval.jsonl", demo_pairs()[20:23])
    arguments = DataArguments(dataset_name=str(pairs))
    assert len(read_pairs(arguments, verbose=True)[1]) == 3
    assert "pairs.eval.jsonl, found next to the training file. Pass --eval_size 0" in capsys.readouterr().out
    arguments.eval_size = 0
    assert read_pairs(arguments, verbose=True)[1] is None


# Change of a valid reward model -> expected message of infer_vllm.sh.
SERVED: dict[str, tuple[Callable[[Path], object], str]] = {
    "config broken": MODELS["config broken"],
    "no head": (lambda model: remove_tensors(model, "score"), r"no reward head \(score\.weight\)"),
    "weights truncated": MODELS["weights truncated"],
    "no tokenizer": (lambda model: (model / "tokenizer.json").unlink(), r"the tokenizer cannot be loaded"),
    "no template": (lambda model: (model / "chat_template.jinja").unlink(), r"no chat template"),
    "template broken": MODELS["template broken"],
}


@pytest.mark.parametrize("case", SERVED)
def test_damaged_reward_models_are_not_served(case: str, tiny_reward_model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_reward_model, tmp_path / "model")
    damage, message = SERVED[case]
    damage(model)
    with pytest.raises(InputError, match=message):
        check_reward_model(str(model))
        check_saved_template(light_tokenizer(str(model)), str(model))


def test_date_in_a_saved_template_gives_a_warning(tiny_reward_model: Path, tmp_path: Path, capsys) -> None:
    model = shutil.copytree(tiny_reward_model, tmp_path / "model")
    template = model / "chat_template.jinja"
    template.write_text("{{ strftime_now('%d %b %Y') }}" + template.read_text())
    check_saved_template(light_tokenizer(str(model)), str(model))
    assert "prints today's date, so scores change from day to day" in capsys.readouterr().err


def test_family_that_vllm_cannot_serve_is_reported_before_training(tiny_model, tmp_path, capsys) -> None:
    pairs = jsonl(tmp_path / "pairs.jsonl", PAIRS)
    paths = {"--model_name_or_path": tiny_model("persimmon"), "--dataset_name": pairs, "--output_dir": tmp_path / "out"}
    arguments = [str(word) for both in paths.items() for word in both]
    check_setup(*parse_arguments(arguments, tmp_path / "none"))
    assert "vLLM 0.32 cannot serve persimmon models" in capsys.readouterr().out


def test_the_check_before_serving_prints_the_dtype(tiny_reward_model: Path) -> None:
    command = [sys.executable, "-m", "reward_model.model.checkpoint", tiny_reward_model]
    assert [run(*command, device).stdout for device in ("cpu", "gpu")] == ["float32\n", "float32\n"]


def test_linear_attention_is_served_in_bf16_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"model_type": "qwen3_5", "text_config": {"model_type": "qwen3_5_text", **LINEAR}, "dtype": "float16"}
    monkeypatch.setattr(checkpoint, "find_spec", lambda name: name)
    assert serving_dtype(config, "cpu") == "bfloat16" and serving_dtype(config, "gpu") == "float16"
    monkeypatch.setattr(checkpoint, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs torchvision"):
        serving_dtype(config, "gpu")
