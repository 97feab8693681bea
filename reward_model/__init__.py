"""Errors shared by all modules. Nothing heavy is imported here: infer_vllm.sh runs a check before every start."""

import os
import traceback


class InputError(ValueError):
    """A user's mistake. The message says what is wrong, where, and how to fix it. Scripts print it alone."""


class RowError(InputError):
    """A problem of one row, without its place.

    Args:
        reason: Short name under which such rows are counted.
        message: What is wrong.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple:  # by default, unpickling would pass the message alone
        return RowError, (self.reason, str(self))


def print_traceback() -> None:
    """Print the traceback of the current exception if the environment has REWARD_MODEL_DEBUG=1."""
    if os.environ.get("REWARD_MODEL_DEBUG") == "1":
        traceback.print_exc()
