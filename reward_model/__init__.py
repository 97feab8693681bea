"""Errors and an exit status. Imports nothing heavy, because infer_vllm.sh and train.sh import it when they start."""

import os
import traceback

STOPPED = 75  # exit status of a run that saved a checkpoint and stopped (EX_TEMPFAIL: run the same command again)


class InputError(ValueError):
    """An invalid input. The message states the problem, its location and the fix. Scripts print no traceback."""


class RowError(InputError):
    """A problem with a single row. The caller adds the row's location.

    Args:
        reason: Short name under which problems of this kind are counted.
        message: Description of the problem.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple:  # the default would pass only the message when unpickling
        return RowError, (self.reason, str(self))


def print_traceback() -> None:
    """Print the traceback of the current exception if REWARD_MODEL_DEBUG=1 is set."""
    if os.environ.get("REWARD_MODEL_DEBUG") == "1":
        traceback.print_exc()
