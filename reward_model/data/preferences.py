"""Determine which of several answers is better, from a verdict, scores or ranks."""

import json
from collections.abc import Callable, Iterable
from itertools import combinations, pairwise, product
from typing import Any, NamedTuple

from reward_model import RowError
from reward_model.data.fields import Row, field, first_field, number, prompt_of
from reward_model.data.messages import pair_of
from reward_model.data.pair import Messages, Pair

ANSWER_LISTS = ("completions", "responses", "answers")
ANSWERS = ("response", "answer", "text", "content", "completion", "output")
SCORES = ("overall_score", "score", "rating", "reward", "helpfulness", "fine-grained_score", "pm_score")


class Verdict(NamedTuple):
    """The fields that hold the candidates and the verdict in a dataset that compares two candidates.

    Attributes:
        first, second: The fields (dotted paths) of the candidates.
        by: One field with a label, one field with a number that is negative if the first candidate is better, or two
            fields with one candidate's score each.
        labels: The labels for "first is better", "second is better" and a tie, if `by` is a label.
        prompt: Returns the prompt of a row; None if the candidates are complete conversations.
    """

    first: str
    second: str
    by: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...] = ()
    prompt: Callable[[Row], Any] | None = prompt_of


def _summarization_prompt(row: Row) -> str:
    """Return the prompt in the format of Stiennon et al. 2020, https://arxiv.org/abs/2009.01325, table 4."""
    prefixes = {"subreddit": "SUBREDDIT: r/", "title": "TITLE: ", "post": "POST: ", "article": "ARTICLE: "}
    parts = [f"{prefix}{row['info'][name]}" for name, prefix in prefixes.items() if row["info"].get(name)]
    return "\n\n".join([*parts, "TL;DR:"])


MODELS = (("model_a", "a"), ("model_b", "b"), ("tie", "tie (bothbad)", "both_bad"))
ARROWS = (("a>b", "a>>b"), ("b>a", "b>>a"), ("a=b",))
VERDICTS = [
    Verdict("conversation_a", "conversation_b", ("winner",), MODELS, None),  # Chatbot Arena, MT-Bench
    Verdict("response_a", "response_b", ("winner_model_a", "winner_model_b")),  # Chatbot Arena, one-hot columns
    Verdict("response_a", "response_b", ("winner",), MODELS),
    Verdict("response_A", "response_B", ("winner",), MODELS),
    Verdict("response_A", "response_B", ("label",), ARROWS),  # JudgeBench
    Verdict("response_0", "response_1", ("better_response_id",), (("0",), ("1",), ("-1",))),  # PKU-SafeRLHF
    Verdict("response1", "response2", ("overall_preference",)),  # HelpSteer3
    Verdict("response_1", "response_2", ("preference_strength",)),  # HelpSteer2
    Verdict("output_1", "output_2", ("label",), (("1",), ("2",), ())),  # LLMBar
    Verdict("output_1", "output_2", ("preference",)),  # AlpacaFarm, AlpacaEval
    Verdict("human_ref_A", "human_ref_B", ("labels",), (("1",), ("0",), ()), lambda row: row["history"]),  # SHP
    Verdict("answer_0", "answer_1", ("score_0", "score_1"), (), lambda row: field(row, "question.full_text")),  # WebGPT
    Verdict("summaries.0.text", "summaries.1.text", ("choice",), (("0",), ("1",), ()), _summarization_prompt),
]


def find_verdict(row: Row) -> Verdict | None:
    """Return the first of VERDICTS whose fields are in a row, even if the second candidate is missing (a bad row)."""
    known = (known for known in VERDICTS if all(name.split(".")[0] in row for name in (known.first, *known.by)))
    return next(known, None)


def pair_from_verdict(row: Row, margin_from_gap: bool) -> Pair:
    """Convert a row that matches one of VERDICTS to a pair; raise RowError for a tie or an unknown label."""
    known = find_verdict(row)
    if known is None:
        raise RowError(
            "missing field", f"no fields for two candidates and a verdict (keys: {', '.join(map(str, row))})."
        )
    candidates = [field(row, name) for name in (known.first, known.second)]
    values = [field(row, name) for name in known.by]
    prompt = known.prompt(row) if known.prompt else None
    if known.prompt is None:
        candidates = [_cut_after_turn(conversation, row.get("turn")) for conversation in candidates]
    elif known.by[0] == "winner_model_a":
        candidates, prompt = [_alternating_messages(prompt, answers) for answers in candidates], None
    if known.labels:
        return pair_from_label(prompt, candidates, values[0], known.labels, row)
    scores = [number(value) for value in values]
    if known.by == ("preference",):  # from 1 (first) to 2 (second); 0 and 1.5 are ties
        scores = [scores[0] and scores[0] - 1.5]
    gap = scores[0] - scores[1] if len(scores) > 1 else -scores[0]
    if not gap:
        raise RowError("tie", f"a tie ({', '.join(known.by)}).")
    pair = pair_of(prompt, candidates if gap > 0 else candidates[::-1], row)
    return pair | ({"margin": abs(gap)} if margin_from_gap else {})


def pair_from_label(prompt: Any, candidates: list[Any], label: Any, labels: Iterable[Iterable[str]], row: Row) -> Pair:
    """Build a pair from two candidates and the label that says which one is better.

    Args:
        prompt: Text or messages; None if the candidates are complete conversations.
        candidates: The first and second candidates.
        label: The label in this row.
        labels: The labels for "first is better", "second is better" and a tie.
        row: The source row.

    Raises:
        RowError: For a tie (with the reason "tie") or a label that is not in `labels`.
    """
    label = (f"{label:g}" if isinstance(label, float) else str(label)).strip().lower()
    first, second, tie = ([str(known).lower() for known in group] for group in labels)
    if label in tie:
        raise RowError("tie", f"a tie ({label!r}).")
    if label in ("0", "1", "true", "false") and label not in (*first, *second):
        fix = "pass --label with --label_first, --label_second and --label_tie"
        raise RowError("unclear verdict", f"the label {label!r} is ambiguous; {fix}.")
    if label not in (*first, *second):
        raise RowError("verdict", f"unknown label {label!r}; expected one of {', '.join([*first, *second, *tie])}.")
    return pair_of(prompt, candidates if label in first else candidates[::-1], row)


def pairs_from_scores(row: Row, pairing: str, min_gap: float, margin_from_gap: bool) -> list[Pair]:
    """Pair up the answers in a row by their scores or ranks; raise RowError if no two of them differ by `min_gap`."""
    answers, scores = _answers_and_scores(row)
    order = sorted(range(len(answers)), key=lambda index: -scores[index])
    candidates = {"best": product(order[:1], order[1:]), "all": combinations(order, 2), "adjacent": pairwise(order)}
    prompt, pairs = prompt_of(row), []
    for better, worse in candidates[pairing]:
        gap = scores[better] - scores[worse]
        if gap > 0 and gap >= min_gap:
            pair = pair_of(prompt, (answers[better], answers[worse]), row)
            pairs.append(pair | ({"margin": gap} if margin_from_gap else {}))
    if not pairs:
        raise RowError("tie", f"no two answers differ in score by {max(min_gap, 0):g} or more.")
    return pairs


def _answers_and_scores(row: Row) -> tuple[list[Any], list[float]]:
    answers = first_field(row, ANSWER_LISTS)
    if not isinstance(answers, list) or len(answers) < 2:
        raise RowError("missing field", f"{' / '.join(ANSWER_LISTS)} must be a list of at least two answers.")
    if all(isinstance(answer, dict) for answer in answers):
        has_ranks = all(answer.get("rank") is not None for answer in answers)
        scores = [-number(answer["rank"]) if has_ranks else number(first_field(answer, SCORES)) for answer in answers]
        return [first_field(answer, ANSWERS) for answer in answers], scores
    sign = 1 if row.get("scores") is not None else -1  # rank 0 or 1 is the best
    scores = [sign * number(value) for value in first_field(row, ("scores", "ranks"))]
    if len(scores) != len(answers):
        raise RowError("missing field", f"{len(answers)} answers but {len(scores)} scores.")
    return answers, scores


def _cut_after_turn(conversation: Any, turn: Any) -> Any:
    """Cut a conversation after the answer that was judged; MT-Bench judges the first and second turns separately."""
    answers = [index for index, message in enumerate(conversation) if message.get("role") == "assistant"]
    is_cut = isinstance(turn, int) and 0 < turn < len(answers)
    return conversation[: answers[turn - 1] + 1] if is_cut else conversation


def _alternating_messages(questions: Any, answers: Any) -> Messages:
    """Build a conversation by alternating questions and answers, which are given as two lists or as JSON strings."""
    lists = [json.loads(texts) if isinstance(texts, str) else texts for texts in (questions, answers)]
    messages: Messages = []
    for question, answer in zip(*lists, strict=True):
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages
