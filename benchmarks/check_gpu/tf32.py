"""The group that measures the precision of fp32 products in Triton, which vLLM uses for fp32 attention."""

import os
from collections.abc import Iterator

import torch

from benchmarks.check_gpu.table import Row

try:
    import triton
    import triton.language as tl
except ImportError:  # some CPU builds of torch come without it
    triton = None

SIZE = 64

if triton:

    @triton.jit
    def product(a, b, c, size: tl.constexpr, precision: tl.constexpr, case: tl.constexpr):  # noqa: ANN001, ANN201
        """Store a @ b in c, for matrices of one block. Each `case` is compiled separately: the environment differs."""
        rows = tl.arange(0, size)[:, None]
        columns = tl.arange(0, size)[None, :]
        at = rows * size + columns
        if precision is None:  # do not pass it, so that Triton reads TRITON_F32_DEFAULT
            result = tl.dot(tl.load(a + at), tl.load(b + at))
        else:
            result = tl.dot(tl.load(a + at), tl.load(b + at), input_precision=precision)
        tl.store(c + at, result)


def tf32(device: str) -> Iterator[Row]:
    """Compare the default with `ieee`, set by argument and by the variable that infer_vllm.sh sets."""
    if not triton or device == "cpu":
        yield Row("tl.dot", "NOT RUN: Triton needs a GPU" if triton else "NOT RUN: triton is not installed")
        return
    torch.manual_seed(0)
    a, b = torch.randn(2, SIZE, SIZE, device=device).unbind()
    exact = a.double() @ b.double()
    before = os.environ.pop("TRITON_F32_DEFAULT", None)
    cases = (("default", None, None), ("input_precision ieee", "ieee", None), ("TRITON_F32_DEFAULT=ieee", None, "ieee"))
    for number, (name, precision, variable) in enumerate(cases):
        if variable:
            os.environ["TRITON_F32_DEFAULT"] = variable
        found = torch.empty_like(a)
        product[(1,)](a, b, found, SIZE, precision, number)
        error = ((found - exact).norm() / exact.norm()).item()
        passed = None if name == "default" else error < 1e-6
        yield Row(f"tl.dot in fp32, {name}", f"relative error {error:.1e}", passed)
    os.environ.pop("TRITON_F32_DEFAULT")
    if before:
        os.environ["TRITON_F32_DEFAULT"] = before
