"""Errors shared by all modules. Nothing heavy is imported here: infer_vllm.sh runs a check before every start."""

import os
import traceback


class InputError(ValueError):
    """A user's mistake. The message names the problem, the place and the fix; scripts print it without a traceback."""


class RowError(InputError):
    """A problem of one row. The caller adds the place of the row.

    Args:
        reason: Short name under which such rows are counted.
        message: Description of the problem.
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
