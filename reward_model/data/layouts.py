"""The layouts of open preference data, each a small function from a row to pairs of messages.

A format takes (row, options) and returns unchecked pairs: {"chosen": messages, "rejected": messages} and what labels it
knows. It raises RowError where a field is missing; whether the messages make sense is `record.check_pair`'s business.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations, pairwise, product
from typing import Any

from reward_model import RowError
from reward_model.data.pair import SIDES, Messages

Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """How rows become pairs; the fields are prepare_data.py's arguments of the same names."""

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
    input: str | None = None
    system: str | None = None


SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
}

LABEL_FIELDS = {
    "source": ("source",),
    "subset": ("subset", "domain", "category"),
    "id": ("id", "pair_id", "prompt_id", "question_id"),
}


def field(row: Row, name: str) -> Any:
    """The value at a dotted path ("a.b.0"); raises RowError where there is none."""
    value: Any = row
    for part in name.split("."):
        if isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, dict) and value.get(part) is not None:
            value = value[part]
        else:
            keys = ", ".join(map(str, row))
            raise RowError("missing field", f"no {name!r} (keys: {keys}).")
    return value


def first_field(row: Row, names: Iterable[str]) -> Any:
    """The value of the first of several names that the row has."""
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise RowError("missing field", f"none of {', '.join(names)} (keys: {', '.join(map(str, row))}).")


def prompt_messages(prompt: Any) -> Messages:
    """Messages of a prompt: text is the user's turn, or a Human/Assistant transcript; lists are messages already."""
    if isinstance(prompt, list):
        return [chat_message(message) for message in prompt]
    if isinstance(prompt, str) and TURN.match(prompt):
        messages = transcript_messages(prompt)
        open_turn = messages[-1]["role"] == "assistant" and not messages[-1]["content"]
        return messages[:-1] if open_turn else messages
    return [{"role": "user", "content": prompt}]


def answer_messages(answer: Any) -> Messages:
    """Messages of an answer: text or one message is the assistant's turn."""
    if isinstance(answer, list):
        return [chat_message(message) for message in answer]
    return [chat_message(answer) if isinstance(answer, dict) else {"role": "assistant", "content": answer}]


def chat_message(turn: Any) -> Any:
    """A turn with from/value as a message with role/content; anything else as it is, for the check to judge."""
    if not isinstance(turn, dict) or "from" not in turn:
        return turn
    role, value = turn["from"], turn.get("value")
    if role == "function_call":
        try:
            calls = json.loads(value)
            calls = calls if isinstance(calls, list) else [calls]
            functions = [{"name": call["name"], "arguments": call["arguments"]} for call in calls]
        except (TypeError, ValueError, KeyError):
            found = repr(str(value)[:60])
            raise RowError("not text", f"a function_call is no JSON with name and arguments: {found}.") from None
        calls = [{"type": "function", "function": function} for function in functions]
        return {"role": "assistant", "tool_calls": calls}
    return {"role": SHAREGPT_ROLES.get(role, role), "content": value}


def pair_of(prompt: Messages, chosen: Any, rejected: Any, row: Row) -> Row:
    """An unchecked pair of two answers to one prompt, with the row's labels, margin and tools."""
    tools = tools_of(row)
    kept = {} if row.get("margin") is None else {"margin": row["margin"]}
    for label, names in LABEL_FIELDS.items():
        known = [row[name] for name in names if isinstance(row.get(name), str | int)]
        if known:
            kept[label] = known[0]
    pair = {"chosen": prompt + answer_messages(chosen), "rejected": prompt + answer_messages(rejected)}
    return pair | ({"tools": tools} if tools else {}) | kept


def tools_of(row: Row) -> Any:
    """The tools that the assistant had (objects, or JSON text of them), or None."""
    tools = row.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except ValueError:
            raise RowError("not parseable", f"tools is not JSON: {tools[:60]!r}.") from None
    return tools or None


def messages(row: Row, options: Options) -> list[Row]:
    """chosen and rejected as message lists, whole conversations or answers to `prompt` (UltraFeedback-binarized)."""
    pair = pair_of([], [], [], row)
    for side in SIDES:
        said = field(row, side)
        said = [said] if isinstance(said, dict) else said
        if isinstance(said, list):
            said = [chat_message(message) for message in said]
            if row.get("prompt") and said and isinstance(said[0], dict) and said[0].get("role") == "assistant":
                said = prompt_messages(row["prompt"]) + said
        pair[side] = said
    return [pair]


def text(row: Row, options: Options) -> list[Row]:
    """A prompt as text or messages, chosen and rejected as text."""
    return [pair_of(prompt_messages(field(row, "prompt")), field(row, "chosen"), field(row, "rejected"), row)]


TURN = re.compile(r"\s*(Human|Assistant):")
TURNS = re.compile(r"(?:^|\n\n)\s*(Human|Assistant):")


def transcript_messages(transcript: str) -> Messages:
    """Messages of a text whose turns begin with "\\n\\nHuman:" and "\\n\\nAssistant:"; the system's stands before."""
    if not isinstance(transcript, str) or not (parts := TURNS.split(transcript))[1:]:
        raise RowError("not messages", f"no Human:/Assistant: turns in {str(transcript)[:60]!r}.")
    turns = zip(parts[1::2], parts[2::2], strict=True)
    system = [{"role": "system", "content": parts[0].strip()}] if parts[0].strip() else []
    roles = {"Human": "user", "Assistant": "assistant"}
    return system + [{"role": roles[who], "content": said.strip()} for who, said in turns]


def transcript(row: Row, options: Options) -> list[Row]:
    """chosen and rejected as transcripts with Human: and Assistant: turns (HH-RLHF)."""
    return [pair_of([], *(transcript_messages(field(row, side)) for side in SIDES), row)]


def sharegpt(row: Row, options: Options) -> list[Row]:
    """conversations with from/value, chosen and rejected as one such turn (LLaMA-Factory)."""
    history = prompt_messages(first_field(row, ("conversations", "messages")))
    if row.get("system"):
        history = [{"role": "system", "content": row["system"]}, *history]
    return [pair_of(history, field(row, "chosen"), field(row, "rejected"), row)]


def alpaca(row: Row, options: Options) -> list[Row]:
    """instruction, input and output: [better, worse], or chosen and rejected; system and history where given."""
    prompt = "\n".join(part for part in (field(row, "instruction"), row.get("input")) if part)
    history = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    for question, answer in row.get("history") or []:
        history += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    output = row.get("output") or [row.get("chosen"), row.get("rejected")]
    if not isinstance(output, list) or len(output) != 2:
        raise RowError("missing field", "output must be a list of two answers, the better one first.")
    return [pair_of([*history, {"role": "user", "content": prompt}], *output, row)]


# Field of the first candidate, of the second, of the verdict; then the verdicts for first, second, tie.
VERDICTS = [
    ("conversation_a", "conversation_b", "winner", ["model_a"], ["model_b"], ["tie", "tie (bothbad)", "both_bad"]),
    ("response_0", "response_1", "better_response_id", ["0"], ["1"], ["-1"]),
    ("response_a", "response_b", "label", ["a>b", "a>>b"], ["b>a", "b>>a"], ["a=b"]),
    ("output_1", "output_2", "label", ["1"], ["2"], []),
    ("response_a", "response_b", "winner", ["model_a", "a"], ["model_b", "b"], ["tie"]),
]
PROMPTS = ("prompt", "question", "instruction", "input")


def verdict(row: Row, options: Options) -> list[Row]:
    """Two candidates and a verdict (Chatbot Arena, PKU-SafeRLHF, JudgeBench, LLMBar)."""
    row = {name.lower(): value for name, value in row.items()}
    known = [layout for layout in VERDICTS if {layout[0], layout[2]} <= row.keys()]
    if not known:
        raise RowError("missing field", f"no two candidates with a verdict (keys: {', '.join(row)}).")
    first, second, label, *labels = known[0]
    both = [field(row, name) for name in (first, second)]
    prompt = [] if first == "conversation_a" else prompt_messages(first_field(row, PROMPTS))
    return judged(prompt, both, field(row, label), labels, row)


def judged(prompt: Messages, both: list[Any], label: Any, labels: list[Iterable[str]], row: Row) -> list[Row]:
    """The pair of two candidates by a verdict; raises RowError("tie", …) for a tie."""
    label = str(label).strip().lower()
    first, second, tie = ([str(value).lower() for value in values] for values in labels)
    if label in tie:
        raise RowError("tie", f"a tie ({label!r}).")
    if label not in (*first, *second):
        raise RowError("verdict", f"the verdict is {label!r}; known are {', '.join([*first, *second, *tie])}.")
    return [pair_of(prompt, *(both if label in first else both[::-1]), row)]


ANSWER_LISTS = ("completions", "responses", "answers")
ANSWERS = ("response", "answer", "text", "content", "completion", "output")
SCORES = ("overall_score", "score", "rating", "reward", "helpfulness", "fine-grained_score")


def scored(row: Row, options: Options) -> list[Row]:
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
    chances = {
        "best": [(order[0], other) for other in order[1:]],
        "all": combinations(order, 2),
        "adjacent": pairwise(order),
    }
    prompt, pairs = prompt_messages(first_field(row, PROMPTS)), []
    for better, worse in chances[options.pairing]:
        gap = scores[better] - scores[worse]
        if gap > 0 and gap >= options.min_gap:
            pair = pair_of(prompt, answers[better], answers[worse], row)
            pairs.append(pair | ({"margin": gap} if options.margin_from_gap else {}))
    if not pairs:
        raise RowError("tie", f"no two answers differ by a score of {max(options.min_gap, 0):g} or more.")
    return pairs


def number(value: Any) -> float:
    """A score as a float; raises RowError for anything else (UltraFeedback has "N/A")."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise RowError("score", f"the score {value!r} is no number.") from None


def lists(row: Row, options: Options) -> list[Row]:
    """Lists of chosen and of rejected answers to one prompt: every pair of them (RM-Bench, RewardBench 2)."""
    both = [field(row, side) for side in SIDES]
    if not all(isinstance(answers, list) and answers for answers in both):
        raise RowError("empty", "chosen and rejected must be lists of at least one answer.")
    prompt = prompt_messages(first_field(row, PROMPTS))
    return [pair_of(prompt, chosen, rejected, row) for chosen, rejected in product(*both)]


def fields(row: Row, options: Options) -> list[Row]:
    """Any other layout, by the names of its fields (--prompt, --chosen, … or --candidates, --label, …)."""
    prompt = prompt_messages(field(row, options.prompt)) if options.prompt else []
    if options.input and prompt:
        last = prompt[-1]
        prompt = [*prompt[:-1], last | {"content": f"{last.get('content')}\n\n{field(row, options.input)}"}]
    if options.candidates:
        both = [field(row, name) for name in options.candidates]
        labels = [options.label_first, options.label_second, options.label_tie]
        return judged(prompt, both, field(row, options.label), labels, row)
    return [pair_of(prompt, field(row, options.chosen), field(row, options.rejected), row)]
