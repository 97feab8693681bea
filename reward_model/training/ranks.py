"""Report errors on several ranks: a rank that raises alone leaves the others waiting in their next collective."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import gather_object

from reward_model import InputError


@contextmanager
def collect(problems: list[str]) -> Iterator[None]:
    """Append the message of an InputError to `problems`; on several ranks, the message of any exception."""
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
    """Run a block in which only some ranks may fail, and raise its error on all of them.

    The block must have no collective that a failing rank would skip.
    """
    problems: list[str] = []
    with collect(problems):
        yield
    raise_on_all_ranks(problems)


def raise_on_all_ranks(problems: list[str]) -> None:
    """Raise one InputError with the problems of all ranks on every rank."""
    each: list[list[str]] = gather_object([problems])
    lines = list(dict.fromkeys(line for found in each for line in found))
    for number, line in enumerate(lines):
        ranks = [str(rank) for rank, found in enumerate(each) if line in found]
        lines[number] = line if len(ranks) == len(each) else f"rank {', '.join(ranks)}: {line}"
    if lines:
        raise InputError("\nerror: ".join(lines))
