"""The losses follow their formulas, and the default is trl's loss."""

from pathlib import Path

import pytest
import torch
from helpers import demo_pairs, jsonl
from trl import RewardTrainer

import train as train_script
from reward_model.training.loss import LOSSES, pair_losses

CHOSEN, REJECTED, MARGIN = torch.randn(3, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind()
# Losses of the difference d = chosen - rejected.
FORMULAS = {
    "bradley_terry": lambda d, margin: -torch.sigmoid(d).log(),
    "margin": lambda d, margin: -torch.sigmoid(d - margin).log(),
    "scaled": lambda d, margin: -margin * torch.sigmoid(d).log(),
}


@pytest.mark.parametrize("loss_type", LOSSES)
def test_losses_follow_their_formulas(loss_type: str) -> None:
    expected = FORMULAS[loss_type](CHOSEN - REJECTED, MARGIN)
    assert torch.allclose(pair_losses(CHOSEN, REJECTED, MARGIN, loss_type), expected)
    plain = FORMULAS["bradley_terry"](CHOSEN - REJECTED, None)
    assert torch.allclose(pair_losses(CHOSEN, REJECTED, None, loss_type), plain), "pairs without a margin"


def test_smoothing_and_centering() -> None:
    """-(1 - e) log sigmoid(d) - e log sigmoid(-d), Mitchell 2023; c (chosen + rejected)^2, Eisenstein et al. 2023."""
    d = CHOSEN - REJECTED - MARGIN
    expected = -0.8 * torch.sigmoid(d).log() - 0.2 * torch.sigmoid(-d).log() + 0.1 * (CHOSEN + REJECTED) ** 2
    assert torch.allclose(pair_losses(CHOSEN, REJECTED, MARGIN, "margin", 0.2, 0.1), expected)


def test_default_loss_equals_the_loss_of_trl(base_model: Path, tmp_path: Path) -> None:
    pairs = jsonl(tmp_path / "pairs.jsonl", [pair | {"margin": n / 4} for n, pair in enumerate(demo_pairs()[:8])])
    paths = ["--model_name_or_path", base_model, "--dataset_name", pairs, "--output_dir", tmp_path / "out"]
    more = "--max_steps 1 --eval_size 0 --report_to none --save_strategy no --center_rewards_coefficient 0.01"
    trainer = train_script.main([*map(str, paths), *more.split()])
    batch = trainer.data_collator([trainer.train_dataset[n] for n in range(8)])
    ours = trainer.compute_loss(trainer.model, dict(batch))
    theirs = RewardTrainer.compute_loss(trainer, trainer.model, {**batch, "attention_mask": batch["input_ids"]})
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-7)


def test_scaled_loss_is_used_in_training(base_model: Path, tmp_path: Path) -> None:
    pairs = jsonl(tmp_path / "pairs.jsonl", [pair | {"margin": 3.0} for pair in demo_pairs()[:8]])
    losses = {}
    for loss_type in ("bradley_terry", "scaled"):
        paths = ["--model_name_or_path", base_model, "--dataset_name", pairs, "--output_dir", tmp_path / loss_type]
        more = "--max_steps 1 --logging_steps 1 --eval_size 0 --report_to none --save_strategy no --loss_type"
        trainer = train_script.main([*map(str, paths), *more.split(), loss_type])
        losses[loss_type] = next(log["loss"] for log in trainer.state.log_history if "loss" in log)
    assert losses["scaled"] == pytest.approx(3 * losses["bradley_terry"], rel=1e-3)
