"""What the scripts share. Nothing heavy is imported here: `client.py` and the checks of `infer_vllm.sh` start at once."""


class InputError(ValueError):
    """A user's mistake. The message says what was found, where, and what to do; scripts show it without a traceback."""
