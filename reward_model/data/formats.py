"""The formats of open preference data: how each is recognised, and how its rows become pairs.

A format is one function below, from (row, options) to unchecked pairs: {"chosen": messages, "rejected": messages} and
what labels it knows. Its `@entry` says what such rows are and how they are recognised; the first one that matches is
taken, so the particular stand before the general. A function raises RowError where a field is missing; whether the
messages make sense is `pair.check_pair`'s business. A new format needs a sample in data/formats and a row in
tests/data/test_formats.py besides.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any

from reward_model import InputError, RowError
from reward_model.data.fields import PROMPTS, Row, both_are, field, first_field, labels_of, path_value, prompt_of
from reward_model.data.messages import (
    TRANSCRIPT,
    answer_messages,
    chat_message,
    messages_in,
    pair_of,
    prompt_messages,
    system_messages,
    transcript_messages,
)
from reward_model.data.pair import SIDES, Pair
from reward_model.data.preferences import ANSWER_LISTS, judged, judged_pair, known_verdict, ranked
from reward_model.data.proposal import proposal
from reward_model.data.unused import check_all_used

# Other names for chosen and rejected (argilla, stack-exchange-paired, …), for a conversation before the answers, and
# for a system message.
SIDE_NAMES = [("chosen_response", "rejected_response"), ("response_j", "response_k"), ("accepted", "rejected")]
SIDE_NAMES += [("preferred_output", "non_preferred_output")]
REJECTED = ("rejected_response", "rejected_message", "rejected_messages")  # beside the chosen conversation
CONVERSATIONS = ("conversations", "messages", "trajectory")
SYSTEMS = ("system", "system_prompt")


@dataclass(frozen=True)
class Options:
    """How rows become pairs; the fields are prepare_data.py's arguments (`context` is --input)."""

    pairing: str = "best"
    min_gap: float = 0.0
    margin_from_gap: bool = False
    prompt: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    candidates: tuple[str, str] | None = None
    label: str | None = None
    label_first: tuple[str, ...] = ()
    label_second: tuple[str, ...] = ()
    label_tie: tuple[str, ...] = ()
    context: str | None = None
    system: str | None = None
    ignore: tuple[str, ...] = ()


NO_OPTIONS = Options()


@dataclass(frozen=True)
class Format:
    """`matches` says whether a row looks like the format, `pairs` converts it."""

    description: str
    matches: Callable[[Row], bool]
    pairs: Callable[[Row, Options], list[Pair]]


FORMATS: dict[str, Format] = {}


def entry(description: str, matches: Callable[[Row], bool]) -> Callable:
    """Enters the decorated function into FORMATS, under its name."""

    def enter(pairs: Callable[[Row, Options], list[Pair]]) -> Callable[[Row, Options], list[Pair]]:
        FORMATS[pairs.__name__] = Format(description, matches, pairs)
        return pairs

    return enter


def recognise(rows: Iterable[Any], source: str, ignore: tuple[str, ...] = ()) -> str:
    """Return the name of the format of the first row that has one; raises InputError where none has."""
    rows = [row for row in rows if isinstance(row, dict)]
    try:
        for row in (_named(row, ignore) for row in rows):
            for name, format_ in FORMATS.items():
                if format_.matches(row):
                    return name
    except RowError as error:
        raise InputError(f"{source}: {error}") from error
    if not rows:
        raise InputError(f"{source}: no JSON object in the first rows, which should have chosen and rejected.")
    keys = ", ".join(map(str, rows[0]))
    raise InputError(f"{source}: the first rows have no known layout (keys: {keys}). {proposal(rows[0], source)}")


def convert(row: Any, name: str, options: Options) -> list[Pair]:
    """Unchecked pairs of a row in a format; raises RowError."""
    if not isinstance(row, dict):
        raise RowError("not a row", f"an object with chosen and rejected is needed, found {type(row).__name__}.")
    row = _named(row, options.ignore)
    try:
        pairs = FORMATS[name].pairs(row, options)
    except RowError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # a field of a kind that the format never has
        description = FORMATS[name].description
        raise RowError("another layout", f"not laid out as {name} ({description}): {error}.") from error
    system = system_messages(next(filter(None, map(row.get, SYSTEMS)), options.system))
    for pair in pairs if system else []:
        for side, said in ((side, pair[side]) for side in SIDES):
            if isinstance(said, list) and not (said and isinstance(said[0], dict) and said[0].get("role") == "system"):
                pair[side] = system + said
    if pairs:
        check_all_used(row, pairs[0])
    return pairs


def _named(row: Row, ignore: tuple[str, ...]) -> Row:
    """Return a row with JSON text of messages parsed and its answers called chosen and rejected."""
    row = {name: messages_in(value, name) for name, value in row.items() if name not in ignore}
    if isinstance(asked := row.get("input"), dict) and "messages" in asked:  # OpenAI, Azure
        row = row | {"prompt": asked["messages"], "tools": asked.get("tools")}
        del row["input"]
    for names in [] if "chosen" in row else SIDE_NAMES:
        if all(name in row for name in names):
            rest = {name: value for name, value in row.items() if name not in names}
            return rest | {side: row[name] for side, name in zip(SIDES, names, strict=True)}
    return row


@entry(
    "conversations (from/value) + chosen, rejected turns",
    lambda row: (
        any(isinstance(row.get(name), list) for name in CONVERSATIONS) and isinstance(row.get("chosen"), dict | str)
    ),
)
def sharegpt(row: Row, options: Options) -> list[Pair]:
    """A conversation as from/value or role/content, chosen and rejected as one turn (LLaMA-Factory, UltraInteract)."""
    return [pair_of(first_field(row, CONVERSATIONS), [field(row, side) for side in SIDES], row)]


@entry(
    "messages (the chosen conversation) + rejected_response, rejected_message or rejected_messages",
    lambda row: isinstance(row.get("messages"), list) and not row.keys().isdisjoint(REJECTED),
)
def swift(row: Row, options: Options) -> list[Pair]:
    """messages is the chosen conversation; rejected_response (ms-swift) or rejected_message (OpenPipe) is the other
    answer, rejected_messages the other conversation."""
    chosen, rejected = field(row, "messages"), row.get("rejected_messages")
    if not rejected:
        rejected = chosen[:-1] + answer_messages(first_field(row, REJECTED[:2]))
    return [pair_of(None, [chosen, rejected], row)]


@entry(
    "instruction, input + output: [better, worse]",
    lambda row: "instruction" in row and (isinstance(row.get("output"), list) or both_are(row, str)),
)
def alpaca(row: Row, options: Options) -> list[Pair]:
    """instruction, input and output: [better, worse], or chosen and rejected (LLaMA-Factory)."""
    output = row.get("output") or [row.get("chosen"), row.get("rejected")]
    if not isinstance(output, list) or len(output) != 2:
        raise RowError("missing field", "output must be a list of two answers, the better one first.")
    return [pair_of(prompt_of(row), output, row)]


@entry(
    "chosen, rejected with Human:/Assistant: turns",
    lambda row: both_are(row, str) and all(TRANSCRIPT.match(row[side]) for side in SIDES),
)
def transcript(row: Row, options: Options) -> list[Pair]:
    """chosen and rejected as transcripts with Human: and Assistant: turns (HH-RLHF)."""
    return [pair_of(None, [transcript_messages(field(row, side)) for side in SIDES], row)]


@entry(
    "prompt + lists of chosen and rejected answers",
    lambda row: (
        both_are(row, list) and bool(row["chosen"]) and all(isinstance(a, str) for side in SIDES for a in row[side])
    ),
)
def lists(row: Row, options: Options) -> list[Pair]:
    """Lists of chosen and of rejected answers to one prompt: every pair of them (RM-Bench, RewardBench 2)."""
    both = [field(row, side) for side in SIDES]
    if not all(isinstance(answers, list) and answers for answers in both):
        raise RowError("empty", "chosen and rejected must be lists of at least one answer.")
    return [pair_of(prompt_of(row), pair, row) for pair in product(*both)]


@entry("prompt + chosen, rejected as text", lambda row: both_are(row, str) and any(name in row for name in PROMPTS))
def text(row: Row, options: Options) -> list[Pair]:
    """A prompt (or question, instruction, query, input, context) as text or messages, chosen and rejected as text."""
    return [pair_of(prompt_of(row), [field(row, side) for side in SIDES], row)]


@entry("two candidates and a verdict", lambda row: known_verdict(row) is not None)
def verdict(row: Row, options: Options) -> list[Pair]:
    """Two candidates and a label, a signed number or a number each (VERDICTS: Chatbot Arena, HelpSteer3, …)."""
    return [judged(row, options.margin_from_gap)]


@entry(
    "prompt + answers with a score or rank each",
    lambda row: any(isinstance(row.get(name), list) for name in ANSWER_LISTS),
)
def scored(row: Row, options: Options) -> list[Pair]:
    """Answers with a score (or a rank, 0 or 1 being best) each: to pairs by --pairing (UltraFeedback, Nectar)."""
    return ranked(row, options.pairing, options.min_gap, options.margin_from_gap)


@entry(
    "chosen, rejected as messages (the one record)",
    lambda row: any(isinstance(row.get(side), list | dict) for side in SIDES),
)
def messages(row: Row, options: Options) -> list[Pair]:
    """chosen and rejected as message lists, whole conversations or answers to a prompt (UltraFeedback-binarized)."""
    pair = labels_of(row)
    for side in SIDES:
        said = field(row, side)
        said = [said] if isinstance(said, dict) else said
        if isinstance(said, list):
            said = [chat_message(turn) for turn in said]
            if said and isinstance(said[0], dict) and said[0].get("role") == "assistant":
                prompt = next((row[name] for name in PROMPTS if row.get(name)), None)
                said = pair_of(prompt, (said, said), row)[side]
        pair[side] = said
    return [pair]


@entry("named by --prompt, --chosen, --rejected or --candidates, --label", lambda row: False)
def fields(row: Row, options: Options) -> list[Pair]:
    """Any other layout, by the names of its fields (--prompt, --chosen, … or --candidates, --label, …)."""
    prompt = field(row, options.prompt) if options.prompt else None
    if options.context and prompt and (more := path_value(row, options.context)):
        *earlier, last = prompt_messages(prompt)
        prompt = [*earlier, last | {"content": f"{last.get('content')}\n\n{more}"}]
    if options.candidates:
        both = [field(row, name) for name in options.candidates]
        words = (options.label_first, options.label_second, options.label_tie)
        return [judged_pair(prompt, both, field(row, str(options.label)), words, row)]
    return [pair_of(prompt, [field(row, str(name)) for name in (options.chosen, options.rejected)], row)]
