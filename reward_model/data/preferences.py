"""Answers that a label, a number or a rank of each compares: which is better, and by how much."""

import json
from collections.abc import Callable, Iterable
from itertools import combinations, pairwise, product
from typing import Any, NamedTuple

from reward_model import RowError
from reward_model.data.fields import Row, field, first_field, number, prompt_of
from reward_model.data.messages import pair_of
from reward_model.data.pair import Pair

ANSWER_LISTS = ("completions", "responses", "answers")
ANSWERS = ("response", "answer", "text", "content", "completion", "output")
SCORES = ("overall_score", "score", "rating", "reward", "helpfulness", "fine-grained_score", "pm_score")


class Verdict(NamedTuple):
    """Fields of two candidates, and `by` what they are compared: one field with a word for the first, the second or a
    tie; one with a number that is below 0 where the first is better; or two fields with a number each."""

    first: str
    second: str
    by: tuple[str, ...]
    words: tuple[tuple[str, ...], ...] = ()
    prompt: Callable[[Row], Any] = prompt_of


def _summarized(row: Row) -> str:
    """What is to be summarized, as in Stiennon et al. 2020, https://arxiv.org/abs/2009.01325, table 4."""
    names = {"subreddit": "SUBREDDIT: r/", "title": "TITLE: ", "post": "POST: ", "article": "ARTICLE: "}
    parts = [f"{begin}{row['info'][name]}" for name, begin in names.items() if row["info"].get(name)]
    return "\n\n".join([*parts, "TL;DR:"])


def _whole(row: Row) -> None:
    """No prompt: the candidates are whole conversations."""


MODELS = (("model_a", "a"), ("model_b", "b"), ("tie", "tie (bothbad)", "both_bad"))
ARROWS = (("a>b", "a>>b"), ("b>a", "b>>a"), ("a=b",))
VERDICTS = [
    Verdict("conversation_a", "conversation_b", ("winner",), MODELS, _whole),  # Chatbot Arena, MT-Bench
    Verdict("response_a", "response_b", ("winner_model_a", "winner_model_b")),  # Chatbot Arena's one-hot columns
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
    Verdict("summaries.0.text", "summaries.1.text", ("choice",), (("0",), ("1",), ()), _summarized),
]


def known_verdict(row: Row) -> Verdict | None:
    """The first of VERDICTS whose fields a row has; the second candidate may be missing in a bad one."""
    return next((known for known in VERDICTS if all(_root(name) in row for name in (known.first, *known.by))), None)


def judged(row: Row, margin_from_gap: bool) -> Pair:
    """The pair of a row that is one of VERDICTS; raises RowError for a tie and for an unknown verdict."""
    known = known_verdict(row)
    if known is None:
        raise RowError("missing field", f"no two candidates with a verdict (keys: {', '.join(map(str, row))}).")
    both = [field(row, name) for name in (known.first, known.second)]
    said = [field(row, name) for name in known.by]
    prompt = known.prompt(row)
    if known.prompt is _whole:
        both = [_until(conversation, row.get("turn")) for conversation in both]
    elif known.by[0] == "winner_model_a":
        both, prompt = [_alternating(prompt, answers) for answers in both], None
    if known.by == ("preference",):  # 1 to 2, and 0 or 1.5 for a draw
        said = [number(said[0]) and number(said[0]) - 1.5]
    if known.words:
        return judged_pair(prompt, both, said[0], known.words, row)
    gap = number(said[0]) - number(said[1]) if len(said) > 1 else -number(said[0])
    if not gap:
        raise RowError("tie", f"a tie ({', '.join(known.by)}).")
    pair = pair_of(prompt, both if gap > 0 else both[::-1], row)
    return pair | ({"margin": abs(gap)} if margin_from_gap else {})


def judged_pair(prompt: Any, both: list[Any], label: Any, words: Iterable[Iterable[str]], row: Row) -> Pair:
    """The pair of two candidates by a verdict; `words` are those for the first, for the second, for a tie.

    Raises RowError("tie", …) for a tie, and for a verdict that is none of them.
    """
    label = (f"{label:g}" if isinstance(label, float) else str(label)).strip().lower()
    first, second, tie = ([str(word).lower() for word in meant] for meant in words)
    if label in tie:
        raise RowError("tie", f"a tie ({label!r}).")
    if label in ("0", "1", "true", "false") and label not in (*first, *second):
        found = f"the verdict is {label!r}, and which answer that means is for you to say"
        raise RowError("unclear verdict", f"{found}: --label with --label_first, --label_second and --label_tie.")
    if label not in (*first, *second):
        raise RowError("verdict", f"the verdict is {label!r}; known are {', '.join([*first, *second, *tie])}.")
    return pair_of(prompt, both if label in first else both[::-1], row)


def ranked(row: Row, pairing: str, min_gap: float, margin_from_gap: bool) -> list[Pair]:
    """Pairs of answers with a score or rank each; raises RowError where no two differ by `min_gap`."""
    answers = first_field(row, ANSWER_LISTS)
    if not isinstance(answers, list) or len(answers) < 2:
        raise RowError("missing field", f"{' / '.join(ANSWER_LISTS)} must be a list of two answers or more.")
    if all(isinstance(answer, dict) for answer in answers):
        has_ranks = all(answer.get("rank") is not None for answer in answers)
        scores = [-number(answer["rank"]) if has_ranks else number(first_field(answer, SCORES)) for answer in answers]
        answers = [first_field(answer, ANSWERS) for answer in answers]
    else:
        sign = 1 if row.get("scores") is not None else -1
        scores = [sign * number(value) for value in first_field(row, ("scores", "ranks"))]
        if len(scores) != len(answers):
            raise RowError("missing field", f"{len(answers)} answers, but {len(scores)} scores.")
    order = sorted(range(len(answers)), key=lambda index: -scores[index])
    chances = {"best": product(order[:1], order[1:]), "all": combinations(order, 2), "adjacent": pairwise(order)}
    prompt, pairs = prompt_of(row), []
    for better, worse in chances[pairing]:
        gap = scores[better] - scores[worse]
        if gap > 0 and gap >= min_gap:
            pair = pair_of(prompt, (answers[better], answers[worse]), row)
            pairs.append(pair | ({"margin": gap} if margin_from_gap else {}))
    if not pairs:
        raise RowError("tie", f"no two answers differ by a score of {max(min_gap, 0):g} or more.")
    return pairs


def _root(path: str) -> str:
    return path.split(".")[0]


def _until(conversation: Any, turn: Any) -> Any:
    """A conversation up to the answer that was judged: MT-Bench judges the first and the second."""
    answers = [place for place, message in enumerate(conversation) if message.get("role") == "assistant"]
    is_cut = isinstance(turn, int) and 0 < turn < len(answers)
    return conversation[: answers[turn - 1] + 1] if is_cut else conversation


def _alternating(questions: Any, answers: Any) -> list[dict[str, Any]]:
    """The conversation of a list of questions and a list of answers (or JSON text of them)."""
    both = [json.loads(texts) if isinstance(texts, str) else texts for texts in (questions, answers)]
    roles = ("user", "assistant")
    return [
        {"role": role, "content": said}
        for turn in zip(*both, strict=True)
        for role, said in zip(roles, turn, strict=True)
    ]
