"""Trees, balanced ranks and passes bounded by tokens give the losses and weights of plain padded pairs."""

import json
import random
import shutil
import sys
from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers import LINEAR, TWO_RANKS, conversation, demo_pairs, jsonl, run
from safetensors.torch import load_file

import train as train_script
from reward_model.model.packing import positions
from reward_model.training.collator import PairCollator, trees
from reward_model.training.sampler import StepSampler

WORDS = [message["content"] for pair in demo_pairs()[:40] for message in pair["chosen"]]


def pairs_of_prompts(answers: list[int], seed: int = 0) -> list[dict]:
    """Return all pairs of prompts with these numbers of answers. Of 5 answers, two are equal."""
    generator = random.Random(seed)
    rows = []
    for count in answers:
        question = " ".join(generator.sample(WORDS, 2))
        texts = [generator.choice(WORDS) * generator.randrange(1, 3) + str(n) for n in range(count)]
        if count == 5:
            texts[2] = texts[4]
        rows += [
            {"chosen": conversation(question, a), "rejected": conversation(question, b), "margin": 0.1 * len(rows)}
            for a, b in combinations(texts, 2)
            if a != b
        ]
    generator.shuffle(rows)
    return rows


# With Adam's default epsilon, gradients that are only rounding errors would cause steps of full size.
STEPS = (
    "--max_steps 20 --learning_rate 1e-4 --adam_epsilon 1e-6 --max_length 1024 --logging_steps 1 --report_to none "
    "--eval_size 0 --save_strategy no --gradient_checkpointing False --per_device_train_batch_size"
)
UNEQUAL = [2, 4, 3, 7, 5, 2, 3, 4]
RUNS = {
    "k = 2": ([2] * 24, "4"),
    "k = 4": ([4] * 6, "6"),
    "k = 7": ([7] * 3, "21"),
    "k = 4, linear attention": ([4] * 6, "6"),
    "unequal k, LoRA": (UNEQUAL, "8 --use_peft --lora_r 4"),
    "margins, checkpointing": (UNEQUAL, "8 --gradient_checkpointing True"),
    "accumulation": (UNEQUAL, "4 --gradient_accumulation_steps 3"),
    "passes by tokens": (UNEQUAL, "8 --gradient_accumulation_steps 2 --eval_size 9 --max_tokens_per_micro_batch 500"),
}


def logged(name: str, base_model: Path, directory: Path, shared_prefix: bool) -> dict[str, list[float]]:
    """Return the losses, gradient norms and saved positions of all steps."""
    answers, more = RUNS[name]
    rows = pairs_of_prompts(answers)
    if "margins" not in name:
        for row in rows:
            del row["margin"]
    pairs = jsonl(directory / "pairs.jsonl", rows)
    paths = [
        "--model_name_or_path",
        base_model,
        "--dataset_name",
        pairs,
        "--output_dir",
        directory / str(shared_prefix),
    ]
    if not shared_prefix:
        more = more.split(" --max_tokens")[0]
    arguments = [*map(str, paths), *STEPS.split(), *more.split(), "--shared_prefix", str(shared_prefix)]
    trainer = train_script.main(arguments)
    logs = [log for log in trainer.state.log_history if "grad_norm" in log]
    found = {key: [log[key] for log in logs] for key in ("loss", "grad_norm", "positions_saved")}
    found["loss"] += [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
    return found


QUICK = ("k = 4",)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in RUNS])
def test_trees_equal_padded_pairs_over_twenty_steps(name: str, tiny_model, base_model: Path, tmp_path: Path) -> None:
    model = tiny_model("qwen3_5_text", **LINEAR) if "linear" in name else base_model
    padded, packed = (logged(name, model, tmp_path, shared_prefix) for shared_prefix in (False, True))
    assert len(packed["loss"]) == (26 if "passes" in name else 20)
    assert packed["loss"] == pytest.approx(padded["loss"], abs=1e-5)
    assert packed["grad_norm"] == pytest.approx(padded["grad_norm"], rel=1e-4)
    assert max(padded["positions_saved"]) == 0 and min(packed["positions_saved"]) > 0.2


def pair(prompt: str, chosen: list[int], rejected: list[int]) -> dict:
    return {"prompt": prompt, "chosen_ids": chosen, "rejected_ids": rejected}


def test_each_answer_of_a_prompt_stands_in_the_row_once() -> None:
    a, b, c, d = [1, 2, 3], [1, 2, 4, 4], [1, 2, 5], [1, 6]
    pairs = [pair("p", a, b), pair("q", [7], [8]), pair("p", b, c), pair("p", a, c)]
    assert trees(pairs) == ([((1, 2), [(3,), (4, 4), (5,)]), ((), [(7,), (8,)])], [0, 3, 1, 0, 1, 4, 2, 2])
    batch = PairCollator(pad_token_id=0)(pairs)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 4, 5, 7, 8]]
    assert batch["end_positions"].tolist() == [2, 6, 4, 2, 4, 7, 5, 5]
    # Answers of two pairs may share less: one tree with a shorter prefix, or one tree per pair if that is smaller.
    assert trees([pair("p", a, b), pair("p", c, d)])[0] == [((1,), [(2, 3), (2, 5), (2, 4, 4), (6,)])]
    long = [pair("p", [n] * 9 + [1], [n] * 9 + [2]) for n in (1, 2)]
    assert trees(long) == ([((n,) * 9, [(1,), (2,)]) for n in (1, 2)], [0, 2, 1, 3])


def test_batches_are_split_by_tokens() -> None:
    collator = PairCollator(pad_token_id=0, max_tokens=7)
    pairs = [pair("p", [1, 2, n], [1, 2, n + 1]) for n in range(3, 8)]  # positions of the first 1, 2, …: 4, 5, 6, 7, 8
    pairs += [pair("q", [1] * 9, [2]), pair("r", [1], [2]), pair("s", [1], [2])]
    assert [len(part) for part in collator.split(pairs)] == [4, 1, 1, 2]
    padded = PairCollator(pad_token_id=0, max_tokens=12, shared_prefix=False)
    assert [len(part) for part in padded.split(pairs)] == [2, 2, 1, 1, 2]


def lengths(pairs_per_prompt: list[int], seed: int = 0) -> Dataset:
    """Return the columns that the sampler reads, with lengths that vary like those of real data."""
    random_ = np.random.default_rng(seed)
    prompts = np.repeat(np.arange(len(pairs_per_prompt)), pairs_per_prompt)
    prefix = random_.lognormal(5, 0.8, len(pairs_per_prompt)).astype(int)[prompts]
    sides = random_.lognormal(5, 0.8, (2, len(prompts))).astype(int) + 1
    columns = {"prefix_length": prefix, "length": prefix + sides.max(0), "positions": prefix + sides.sum(0)}
    return Dataset.from_dict(columns | {"prompt": [f"{prompt:016x}" for prompt in prompts]})


def steps(sampler: StepSampler, epoch: int = 0) -> list[list[int]]:
    """Return the indices of the pairs of each optimizer step."""
    sampler.epoch = epoch
    order, size = list(sampler), sampler.batch_size * sampler.ranks * sampler.accumulation
    assert len(order) == len(sampler)
    return [order[at : at + size] for at in range(0, len(order), size)]


def imbalance(sampler: StepSampler) -> float:
    """Return the positions of the largest micro-batch relative to the mean, over all complete steps."""
    batches = np.array(steps(sampler)[:-1]).reshape(-1, sampler.ranks * sampler.accumulation, sampler.batch_size)
    positions = sampler.positions[batches].sum(2)
    return (positions.max(1).sum() / positions.mean(1).sum()).item()


@pytest.mark.parametrize("by_prompt", [False, True])
@pytest.mark.parametrize("shape", [(4, 1, 1), (4, 8, 1), (2, 4, 4), (4, 1, 4)])
def test_balanced_steps_have_the_pairs_of_the_random_order(shape: tuple[int, int, int], by_prompt: bool) -> None:
    pairs = lengths([1, 3, 6, 10, 1, 2] * 20)
    size, slots = np.prod(shape), shape[1] * shape[2]
    plain, balanced = (StepSampler(pairs, *shape, group_by_prompt=by_prompt, balance_ranks=on) for on in (False, True))
    for epoch in (0, 1):
        sets = [[Counter(step) for step in steps(sampler, epoch)] for sampler in (plain, balanced)]
        assert sets[0] == sets[1] and all(step.total() == size for step in sets[0][:-1])
        seen = sum(sets[0], Counter())
        assert seen.keys() == set(range(460)), (
            "every pair; the first ones again where the last micro-batch is filled up"
        )
        assert seen.total() == (460 if slots == 1 else -(-460 // (shape[0] * shape[1])) * shape[0] * shape[1])
    assert steps(balanced, 1) == steps(balanced, 1) != steps(balanced, 0) != steps(plain, 0) or slots == 1
    dropped = StepSampler(pairs, *shape, group_by_prompt=by_prompt, drop_last=True)
    assert len(dropped) == 460 // (shape[0] * shape[1]) * shape[0] * shape[1] == len(set(dropped))
    if slots > 1 and not by_prompt:
        assert imbalance(plain) > 1.25 and imbalance(balanced) - 1 < 0.6 * (imbalance(plain) - 1)


def test_pairs_of_a_prompt_stay_together_where_they_fit() -> None:
    def batches_of_prompts(pairs_per_prompt: list[int], batch_size: int, ranks: int) -> list[int]:
        """Return the number of micro-batches of each prompt. Within one, its pairs follow each other."""
        pairs = lengths(pairs_per_prompt)
        order = list(StepSampler(pairs, batch_size, ranks))
        prompts = np.array(pairs["prompt"])[order].reshape(-1, batch_size)
        for batch in prompts:
            assert (batch[1:] != batch[:-1]).sum() == len(set(batch)) - 1
        return sorted(Counter(prompt for batch in prompts for prompt in set(batch)).values())

    assert batches_of_prompts([6] * 40, 6, 2) == [1] * 40
    # Few prompts of unequal sizes are split, since a prompt that fills the step is chosen first.
    assert Counter(batches_of_prompts([6, 3, 1, 2] * 20, 8, 1))[1] > 75
    # 21 pairs need two complete micro-batches of 8, and 5 pairs share one or two with other prompts.
    assert set(batches_of_prompts([21] * 16, 8, 2)) <= {3, 4}
    assert not StepSampler(lengths([1] * 9), 2).prompts.max() < 8, "prompts with one pair each need no grouping"


@pytest.mark.slow
def test_balancing_does_not_change_the_weights(base_model: Path, tmp_path: Path) -> None:
    """Four micro-batches per step are distributed by the same code as four ranks."""
    pairs = jsonl(tmp_path / "pairs.jsonl", pairs_of_prompts(UNEQUAL))
    weights = []
    for balanced in ("True", "False"):
        paths = ["--model_name_or_path", base_model, "--dataset_name", pairs, "--output_dir", tmp_path / balanced]
        more = f"2 --gradient_accumulation_steps 4 --balance_ranks {balanced} --group_by_prompt False --max_steps 8"
        more += " --lr_scheduler_type constant"
        arguments = [*map(str, paths), *STEPS.split(), *more.split(), "--save_strategy", "steps", "--save_steps", "1"]
        train_script.main(arguments)
        files = [tmp_path / balanced / f"checkpoint-{step}" / "model.safetensors" for step in range(1, 9)]
        weights.append([load_file(file) for file in files])
    for before, after in pairwise(weights[0]):
        assert max((before[name] - after[name]).abs().max() for name in before) > 5e-5, "the weights did not change"
    for random_, balanced in zip(*weights, strict=True):
        for name, tensor in random_.items():
            torch.testing.assert_close(balanced[name], tensor, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_ranked_lists_become_trees(base_model: Path, tmp_path: Path) -> None:
    """Four answers with two equal ranks give five pairs, and a step computes each answer once."""
    answers = [{"answer": f"{WORDS[n]} {n}", "rank": rank} for n, rank in enumerate((1, 2, 2, 3))]
    source = jsonl(tmp_path / "ranked.jsonl", [{"prompt": f"{n} {WORDS[9]}", "answers": answers} for n in range(4)])
    pairs = tmp_path / "pairs.jsonl"
    run(sys.executable, "prepare_data.py", source, "--pairing", "all", "--output", pairs)
    paths = ["--model_name_or_path", base_model, "--dataset_name", pairs, "--output_dir", tmp_path / "out"]
    trainer = train_script.main([*map(str, paths), *STEPS.split(), "10", "--max_steps", "2"])
    assert len(trainer.train_dataset) == 20
    groups = trees(list(trainer.train_dataset))[0]
    assert [len(branches) for _, branches in groups] == [4] * 4
    assert trainer.throughput.before[2] == sum(map(positions, groups))


LAUNCHES = {
    "plain": ([sys.executable, *TWO_RANKS], ""),
    "ZeRO-3": (["sh", "train.sh"], "--gradient_accumulation_steps 1 --warmup_steps 0 --lr_scheduler_type linear"),
}


@pytest.mark.slow
def test_zero3_trains_linear_attention_on_two_ranks(tiny_model, tmp_path: Path) -> None:
    """Compare packed rows on two ranks with padded rows in one process."""
    pairs = jsonl(tmp_path / "pairs.jsonl", pairs_of_prompts(UNEQUAL)[:32])  # four complete steps of 8

    def arguments(model: Path, output_dir: str, more: str) -> list[str]:
        paths = ["--model_name_or_path", model, "--dataset_name", pairs, "--output_dir", tmp_path / output_dir]
        return [*map(str, paths), *STEPS.split(), *more.split(), "--group_by_prompt", "True"]

    def losses(output_dir: str) -> list[float]:
        history = json.loads((tmp_path / output_dir / "trainer_state.json").read_text())["log_history"]
        return [log["loss"] for log in history if "loss" in log]

    # A model with a head: under ZeRO-3 this architecture draws other random numbers before it initializes a new one.
    train_script.main(arguments(tiny_model("qwen3_5_text", **LINEAR), "base", "8 --max_steps 1"))
    train_script.main(
        arguments(tmp_path / "base", "one", "8 --max_steps 4 --shared_prefix False --balance_ranks False")
    )
    two = arguments(tmp_path / "base", "two", f"4 {LAUNCHES['ZeRO-3'][1]} --max_steps 4")
    run("sh", "train.sh", *two, NPROC_PER_NODE="2")
    assert losses("two") == pytest.approx(losses("one"), abs=1e-5)


@pytest.mark.slow
def test_two_ranks_equal_one_process(base_model: Path, tmp_path: Path) -> None:
    """Compare balanced trees in passes by tokens with padded pairs in random order; then resume in the second epoch."""
    pairs = jsonl(tmp_path / "pairs.jsonl", pairs_of_prompts(UNEQUAL)[:48])  # six complete steps of 8
    shared = "--max_steps 11 --save_strategy steps --save_steps 8 --group_by_prompt True"

    def arguments(output_dir: str, more: str) -> list[str]:
        paths = ["--model_name_or_path", base_model, "--dataset_name", pairs, "--output_dir", tmp_path / output_dir]
        return [*map(str, paths), *STEPS.split(), *f"{more} {shared}".split()]

    def logs(output_dir: str) -> list[dict]:
        history = json.loads((tmp_path / output_dir / "trainer_state.json").read_text())["log_history"]
        return [log for log in history if "grad_norm" in log]

    trainer = train_script.main(arguments("one", "8 --shared_prefix False --balance_ranks False"))
    assert trainer._sampler.epoch == 1
    expected = logs("one")
    for kind, (start, more) in LAUNCHES.items():
        launch = [*start, *([] if kind == "ZeRO-3" else ["train.py"])]
        two = arguments(kind, f"4 {more} --max_tokens_per_micro_batch 150")
        output = run(*launch, *two, NPROC_PER_NODE="2").stdout
        found = logs(kind)
        assert [log["loss"] for log in found] == pytest.approx([log["loss"] for log in expected], abs=1e-5), output
        assert [log["grad_norm"] for log in found] == pytest.approx([log["grad_norm"] for log in expected], rel=1e-4)
        assert all(0.5 < log["rank_balance"] < 1 for log in found)

    shutil.copytree(tmp_path / "plain" / "checkpoint-8", tmp_path / "resumed" / "checkpoint-8")
    run(*LAUNCHES["plain"][0], "train.py", *arguments("resumed", "4 --resume_from_checkpoint True"))
    losses = [log["loss"] for log in logs("resumed")]
    assert losses == pytest.approx([log["loss"] for log in expected], abs=1e-5), (
        "the resumed run has another order of pairs"
    )
