"""Errors shared by all modules. Imports nothing heavy, because infer_vllm.sh runs a check before every start."""

import os
import traceback


class InputError(ValueError):
    """An input error. Its message states the problem, where it is and how to fix it. Scripts print no traceback."""


class RowError(InputError):
    """A problem with one row. The caller adds the location of the row.

    Args:
        reason: Short name under which such problems are counted.
        message: Description of the problem.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple:  # by default, unpickling would pass only the message
        return RowError, (self.reason, str(self))


def print_traceback() -> None:
    """Print the traceback of the current exception if REWARD_MODEL_DEBUG=1 is set."""
    if os.environ.get("REWARD_MODEL_DEBUG") == "1":
        traceback.print_exc()
