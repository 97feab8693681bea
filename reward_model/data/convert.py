"""Recognize the format of rows, convert the rows to pairs, and validate the pairs."""

import re
import shlex
from collections.abc import Iterable, Iterator
from itertools import chain, islice, product
from pathlib import Path
from typing import Any, NamedTuple

from reward_model import InputError, RowError
from reward_model.data.fields import NAME_FIELDS, PROMPTS, Row
from reward_model.data.formats import DEFAULT_OPTIONS, FORMATS, Options
from reward_model.data.messages import first_role, messages_in, prompt_messages, system_messages
from reward_model.data.pair import SIDES, Pair, check_pair, from_json
from reward_model.data.readers import NumberedRow, parse_row, place_of

FIRST_ROWS = 100  # number of rows that are read to recognize a format
# Other names for chosen and rejected (argilla, stack-exchange-paired, …), and names for a system message.
SIDE_NAMES = [("chosen_response", "rejected_response"), ("response_j", "response_k"), ("accepted", "rejected")]
SIDE_NAMES += [("preferred_output", "non_preferred_output")]
SYSTEM_NAMES = ("system", "system_prompt")
# Reject a source if any of its first rows fails for a reason in the first group, or if most of them fail for a reason
# in the second: the recognized format is then wrong, and setting rows aside is not enough.
FATAL_REASONS = ("unused field", "unclear verdict")
LAYOUT_REASONS = ("missing field", "another layout", "not messages", "not text", "unknown role", "roles out of order")
# Fields that are likely to be part of a conversation.
CONVERSATION_FIELDS = frozenset(
    "system system_prompt system_message history context input instruction question query prompt messages conversation "
    "conversations dialog dialogue trajectory previous_turns passage document documents initial_reason_steps "
    "chat_template_kwargs".split()  # trl applies chat_template_kwargs to a single row; here all rows share a template
)
# Words in field names, to suggest arguments for an unknown format.
CHOSEN_WORDS = set("chosen better preferred accepted win winner winning pos positive good best w".split())
REJECTED_WORDS = set("rejected worse dispreferred less non lose loser losing neg negative bad worst l".split())
PROMPT_WORDS = {*PROMPTS, "user", "problem", "task", "post", "request"}
WORD = re.compile("[A-Z]?[a-z]+|[A-Z]")
TEXT_KEYS = ("content", "value", "text", "full_text", "input", "output")  # the text of an object, not its metadata


class ConvertedRow(NamedTuple):
    """A row (bytes if it could not be parsed), its location, and its pairs; a RowError replaces each invalid pair."""

    place: str
    number: int
    row: Any
    format: str
    pairs: list[Pair | RowError]


def convert_rows(
    rows: Iterable[NumberedRow], source: str, options: Options = DEFAULT_OPTIONS, format_: str = "auto"
) -> Iterator[ConvertedRow]:
    """Convert and yield every row of a source, in order.

    Args:
        rows: The rows, each with its line or row number.
        source: The name of the source, for the locations in error messages.
        options: How to convert rows to pairs.
        format_: A key of FORMATS, or "auto" to recognize the format from the first rows.

    Raises:
        InputError: If `format_` is "auto" and no format is recognized.
    """
    if format_ == "auto":
        format_, rows = detect_format(rows, source, format_, options)
    for number, row in rows:
        value = parse_row(row)
        original = row if isinstance(value, RowError) else value
        pairs = validated_pairs(value, format_, options)
        yield ConvertedRow(place_of(source, number), number, original, format_, pairs)


def convert_rows_strictly(rows: Iterable[NumberedRow], source: str) -> Iterator[ConvertedRow]:
    """Convert and yield the rows that contain pairs; skip and count ties, and raise InputError at the first bad row."""
    ties = 0
    for converted in convert_rows(rows, source):
        errors = [pair for pair in converted.pairs if isinstance(pair, RowError)]
        for error in errors:
            if error.reason != "tie":
                raise InputError(f"{converted.place}: {error} (prepare_data.py sets bad rows aside.)")
        ties += len(errors)
        pairs: list[Pair | RowError] = [pair for pair in converted.pairs if not isinstance(pair, RowError)]
        if pairs:
            yield converted._replace(pairs=pairs)
    if ties:
        print(f"{source}: skipped {ties} ties.")


def detect_format(
    rows: Iterable[NumberedRow], source: str, format_: str, options: Options
) -> tuple[str, Iterator[NumberedRow]]:
    """Return the format of a source ("auto" is recognized from the first rows) and an iterator over all of its rows.

    Raises:
        InputError: If no format is recognized, or if the first rows cannot be converted.
    """
    rows = iter(rows)
    first = list(islice(rows, FIRST_ROWS))
    if not first:
        raise InputError(f"{source}: empty, no rows.")
    numbers, values = [number for number, _ in first], [parse_row(row) for _, row in first]
    if all(isinstance(value, RowError) for value in values):
        is_json = values[0].reason == "not parseable"
        hint = " If the file is a single JSON array or object, rename it to .json." if is_json else ""
        raise InputError(f"{place_of(source, numbers[0])}: {values[0]}{hint}")
    if format_ == "auto":
        format_ = recognize(values, source, options.ignore)
    problems = []
    for number, value in zip(numbers, values, strict=True):
        pairs = validated_pairs(value, format_, options)
        if pairs and isinstance(pairs[0], RowError):
            problems.append((number, value, pairs[0]))
    fatal = [problem for problem in problems if problem[2].reason in FATAL_REASONS]
    layout = [problem for problem in problems if problem[2].reason in LAYOUT_REASONS]
    if fatal or len(layout) > len(first) / 2:
        number, value, error = (fatal or layout)[0]
        count = "" if fatal else f" ({len(layout)} of the first {len(first)} rows have this problem.)"
        advice = "" if error.reason == "unused field" else f" {suggest_fields(value, source)}"
        raise InputError(f"{place_of(source, number)}: {error}{count}{advice}") from error
    return format_, chain(first, rows)


def recognize(rows: Iterable[Any], source: str, ignore: tuple[str, ...] = ()) -> str:
    """Return the format of the first row that has a known format; raise InputError if no row does."""
    rows = [row for row in rows if isinstance(row, dict)]
    if not rows:
        raise InputError(f"{source}: the first rows are not JSON objects. Rename the file to .json if it is an array.")
    for row in rows:
        try:
            row = _with_standard_names(row, ignore)
        except RowError as error:
            raise InputError(f"{source}: {error}") from error
        for name, format_ in FORMATS.items():
            if format_.matches(row):
                return name
    keys = ", ".join(map(str, rows[0]))
    raise InputError(f"{source}: unknown format (keys: {keys}). {suggest_fields(rows[0], source)}")


def suggest_fields(row: Row, source: str) -> str:
    """Return advice on naming a row's fields: a command if the field names suggest a valid pair, else general advice.

    Only top-level fields are suggested, because two answers taken from a list could belong to different rows.
    """
    names = sorted(row, key=lambda name: len(str(row[name])), reverse=True)  # ids and model names are shorter
    words = {name: {word.lower() for word in WORD.findall(name)} for name in names}
    rejected = [name for name in names if REJECTED_WORDS & words[name]]
    chosen = [name for name in names if CHOSEN_WORDS & words[name] and name not in rejected]
    prompts = [name for name in names if PROMPT_WORDS & words[name]]
    for prompt, better, worse in product([None, *prompts], chosen, rejected):
        (pair,) = validated_pairs(row, "fields", Options(prompt=prompt, chosen=better, rejected=worse))
        if not isinstance(pair, RowError):
            output = f"save/{Path(source).name.split('.')[0]}/pairs.jsonl"
            arguments = ["--output", output, "--chosen", better, "--rejected", worse]
            arguments += ["--prompt", prompt] if prompt else []
            command = shlex.join([".venv/bin/python", "prepare_data.py", source, *arguments])
            return f"If these are the right fields, run: {command}"
    return NAME_FIELDS


def validated_pairs(row: Any, format_: str, options: Options) -> list[Pair | RowError]:
    """Return the validated pairs in a parsed row; a RowError replaces each invalid pair, or all pairs of a bad row."""
    if isinstance(row, RowError):
        return [row]
    try:
        return [_validated_pair(pair) for pair in convert_row(row, format_, options)]
    except RowError as error:
        return [error]


def _validated_pair(pair: Pair) -> Pair | RowError:
    try:
        return check_pair(pair)
    except RowError as error:
        return error


def convert_row(row: Any, format_: str, options: Options) -> list[Pair]:
    """Convert a row to unvalidated pairs; raise RowError if the row does not have this format."""
    if not isinstance(row, dict):
        raise RowError("not a row", f"expected an object with chosen and rejected, found {type(row).__name__}.")
    row = _with_standard_names(row, options.ignore)
    try:
        pairs = FORMATS[format_].pairs(row, options)
    except RowError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # a field has a type that is not allowed here
        expected = f"{format_} ({FORMATS[format_].description})"
        raise RowError("another layout", f"the row does not have the format {expected}: {error}.") from error
    system = system_messages(next(filter(None, map(row.get, SYSTEM_NAMES)), options.system))
    for pair in pairs if system else []:
        for side in SIDES:
            messages = pair[side]
            if isinstance(messages, list) and first_role(messages) != "system":
                pair[side] = system + messages
    if pairs:
        check_all_used(row, pairs[0])
    return pairs


def _with_standard_names(row: Row, ignore: tuple[str, ...]) -> Row:
    """Return a row with messages in JSON text parsed, and with its answer fields renamed to chosen and rejected."""
    row = {name: messages_in(value, name) for name, value in row.items() if name not in ignore}
    if isinstance(value := row.get("input"), dict) and "messages" in value:  # OpenAI, Azure
        row = row | {"prompt": value["messages"], "tools": value.get("tools")}
        del row["input"]
    if "chosen" in row:
        return row
    for names in SIDE_NAMES:
        if all(name in row for name in names):
            standard = dict(zip(names, SIDES, strict=True))
            return {standard.get(name, name): value for name, value in row.items()}
    return row


def check_all_used(row: Row, pair: Pair) -> None:
    """Raise RowError if a conversation field has text that is neither a message of the pair nor lines of one."""
    names = CONVERSATION_FIELDS.intersection(row)
    if not names or not all(isinstance(pair[side], list) for side in SIDES):
        return
    contents = [message.get("content") for side in SIDES for message in pair[side] if isinstance(message, dict)]
    known = [*contents, *(pair[side] for side in SIDES)]
    rest = [name for name in names if row[name] not in known]  # fast: most fields are an entire message or conversation
    texts = [f"\n{text}\n" for text in contents if isinstance(text, str)] if rest else []
    unused = sorted(name for name in rest if not _is_used(row[name], texts))
    if unused:
        fix = f"map it (--prompt, --input, --chosen, --rejected) or ignore it (--ignore {' '.join(unused)})"
        found = f"{', '.join(unused)} may be part of the conversation but is not used"
        raise RowError("unused field", f"{found}; {fix}.")


def _is_used(value: Any, texts: list[str]) -> bool:
    """Return whether `texts`, which start and end with a line break, contain every text in a value as whole lines."""
    if isinstance(value, str):
        if not value.strip() or any(f"\n{part}\n" in text for part in (value, value.strip()) for text in texts):
            return True
        parts = from_json(value, list) if value.startswith('["') else prompt_messages(value)  # a transcript's turns
        is_single_text = parts in (value, [{"role": "user", "content": value}])
        return not is_single_text and _is_used(parts, texts)
    if isinstance(value, list):
        return all(_is_used(part, texts) for part in value)
    if isinstance(value, dict) and value.get("from") != "function_call":
        parts = [value[name] for name in TEXT_KEYS if name in value] or list(value.values())
        return all(_is_used(part, texts) for part in parts)
    return value is None or isinstance(value, dict)  # a function call, or a number or flag that no text contains
