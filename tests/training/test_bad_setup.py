"""Every wrong set-up stops before weights are loaded, with the sentence that names it; several are told at once."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import demo_pairs, jsonl, run, tiny_config, train
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

import train as train_script
from reward_model import InputError
from reward_model.model.checkpoint import check_reward_model, check_saved_template, light_tokenizer
from reward_model.training.arguments import DataArguments
from reward_model.training.data import check_tokens, read_pairs

pytestmark = pytest.mark.usefixtures("no_model_is_loaded")
PAIRS = demo_pairs()[:8]
# Arguments behind good ones -> what must be said.
ARGUMENTS = {
    "--learning_rate nan": r"--optim adamw_torch_fused: Invalid learning rate: nan",
    "--num_train_epochs 0": r"--num_train_epochs 0 must be greater than 0",
    "--max_steps 0": r"--max_steps 0 must be greater than 0, or -1",
    "--per_device_train_batch_size 0": r"--per_device_train_batch_size 0 must be greater than 0",
    "--per_device_eval_batch_size -2": r"--per_device_eval_batch_size -2 must be greater",
    "--gradient_accumulation_steps 0": r"--gradient_accumulation_steps 0 must be greater",
    "--max_length 0": r"--max_length 0 must be greater than 0",
    "--eval_size nan": r"--eval_size nan: pass a share",
    "--save_steps 0": r"--save_steps 0 must be greater than 0",
    "--label_smoothing_factor 0.7": r"--label_smoothing_factor 0\.7 must be from 0 to below 0\.5",
    "--bf16 True": r"--bf16 needs a GPU",
    "--fp16 True": r"--fp16 and --dtype float16 need a GPU",
    "--dtype float16": r"--fp16 and --dtype float16 need a GPU",
    "--fp16 True --bf16 True --use_cpu True": r"At most one of fp16 and bf16",
    "--report_to nobody": r"--report_to nobody is not installed or unknown",
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


def fewer_tensors(model: Path, gone: str) -> None:
    weights = {name: tensor for name, tensor in load_file(model / "model.safetensors").items() if gone not in name}
    save_file(weights, model / "model.safetensors", {"format": "pt"})


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def config(model: Path, **changes: object) -> None:
    file = model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def with_index(model: Path) -> None:
    (model / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


# What is done to a good base model -> what must be said.
MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "config broken": (lambda model: (model / "config.json").write_text("{"), r"config\.json is broken: Expecting"),
    "config is a list": (
        lambda model: (model / "config.json").write_text("[]"),
        r"config\.json is broken: expected an object, found a list",
    ),
    "hidden size": (lambda model: config(model, hidden_size=96), r"has the shape \[\d+, 128\] in the weights"),
    "more layers": (
        lambda model: config(model, num_hidden_layers=4, layer_types=["full_attention"] * 4),
        r"model\.layers\.2\..* more weights are missing",
    ),
    "a layer gone": (lambda model: fewer_tensors(model, ".1."), r"model\.layers\.1\..* more weights are missing"),
    "no such model type": (
        lambda model: config(model, model_type="what"),
        r"Transformers has no sequence classifier for what",
    ),
    "config of no sense": (lambda model: config(model, num_attention_heads="four"), r"config\.json cannot be loaded"),
    "no head": (
        lambda model: config(model, architectures=["Qwen2ForSequenceClassification"], id2label={"0": "a"}),
        r"no reward head \(score\.weight\)",
    ),
    "weights missing": (lambda model: (model / "model.safetensors").unlink(), r"no weights \(model\.safetensors\)"),
    "weights cut off": (lambda model: cut(model / "model.safetensors"), r"model\.safetensors cannot be read: "),
    "weights are a pointer": (
        lambda model: (model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1"),
        r"model\.safetensors cannot be read: ",
    ),
    "a shard missing": (with_index, r"model-00001-of-00002\.safetensors cannot be read: No such file"),
    "tokenizer missing": (
        lambda model: [file.unlink() for file in model.glob("tokenizer*")],
        r"the tokenizer cannot be loaded",
    ),
    "tokenizer broken": (lambda model: cut(model / "tokenizer.json"), r"the tokenizer cannot be loaded"),
    "template broken": (
        lambda model: (model / "chat_template.jinja").write_text("{% for m in messages %}"),
        r"chat template has a syntax error in line 1",
    ),
    "template drops the answer": (
        lambda model: (model / "chat_template.jinja").write_text("{{ messages[0].content }}"),
        r"drops the text of a 'assistant' message",
    ),
    "tokenizer of another model": (
        lambda model: small_vocabulary(model),
        r"vocabulary of the model has 100",
    ),
    "short context": (
        lambda model: config(model, max_position_embeddings=16),
        r"takes 16\. Pass --max_length 16",
    ),
}


def small_vocabulary(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    for name, tensor in weights.items():
        if len(tensor) == 640:
            weights[name] = tensor[:100].clone()
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    config(model, vocab_size=100)


# Arguments that look like those above and are right.
RIGHT = [
    "--attn_implementation eager",
    "--optim adafactor",
    "--optim sgd --optim_args momentum=0.9,nesterov=true",
    '--lr_scheduler_type cosine_with_min_lr --lr_scheduler_kwargs {"min_lr_rate":0.1}',
    '--gradient_checkpointing_kwargs {"use_reentrant":false} --dataloader_num_workers 1 --eos_token <|im_end|>',
    '--model_init_kwargs {"max_position_embeddings":4096} --use_peft --lr_scheduler_type reduce_lr_on_plateau',
    "--save_strategy best --metric_for_best_model eval_accuracy",
    "--metric_for_best_model held_out_accuracy --benchmark_files data/demo/eval.jsonl",
]


def lines(folder: Path, name: str, rows: list[object]) -> Path:
    folder.mkdir(exist_ok=True)
    return jsonl(folder / name, rows)


def train_is_test(folder: Path) -> Path:
    lines(folder, "test.jsonl", PAIRS[:4])
    return lines(folder, "train.jsonl", PAIRS).parent


def digits(folder: Path) -> Path:
    file = lines(folder, "pairs.jsonl", [PAIRS[0] | {"margin": 12345678}])
    file.write_text(file.read_text().replace("12345678", "9" * 5000))
    return file


# What the data is -> what must be said.
DATA: dict[str, tuple[Callable[[Path], Path], str]] = {
    "training rows as test": (train_is_test, r"4 of 4 test pairs are training pairs too"),
    "left out rows": (lambda d: lines(d, "pairs.rejected.jsonl", PAIRS), r"rows that prepare_data.py rejected"),
    "tools no list": (lambda d: lines(d, "pairs.jsonl", [PAIRS[0] | {"tools": "none"}]), r"tools"),
    "margin beyond floats": (
        lambda d: lines(d, "pairs.jsonl", [PAIRS[0] | {"margin": int("9" * 400)}]),
        r"pairs\.jsonl:1: margin is 9+; it must be a number",
    ),
    "5,000 digits": (digits, r"pairs\.jsonl:1: not valid JSON \(Exceeds the limit"),
}


def start(model: Path, pairs: Path, output_dir: Path, more: str = "") -> None:
    paths = ["--model_name_or_path", str(model), "--dataset_name", str(pairs), "--output_dir", str(output_dir)]
    train_script.main([*paths, *"--report_to none --eval_size 0".split(), *more.split()])


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_arguments(arguments: str, base_model: Path, few_pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=ARGUMENTS[arguments]):
        start(base_model, few_pairs, tmp_path / "out", arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", RIGHT)
def test_right_arguments_are_not_refused(arguments: str, base_model: Path, few_pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a model was loaded"):
        start(base_model, few_pairs, tmp_path / "out", arguments)


@pytest.mark.slow
def test_ddp_trains_a_model_with_a_vision_tower(make_tokenizer, few_pairs: Path, tmp_path: Path) -> None:
    """No gradient reaches the tower from text, and gradient checkpointing, the default, lets DDP wait for all."""
    from transformers import AutoModelForImageTextToText

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = tiny_config("gemma3_text", **sizes, num_key_value_heads=1, head_dim=16).to_dict()
    vision = sizes | {"image_size": 28, "patch_size": 14}
    config_ = tiny_config("gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=4)
    model = tmp_path / "model"
    AutoModelForImageTextToText.from_config(config_).save_pretrained(model)
    make_tokenizer().save_pretrained(model)
    more = "--max_steps 3 --per_device_train_batch_size 2 --eval_size 0 --report_to none --save_strategy no".split()
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "train.py"]
    paths = ["--model_name_or_path", model, "--dataset_name", few_pairs, "--output_dir", tmp_path / "out"]
    assert "Reward model: " in run(*launch, *paths, *more, OMP_NUM_THREADS="1").stdout


@pytest.mark.parametrize("broken", MODELS)
def test_models(broken: str, base_model: Path, few_pairs: Path, tmp_path: Path) -> None:
    model = shutil.copytree(base_model, tmp_path / "model")
    breaks, said = MODELS[broken]
    breaks(model)
    with pytest.raises(InputError, match=said):
        start(model, few_pairs, tmp_path / "out")


@pytest.mark.parametrize("wrong", DATA)
def test_data(wrong: str, base_model: Path, tmp_path: Path) -> None:
    makes, said = DATA[wrong]
    with pytest.raises(InputError, match=said):
        start(base_model, makes(tmp_path / "data"), tmp_path / "out")


def test_an_output_that_is_a_file(base_model: Path, few_pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        start(base_model, few_pairs, few_pairs)
    with pytest.raises(InputError, match="cannot be written"):
        start(base_model, few_pairs, few_pairs / "out")


def test_pairs_that_are_equal_in_tokens(base_model: Path, capsys: pytest.CaptureFixture) -> None:
    from datasets import Dataset
    from transformers import AutoConfig

    model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(base_model))
    equal = {"chosen_ids": [5, 6, 7], "rejected_ids": [5, 6, 7], "prefix_length": 2, "length": 3}
    check_tokens({"training": Dataset.from_list([equal, equal | {"rejected_ids": [5, 6, 8]}])}, model, verbose=True)
    assert "training: 1 of 2 pairs have identical token ids on both sides" in capsys.readouterr().out
    with pytest.raises(InputError, match="All 1 training pairs have identical token ids on both sides"):
        check_tokens({"training": Dataset.from_list([equal])}, model, verbose=True)


@pytest.mark.slow
def test_all_mistakes_are_told_at_once(base_model: Path, tmp_path: Path) -> None:
    """By the script itself: one line each, no traceback, a status."""
    model = shutil.copytree(base_model, tmp_path / "model")
    cut(model / "model.safetensors")
    paths = ["--model_name_or_path", model, "--dataset_name", tmp_path / "no.jsonl", "--output_dir", "/dev/full"]
    shown = train(*paths, "--max_length", "0", "--learning_rate", "nan", check=False)
    assert shown.returncode == 1 and "Traceback" not in shown.stderr
    told = [line for line in shown.stderr.splitlines() if line.startswith("error: ")]
    for number, said in enumerate(("--max_length", "--output_dir", "model.safetensors", "no.jsonl")):
        assert said in told[number]
    assert len(told) == 4


def test_held_out_pairs_beside_the_training_file_are_used(base_model: Path, tmp_path: Path, capsys) -> None:
    pairs = lines(tmp_path, "pairs.jsonl", PAIRS)
    lines(tmp_path, "pairs.eval.jsonl", demo_pairs()[20:23])
    arguments = DataArguments(dataset_name=str(pairs))
    assert len(read_pairs(arguments, verbose=True)[1]) == 3
    assert "pairs.eval.jsonl, found next to the training file. Pass --eval_size 0" in capsys.readouterr().out
    arguments.eval_size = 0
    assert read_pairs(arguments, verbose=True)[1] is None


# What is done to a reward model -> what infer_vllm.sh says.
SERVED: dict[str, tuple[Callable[[Path], object], str]] = {
    "config broken": MODELS["config broken"],
    "no head": (lambda model: fewer_tensors(model, "score"), r"no reward head \(score\.weight\)"),
    "weights cut off": MODELS["weights cut off"],
    "no tokenizer": (lambda model: (model / "tokenizer.json").unlink(), r"the tokenizer cannot be loaded"),
    "no template": (lambda model: (model / "chat_template.jinja").unlink(), r"no chat template"),
    "template broken": MODELS["template broken"],
}


@pytest.mark.parametrize("broken", SERVED)
def test_what_cannot_be_trusted_is_not_served(broken: str, tiny_reward_model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_reward_model, tmp_path / "model")
    breaks, said = SERVED[broken]
    breaks(model)
    with pytest.raises(InputError, match=said):
        check_reward_model(str(model))
        check_saved_template(light_tokenizer(str(model)), str(model))


def test_a_date_in_a_template_of_others_is_warned_of(tiny_reward_model: Path, tmp_path: Path, capsys) -> None:
    model = shutil.copytree(tiny_reward_model, tmp_path / "model")
    template = model / "chat_template.jinja"
    template.write_text("{{ strftime_now('%d %b %Y') }}" + template.read_text())
    check_saved_template(light_tokenizer(str(model)), str(model))
    assert "prints today's date, so scores change from day to day" in capsys.readouterr().err


def test_the_check_before_serving_prints_the_dtype(tiny_reward_model: Path) -> None:
    assert run(sys.executable, "-m", "reward_model.model.checkpoint", tiny_reward_model).stdout == "float32\n"
