"""The script of `make check-gpu` runs, as far as a CPU can tell, and sees a kernel that is wrong."""

import pytest
import torch

from benchmarks.check_gpu import TINY, kernel, model
from reward_model.model import attention


@pytest.mark.parametrize("wrong", [False, True])
def test_rows_of_the_kernel(wrong: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_key_more(*args: object, scale: float, window: int | None) -> torch.Tensor:
        return attention.sequence_attention(*args, scale=scale, window=window and window + wrong)

    monkeypatch.setattr(attention, "_varlen_attention", one_key_more)
    rows = list(kernel("cpu", 1))
    assert len(rows) == 16
    assert [right for _, _, right in rows] == [not wrong or "window None" in name for name, _, _ in rows]


def test_rows_of_the_model() -> None:
    assert [right for _, _, right in model("cpu", TINY)] == [True, True]
