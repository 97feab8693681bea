"""The formats of public preference data: how each is recognized and how its rows become pairs. Add a format here.

A format is a function that converts (row, options) to unvalidated pairs, {"chosen": messages, "rejected": messages}
plus the labels of the row. `@register_format` adds a description and the test that recognizes such rows. The first
match wins, so specific formats come before general ones. The function raises RowError if a field is missing;
`pair.check_pair` validates the messages. A new format also needs a sample in data/formats and a row in
tests/data/test_formats.py.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product

from reward_model import RowError
from reward_model.data import preferences
from reward_model.data.fields import PROMPTS, Row, field, first_field, labels_of, path_value, prompt_of
from reward_model.data.messages import TRANSCRIPT, complete_conversation, pair_of, prompt_messages, transcript_messages
from reward_model.data.pair import SIDES, Pair

# Fields that hold the rejected side in rows whose `messages` are the chosen conversation.
REJECTED = ("rejected_response", "rejected_message", "rejected_messages")
CONVERSATIONS = ("conversations", "messages", "trajectory")


@dataclass(frozen=True)
class Options:
    """How to convert rows to pairs: the arguments of prepare_data.py with the same names (`context` is --input)."""

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


DEFAULT_OPTIONS = Options()


@dataclass(frozen=True)
class Format:
    """A format: `matches` returns whether a row has this format, and `pairs` converts the row."""

    description: str
    matches: Callable[[Row], bool]
    pairs: Callable[[Row, Options], list[Pair]]


FORMATS: dict[str, Format] = {}


def register_format(description: str, matches: Callable[[Row], bool]) -> Callable:
    """Return a decorator that registers a function in FORMATS under its own name."""

    def register(pairs: Callable[[Row, Options], list[Pair]]) -> Callable[[Row, Options], list[Pair]]:
        FORMATS[pairs.__name__] = Format(description, matches, pairs)
        return pairs

    return register


def has_list(row: Row, names: Iterable[str]) -> bool:
    """Return whether any of the given fields is a list."""
    return any(isinstance(row.get(name), list) for name in names)


def both_are(row: Row, kind: type) -> bool:
    """Return whether chosen and rejected are both present and of this type."""
    return all(isinstance(row.get(side), kind) for side in SIDES)


@register_format(
    "conversations (from/value) + chosen, rejected turns",
    lambda row: has_list(row, CONVERSATIONS) and isinstance(row.get("chosen"), dict | str),
)
def sharegpt(row: Row, options: Options) -> list[Pair]:
    """Convert a list of turns followed by one chosen and one rejected turn (LLaMA-Factory, UltraInteract)."""
    return [pair_of(first_field(row, CONVERSATIONS), [field(row, side) for side in SIDES], row)]


@register_format(
    "messages (the chosen conversation) + rejected_response, rejected_message or rejected_messages",
    lambda row: isinstance(row.get("messages"), list) and not row.keys().isdisjoint(REJECTED),
)
def swift(row: Row, options: Options) -> list[Pair]:
    """Convert a chosen conversation and a rejected answer or conversation (ms-swift, OpenPipe)."""
    *prompt, chosen = field(row, "messages")
    if row.get("rejected_messages"):
        return [pair_of(None, [[*prompt, chosen], row["rejected_messages"]], row)]
    return [pair_of(prompt, [chosen, first_field(row, REJECTED[:2])], row)]


@register_format(
    "instruction, input + output: [better, worse]",
    lambda row: "instruction" in row and (isinstance(row.get("output"), list) or both_are(row, str)),
)
def alpaca(row: Row, options: Options) -> list[Pair]:
    """Convert instruction and input, with output: [better, worse] or with chosen and rejected (LLaMA-Factory)."""
    output = row.get("output") or [row.get("chosen"), row.get("rejected")]
    if not isinstance(output, list) or len(output) != 2:
        raise RowError("missing field", "output must be a list of two answers, the better one first.")
    return [pair_of(prompt_of(row), output, row)]


@register_format(
    "chosen, rejected with Human:/Assistant: turns",
    lambda row: both_are(row, str) and all(TRANSCRIPT.match(row[side]) for side in SIDES),
)
def transcript(row: Row, options: Options) -> list[Pair]:
    """Convert transcripts with Human: and Assistant: turns (HH-RLHF)."""
    return [pair_of(None, [transcript_messages(field(row, side)) for side in SIDES], row)]


@register_format(
    "prompt + lists of chosen and rejected answers",
    lambda row: (
        both_are(row, list) and bool(row["chosen"]) and all(isinstance(a, str) for side in SIDES for a in row[side])
    ),
)
def lists(row: Row, options: Options) -> list[Pair]:
    """Combine each chosen answer in one list with each rejected answer in another (RM-Bench, RewardBench 2)."""
    sides = [field(row, side) for side in SIDES]
    if not all(isinstance(answers, list) and answers for answers in sides):
        raise RowError("empty", "chosen and rejected must be lists with at least one answer.")
    return [pair_of(prompt_of(row), answers, row) for answers in product(*sides)]


@register_format(
    "prompt + chosen, rejected as text", lambda row: both_are(row, str) and any(name in row for name in PROMPTS)
)
def text(row: Row, options: Options) -> list[Pair]:
    """Convert a prompt (under any name in PROMPTS), as text or messages, with chosen and rejected as text."""
    return [pair_of(prompt_of(row), [field(row, side) for side in SIDES], row)]


@register_format("two candidates and a verdict", lambda row: preferences.find_verdict(row) is not None)
def verdict(row: Row, options: Options) -> list[Pair]:
    """Convert two candidates with a label, a signed number or two scores (VERDICTS: Chatbot Arena, HelpSteer3, …)."""
    return [preferences.pair_from_verdict(row, options.margin_from_gap)]


@register_format("prompt + answers, each with a score or rank", lambda row: has_list(row, preferences.ANSWER_LISTS))
def scored(row: Row, options: Options) -> list[Pair]:
    """Convert answers, each with a score or rank (0 or 1 is best), as --pairing specifies (UltraFeedback, Nectar)."""
    return preferences.pairs_from_scores(row, options.pairing, options.min_gap, options.margin_from_gap)


@register_format(
    "chosen, rejected as messages (the format of the output)",
    lambda row: any(isinstance(row.get(side), list | dict) for side in SIDES),
)
def messages(row: Row, options: Options) -> list[Pair]:
    """Convert message lists: complete conversations, or answers to a prompt (UltraFeedback-binarized)."""
    prompt = next((row[name] for name in PROMPTS if row.get(name)), None)
    return [{side: complete_conversation(field(row, side), prompt, row) for side in SIDES} | labels_of(row)]


@register_format("named by --prompt, --chosen, --rejected or --candidates, --label", lambda row: False)
def fields(row: Row, options: Options) -> list[Pair]:
    """Convert any other row, by field name (--prompt, --chosen, … or --candidates, --label, …)."""
    prompt = field(row, options.prompt) if options.prompt else None
    if options.context and prompt and (context := path_value(row, options.context)):
        *earlier, last = prompt_messages(prompt)
        prompt = [*earlier, last | {"content": f"{last.get('content')}\n\n{context}"}]
    if options.candidates:
        candidates = [field(row, name) for name in options.candidates]
        labels = (options.label_first, options.label_second, options.label_tie)
        return [preferences.pair_from_label(prompt, candidates, field(row, str(options.label)), labels, row)]
    return [pair_of(prompt, [field(row, str(name)) for name in (options.chosen, options.rejected)], row)]
