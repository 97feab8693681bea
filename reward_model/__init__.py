"""What the scripts share. Nothing heavy is imported here, so that the check of `infer_vllm.sh` takes no time."""


class InputError(ValueError):
    """A user's mistake. The message says what was found, where, and what to do; scripts show it without a traceback."""


class RowError(InputError):
    """What is wrong with one row, without its place; `reason` is a short name under which such rows are counted."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple:  # it goes to other processes, and would be made anew from the message alone
        return RowError, (self.reason, str(self))
