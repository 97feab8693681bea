"""Metrics of a small example, compared with values computed by hand."""

import numpy as np
import pytest

from reward_model.evaluation import metrics as measures

# Scores of chosen less those of rejected; the first two pairs share a prompt.
MARGINS = np.array([2.0, -1.0, 0.0, 3.0])
PROMPTS = np.array(["a", "a", "b", "c"])
SIGMOID = {1: 0.7310585786, 2: 0.8807970780, 3: 0.9525741268}


def test_accuracy_and_its_interval() -> None:
    assert measures.right(MARGINS).tolist() == [1, 0, 0.5, 1]
    found = measures.measures(MARGINS)
    assert found["ties"] == 1 and found["mean_margin"] == 1.0
    # Prompts have sums 1, 0.5, 1 over 2, 1, 1 pairs. Of the 27 samples of three prompts, the one with c alone gives
    # 1 (3.7%), those without c give 0.5 (29.6%): the 2.5th and 97.5th percentiles.
    assert measures.interval(measures.right(MARGINS), PROMPTS) == (0.5, 1.0)
    # Resampling pairs instead of prompts would be another interval: it reaches below a half.
    assert measures.interval(measures.right(MARGINS), np.arange(4))[0] < 0.5


def test_log_loss_and_calibration() -> None:
    # -log sigmoid of 2, -1, 0 and 3.
    assert measures.log_loss(MARGINS) == pytest.approx((0.1269280 + 1.3132617 + 0.6931472 + 0.0485874) / 4, abs=1e-6)
    # Confidences 0.8808, 0.7311, 0.5, 0.9526 fall into four bins with accuracies 1, 0, a half (a tie) and 1.
    error = ((1 - SIGMOID[2]) + SIGMOID[1] + 0 + (1 - SIGMOID[3])) / 4
    assert measures.calibration_error(MARGINS) == pytest.approx(error, abs=1e-8)
    assert measures.reliability(MARGINS)[0] == (0.5, 0.5, 1)
    # Three of four pairs right with margins of the same size m: the best temperature makes sigmoid(m / T) = 3/4.
    margins = np.array([4.0, 4.0, 4.0, -4.0])
    assert measures.best_temperature(margins) == pytest.approx(4 / np.log(3), rel=1e-3)
    assert measures.calibration_error(margins, 4 / np.log(3)) == pytest.approx(0, abs=1e-8)


def test_length() -> None:
    lengths = np.array([100, 100, 100, 50]), np.array([50, 95, 150, 100])
    assert measures.by_length(MARGINS, *lengths) == {
        "shorter": {"pairs": 2, "accuracy": 0.75},
        "about equal": {"pairs": 1, "accuracy": 0.0},
        "longer": {"pairs": 1, "accuracy": 1.0},
    }
    assert measures.length_correlation(np.array([1.0, 2, 3]), np.array([10, 20, 90])) == 1.0
    assert measures.length_correlation(np.array([1.0, 2, 3]), np.array([5, 5, 5])) == 0.0
