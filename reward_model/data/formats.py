"""The formats of open preference data: how each is recognised, and how its rows become pairs.

A format is one function below, from (row, options) to unchecked pairs: {"chosen": messages, "rejected": messages} and
what labels it knows. Its `@entry` says what such rows are and how they are recognised; the first one that matches is
taken, so the particular stand before the general. A function raises RowError where a field is missing; whether the
messages make sense is `pair.check_pair`'s business. A new format needs a sample in data/formats and a row in
tests/data/test_formats.py besides.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import combinations, pairwise, product
from typing import Any

from reward_model import InputError, RowError
from reward_model.data.fields import PROMPTS, Row, both_are, field, first_field, number
from reward_model.data.messages import (
    TURN,
    chat_message,
    judged_pair,
    pair_of,
    prompt_messages,
    system_messages,
    transcript_messages,
)
from reward_model.data.pair import SIDES, Pair


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


def recognise(rows: Iterable[Any], source: str) -> str:
    """The name of the format of the first row that has one; raises InputError where none has."""
    keys = None
    for row in rows:
        if isinstance(row, dict):
            for name, format_ in FORMATS.items():
                if format_.matches(row):
                    return name
            keys = keys or ", ".join(map(str, row))
    found = f"keys: {keys}" if keys else "no JSON object in them"
    known = "; ".join(f"{name}: {format_.description}" for name, format_ in FORMATS.items())
    raise InputError(
        f"{source}: the first rows have no known layout ({found}). Name the format (--format) or the fields "
        f"(--prompt FIELD --chosen FIELD --rejected FIELD, with prepare_data.py). Known: {known}."
    )


def convert(row: Any, name: str, options: Options) -> list[Pair]:
    """Unchecked pairs of a row in a format; raises RowError."""
    if not isinstance(row, dict):
        raise RowError("not a row", f"an object with chosen and rejected is needed, found {type(row).__name__}.")
    try:
        pairs = FORMATS[name].pairs(row, options)
    except RowError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # a field of a kind that the format never has
        description = FORMATS[name].description
        raise RowError("another layout", f"not laid out as {name} ({description}): {error}.") from None
    if options.system:
        for pair in pairs:
            for side in SIDES:
                if not (pair[side] and isinstance(pair[side][0], dict) and pair[side][0].get("role") == "system"):
                    pair[side] = system_messages(options.system) + pair[side]
    return pairs


@entry(
    "conversations (from/value) + chosen, rejected turns",
    lambda row: (
        isinstance(row.get("conversations", row.get("messages")), list) and isinstance(row.get("chosen"), dict | str)
    ),
)
def sharegpt(row: Row, options: Options) -> list[Pair]:
    """conversations with from/value, chosen and rejected as one such turn (LLaMA-Factory)."""
    history = system_messages(row.get("system")) + prompt_messages(first_field(row, ("conversations", "messages")))
    return [pair_of(history, [field(row, side) for side in SIDES], row)]


@entry(
    "instruction, input + output: [better, worse]",
    lambda row: "instruction" in row and (isinstance(row.get("output"), list) or both_are(row, str)),
)
def alpaca(row: Row, options: Options) -> list[Pair]:
    """instruction, input and output: [better, worse], or chosen and rejected; system and history where given."""
    prompt = "\n".join(part for part in (field(row, "instruction"), row.get("input")) if part)
    history = system_messages(row.get("system"))
    for question, answer in row.get("history") or []:
        history += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    output = row.get("output") or [row.get("chosen"), row.get("rejected")]
    if not isinstance(output, list) or len(output) != 2:
        raise RowError("missing field", "output must be a list of two answers, the better one first.")
    return [pair_of([*history, {"role": "user", "content": prompt}], output, row)]


@entry(
    "chosen, rejected with Human:/Assistant: turns",
    lambda row: both_are(row, str) and all(TURN.match(row[side]) for side in SIDES),
)
def transcript(row: Row, options: Options) -> list[Pair]:
    """chosen and rejected as transcripts with Human: and Assistant: turns (HH-RLHF)."""
    return [pair_of([], [transcript_messages(field(row, side)) for side in SIDES], row)]


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
    prompt = prompt_messages(first_field(row, PROMPTS))
    return [pair_of(prompt, pair, row) for pair in product(*both)]


@entry("prompt + chosen, rejected as text", lambda row: "prompt" in row and both_are(row, str))
def text(row: Row, options: Options) -> list[Pair]:
    """A prompt as text or messages, chosen and rejected as text."""
    return [pair_of(prompt_messages(field(row, "prompt")), [field(row, side) for side in SIDES], row)]


# Field of the first candidate, of the second, of the verdict; then the verdicts for first, second, tie.
VERDICTS = [
    ("conversation_a", "conversation_b", "winner", ["model_a"], ["model_b"], ["tie", "tie (bothbad)", "both_bad"]),
    ("response_0", "response_1", "better_response_id", ["0"], ["1"], ["-1"]),
    ("response_a", "response_b", "label", ["a>b", "a>>b"], ["b>a", "b>>a"], ["a=b"]),
    ("output_1", "output_2", "label", ["1"], ["2"], []),
    ("response_a", "response_b", "winner", ["model_a", "a"], ["model_b", "b"], ["tie"]),
]


@entry(
    "two candidates and a verdict",
    lambda row: any({first, label} <= {key.lower() for key in row} for first, _, label, *_ in VERDICTS),
)
def verdict(row: Row, options: Options) -> list[Pair]:
    """Two candidates and a verdict (Chatbot Arena, PKU-SafeRLHF, JudgeBench, LLMBar)."""
    row = {name.lower(): value for name, value in row.items()}
    known = [names for names in VERDICTS if {names[0], names[2]} <= row.keys()]
    if not known:
        raise RowError("missing field", f"no two candidates with a verdict (keys: {', '.join(row)}).")
    first, second, label, *labels = known[0]
    both = [field(row, name) for name in (first, second)]
    prompt = [] if first == "conversation_a" else prompt_messages(first_field(row, PROMPTS))
    return [judged_pair(prompt, both, field(row, label), labels, row)]


ANSWER_LISTS = ("completions", "responses", "answers")
ANSWERS = ("response", "answer", "text", "content", "completion", "output")
SCORES = ("overall_score", "score", "rating", "reward", "helpfulness", "fine-grained_score")


@entry(
    "prompt + answers with a score or rank each",
    lambda row: any(isinstance(row.get(name), list) for name in ANSWER_LISTS),
)
def scored(row: Row, options: Options) -> list[Pair]:
    """Answers with a score (or a rank, 0 or 1 being best) each: to pairs by --pairing (UltraFeedback, Nectar)."""
    answers = first_field(row, ANSWER_LISTS)
    if not isinstance(answers, list) or len(answers) < 2:
        raise RowError("missing field", f"{' / '.join(ANSWER_LISTS)} must be a list of two answers or more.")
    if all(isinstance(answer, dict) for answer in answers):
        ranked = all(answer.get("rank") is not None for answer in answers)
        scores = [-number(answer["rank"]) if ranked else number(first_field(answer, SCORES)) for answer in answers]
        answers = [first_field(answer, ANSWERS) for answer in answers]
    else:
        sign = 1 if row.get("scores") is not None else -1
        scores = [sign * number(value) for value in first_field(row, ("scores", "ranks"))]
        if len(scores) != len(answers):
            raise RowError("missing field", f"{len(answers)} answers, but {len(scores)} scores.")
    order = sorted(range(len(answers)), key=lambda index: -scores[index])
    chances = {"best": product(order[:1], order[1:]), "all": combinations(order, 2), "adjacent": pairwise(order)}
    prompt, pairs = prompt_messages(first_field(row, PROMPTS)), []
    for better, worse in chances[options.pairing]:
        gap = scores[better] - scores[worse]
        if gap > 0 and gap >= options.min_gap:
            pair = pair_of(prompt, (answers[better], answers[worse]), row)
            pairs.append(pair | ({"margin": gap} if options.margin_from_gap else {}))
    if not pairs:
        raise RowError("tie", f"no two answers differ by a score of {max(options.min_gap, 0):g} or more.")
    return pairs


@entry("chosen, rejected as messages (the one record)", lambda row: "chosen" in row or "rejected" in row)
def messages(row: Row, options: Options) -> list[Pair]:
    """chosen and rejected as message lists, whole conversations or answers to `prompt` (UltraFeedback-binarized)."""
    pair = pair_of([], ([], []), row)
    for side in SIDES:
        said = field(row, side)
        said = [said] if isinstance(said, dict) else said
        if isinstance(said, list):
            said = [chat_message(turn) for turn in said]
            if row.get("prompt") and said and isinstance(said[0], dict) and said[0].get("role") == "assistant":
                said = prompt_messages(row["prompt"]) + said
        pair[side] = said
    return [pair]


@entry("named by --prompt, --chosen, --rejected or --candidates, --label", lambda row: False)
def fields(row: Row, options: Options) -> list[Pair]:
    """Any other layout, by the names of its fields (--prompt, --chosen, … or --candidates, --label, …)."""
    prompt = prompt_messages(field(row, options.prompt)) if options.prompt else []
    if options.context and prompt:
        last = prompt[-1]
        prompt = [*prompt[:-1], last | {"content": f"{last.get('content')}\n\n{field(row, options.context)}"}]
    if options.candidates:
        both = [field(row, name) for name in options.candidates]
        labels = (options.label_first, options.label_second, options.label_tie)
        return [judged_pair(prompt, both, field(row, str(options.label)), labels, row)]
    return [pair_of(prompt, [field(row, str(name)) for name in (options.chosen, options.rejected)], row)]
