"""A command line for rows of an unknown layout, guessed from the names and the values of their fields."""

import re
import shlex
from collections.abc import Iterator
from itertools import islice, permutations
from pathlib import Path
from typing import Any

from reward_model.data.fields import PROMPTS, Row
from reward_model.data.unused import PARTS

# Words of the names of fields.
BETTER = set("chosen better preferred accepted win winner winning pos positive good best w".split())
WORSE = set("rejected worse dispreferred lose loser losing neg negative bad worst l".split())
LABEL = set("label winner preference preferred choice verdict vote judgment judge better annotator selected".split())
PROMPT = {*PROMPTS, "user", "problem", "task", "post", "request"}
ONE_ANSWER = {"completion", "response", "output", "answer", "messages", "conversations", "parent_id"}
# What tells two candidates apart, and the two verdicts on them.
MARKS = [("1", "2"), ("0", "1"), ("a", "b"), ("first", "second"), ("left", "right"), ("one", "two")]
TIE = {"tie", "tied", "same", "equal", "both", "draw", "neither", "none", "c"}
LONGEST_LABEL = 30  # characters
DEEPEST, MOST = 4, 200  # levels looked into, and fields


def proposal(rows: list[Row], source: str) -> str:
    """What to do about rows that could not be read: a command line, where one can be guessed."""
    columns: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in _leaves(row):
            columns.setdefault(name, []).append(value)
    columns = dict(islice(columns.items(), MOST))
    texts = {name: values for name, values in columns.items() if isinstance(values[0], str | list)}
    taken, arguments, note = _answers(columns, texts)
    if not taken and ONE_ANSWER & {path.split(".")[0] for path in columns}:
        return (
            "They look like one answer a row (labelled good or bad as for KTO, rated, or for fine-tuning); a pair "
            "needs two answers to one prompt, and which is better."
        )
    if "prompt.replies" in columns:  # OASST
        return "They are trees of messages; write each two ranked replies to one message as a pair."
    prompts = [name for name in (*PROMPTS, *texts) if name in texts and PROMPT & _words(name) and name not in taken]
    whole = bool(taken) and _is_whole(texts[taken[0]][0])
    if not taken or not (prompts or whole):
        return (
            "Name the fields with prepare_data.py: --prompt FIELD --chosen FIELD --rejected FIELD, or --prompt FIELD "
            "--candidates FIELD FIELD --label FIELD --label_first VALUE --label_second VALUE. docs/data.md lists what "
            "is read as it is."
        )
    if not whole:
        arguments += ["--prompt", prompts[0]]
        left = PARTS.intersection(columns) - {*taken, prompts[0], "system", "system_prompt", "history"}
        mapped = [name for name in ("input", "context") if name in left and isinstance(columns[name][0], str)][:1]
        arguments += ["--input", *mapped] if mapped else []
        arguments += ["--ignore", *sorted(left - {*mapped})] if left - {*mapped} else []
    return f"If these are its fields{note}, this reads them: {command(source, arguments)}"


def command(source: str, arguments: list[str]) -> str:
    """How prepare_data.py is called on a source, ready to be pasted."""
    name = re.split(r"[.:]", Path(source).name)[0]
    output = f"save/{name}/pairs.jsonl"
    return shlex.join([".venv/bin/python", "prepare_data.py", source, "--output", output, *arguments])


def _answers(columns: dict[str, list[Any]], texts: dict[str, list[Any]]) -> tuple[list[str], list[str], str]:
    """(fields of the two answers, arguments that name them, what is left to say): named as better and worse, or alike
    but for a mark and with a label beside them. Of several, the longest texts: models have names, too."""
    named = [
        (one, other)
        for one, other in permutations(texts, 2)
        if BETTER & _words(one) and WORSE & _words(other) and not WORSE & _words(one)
    ]
    if named:
        chosen, rejected = max(named, key=lambda names: _length(texts, names))
        return [chosen, rejected], ["--chosen", chosen, "--rejected", rejected], ""
    marked = {
        (one, other): mark
        for one, other in permutations(texts, 2)
        for mark in MARKS
        if _split(one) == [mark[0] if word == mark[1] else word for word in _split(other)] != _split(other)
    }
    labels = [
        name
        for name, values in columns.items()
        if LABEL & _words(name) and all(len(_said(value)) <= LONGEST_LABEL for value in values)
    ]
    if not marked or not labels:
        return [], [], ""
    both = max(marked, key=lambda names: _length(texts, names))
    meant, note = _meaning({_said(value) for value in columns[labels[0]]}, marked[both])
    return [*both], ["--candidates", *both, "--label", labels[0], *meant], note


def _meaning(values: set[str], mark: tuple[str, str]) -> tuple[list[str], str]:
    """The arguments that say what each verdict means. Numbers are clear only beside candidates with these numbers."""
    ties = {value for value in values if TIE & _words(value)}
    for marks in [mark] if any(value.isdecimal() for value in values) else [mark, *MARKS]:
        sides = [{value for value in values - ties if word in (value, *_words(value))} for word in marks]
        if all(sides) and not sides[0] & sides[1] and sides[0] | sides[1] | ties == values:
            found = ["--label_first", *sorted(sides[0]), "--label_second", *sorted(sides[1])]
            return found + (["--label_tie", *sorted(ties)] if ties else []), ""
    note = f", and FIRST and SECOND are the values that mean so ({', '.join(sorted(values))})"
    return ["--label_first", "FIRST", "--label_second", "SECOND"], note


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of texts, numbers and lists of messages in a row."""
    if path.count(".") > DEEPEST:
        return
    if isinstance(value, dict):
        inner: Any = value.items()
    elif isinstance(value, list) and not (value and isinstance(value[0], dict) and {"role", "from"} & value[0].keys()):
        inner = enumerate(value[:4])
    else:
        if value not in (None, ""):
            yield path, value
        return
    for name, part in [] if _holds_rows(value) else inner:
        yield from _leaves(part, f"{path}.{name}" if path else str(name))


def _holds_rows(value: Any) -> bool:
    """Return whether the parts of a list or object are complete rows, with two answers or a label each.

    Fields of different rows must never become one pair.
    """
    parts = list(value.values()) if isinstance(value, dict) else value
    words = [set[str]().union(*map(_words, map(str, part))) for part in parts if isinstance(part, dict)]
    is_several = isinstance(value, list) or len(words) > 1
    return is_several and any(LABEL & found or (BETTER & found and WORSE & found) for found in words)


def _split(name: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]|\d+", name)]


def _words(name: str) -> set[str]:
    return {name} if re.fullmatch(r"-?[\d.]+", name) else {*_split(name)}


def _said(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).strip()


def _length(texts: dict[str, list[Any]], names: tuple[str, str]) -> int:
    return sum(len(str(value)) for name in names for value in texts[name])


def _is_whole(answer: Any) -> bool:
    return isinstance(answer, list) and answer[0].get("role", answer[0].get("from")) in ("user", "human", "system")
