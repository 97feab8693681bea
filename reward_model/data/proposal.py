"""A command line for rows of an unknown layout, guessed from the names of their fields."""

import re
import shlex
from pathlib import Path
from typing import Any

from reward_model.data.fields import PROMPTS, Row

# Words of the names of fields.
BETTER = set("chosen better preferred accepted win winner winning pos positive good best w".split())
WORSE = set("rejected worse dispreferred lose loser losing neg negative bad worst l".split())
PROMPT = {*PROMPTS, "user", "problem", "task", "post", "request"}
ANSWER = {"completion", "response", "output", "answer", "messages", "conversations", "parent"}
NAME_FIELDS = (
    "Name the fields with prepare_data.py: --prompt FIELD --chosen FIELD --rejected FIELD, or --prompt FIELD "
    "--candidates FIELD FIELD --label FIELD --label_first VALUE --label_second VALUE. docs/data.md lists what is read "
    "as it is."
)
ONE_ANSWER = (
    "They look like one answer a row (labelled good or bad as for KTO, rated, or for fine-tuning); a pair needs two "
    "answers to one prompt, and which is better."
)
TREES = "They are trees of messages; write each two ranked replies to one message as a pair."


def proposal(row: Row, source: str) -> str:
    """Return what to do about a row that could not be read: a command line, where one can be guessed.

    Only fields of the row itself are named: two answers from within a list could belong to different rows.
    """
    texts = {name: value for name, value in row.items() if isinstance(value, str) or _first_role(value)}
    worse = [name for name in texts if WORSE & _words(name)]
    better = [name for name in texts if BETTER & _words(name) and name not in worse]
    if not (better and worse):
        if len([name for name in row if ANSWER & _words(name)]) == 1:
            return ONE_ANSWER
        is_tree = isinstance(row.get("prompt"), dict) and "replies" in row["prompt"]  # OASST
        return TREES if is_tree else NAME_FIELDS
    # The longest of several: models have names, too.
    chosen, rejected = (max(names, key=lambda name: len(str(row[name]))) for names in (better, worse))
    arguments = ["--chosen", chosen, "--rejected", rejected]
    if _first_role(row[chosen]) not in ("user", "human", "system"):
        prompts = [name for name in texts if PROMPT & _words(name) and name not in (chosen, rejected)]
        if not prompts:
            return NAME_FIELDS
        arguments += ["--prompt", prompts[0]]
    output = f"save/{re.split('[.:]', Path(source).name)[0]}/pairs.jsonl"
    command = shlex.join([".venv/bin/python", "prepare_data.py", source, "--output", output, *arguments])
    return f"If these are its fields, this reads them: {command}"


def _words(name: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]|\d+", name)}


def _first_role(value: Any) -> str | None:
    """Return the role of the first of several messages; None for anything else."""
    first = value[0] if isinstance(value, list) and value else None
    return first.get("role", first.get("from")) if isinstance(first, dict) else None
