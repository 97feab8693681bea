"""Report errors across ranks: if a rank raised by itself, the others would wait forever in their next collective."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import gather_object

from reward_model import InputError


@contextmanager
def collect(problems: list[str]) -> Iterator[None]:
    """Append the message of an InputError to `problems`, or of any exception when running on several ranks."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, InputError):
            if not torch.distributed.is_initialized():
                raise
            traceback.print_exc()
        problems.append(str(error) or repr(error))


@contextmanager
def on_all_ranks() -> Iterator[None]:
    """Run a block that may fail on some ranks only, and raise the error on all ranks.

    The block must not contain a collective that a failing rank would skip.
    """
    problems: list[str] = []
    with collect(problems):
        yield
    raise_on_all_ranks(problems)


def raise_on_all_ranks(problems: list[str]) -> None:
    """Raise an InputError that lists the problems from all ranks, on every rank."""
    each: list[list[str]] = gather_object([problems])
    lines = list(dict.fromkeys(line for found in each for line in found))
    for number, line in enumerate(lines):
        ranks = [str(rank) for rank, found in enumerate(each) if line in found]
        lines[number] = line if len(ranks) == len(each) else f"rank {', '.join(ranks)}: {line}"
    if lines:
        raise InputError("\nerror: ".join(lines))
