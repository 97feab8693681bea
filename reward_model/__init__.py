"""What the scripts share. Nothing heavy is imported here, so that the check of `infer_vllm.sh` takes no time."""


class InputError(ValueError):
    """A user's mistake. The message says what was found, where, and what to do; scripts show it without a traceback."""
