"""Check the scores from a server against the reference scores saved with a model. Does not need torch."""

import hashlib
import json
import math
import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from reward_model import InputError

# Scores may differ by up to DRIFT times the rounding noise that was measured when the model was saved: in 35 correct
# bfloat16 runs of five models they differed by up to 3.3 times that noise, with wrong weights by 40 times or more.
DRIFT = 5
ROUNDING = {"float32": 0.0, "float16": 1 / 8, "bfloat16": 1.0}  # noise relative to bfloat16; float16 has 3 more bits
FP32_NOISE = 1e-4  # on a CPU with AVX-512, vLLM was off by 2e-4 for a 30-layer model; Transformers was exact
DATE = r"\d{4}-\d\d-\d\d|\d\d? [A-Z][a-z]{2,8},? \d{4}|[A-Z][a-z]{2,8} \d\d?, \d{4}"


def check_reference_scores(model_dir: str | Path, client: Any, dtype: str | None = None) -> str:
    """Check a server's scores; return a sentence that confirms them, or a warning about numerical drift.

    Args:
        model_dir: Directory of the served model.
        client: A RewardClient.
        dtype: The dtype that the server uses; defaults to that of the weights.

    Raises:
        InputError: If a structural fault changes the scores. The message states the cause.
    """
    directory = Path(model_dir)
    if not (directory / "reference_scores.json").is_file():
        write = f"write them with: python evaluate.py reference {directory}"
        return f"{directory} has no reference_scores.json, so the served scores are not checked; {write}"
    reference = _read_reference(directory)
    expected, rounded, served, means, rejected, received = [], [], [], [], 0, None
    for one in reference["conversations"]:
        # Omit use_activation, so that the server's own setting is checked.
        scores = client.score_group([one["messages"]], one["tools"], encoding_format="float")
        if isinstance(scores, str):
            if "returned 400" not in scores:
                raise InputError(scores)
            rejected += 1
            continue
        received = tokenize(client, one["messages"], one["tools"])
        if received and hashlib.sha256(json.dumps(received[0]).encode()).hexdigest() != one["tokens"]:
            raise InputError(text_difference(one["text"], received[1]))
        served += scores
        expected.append(one["score"])
        rounded.append(one.get("rounded_score", one["score"]))
        means.append(one["mean_score"])
    if not served:
        raise InputError(f"the server rejected all {rejected} reference conversations; see its log.")
    half = max_difference(expected, rounded) or 0.1 * statistics.pstdev(expected)
    noise = max(FP32_NOISE, half * ROUNDING.get(dtype or reference["dtype"], 1.0))
    worst = max_difference(expected, served)
    is_fault, cause = compare_scores(expected, served, noise, half, means)
    if cause and received:
        cause = longrope_problem((directory / "config.json").read_text(encoding="utf-8"), received[2]) or cause
    if is_fault:
        raise InputError(f"scores differ by up to {worst:.2g}: {cause}")
    if cause:
        return f"warning: scores differ by up to {worst:.2g}, but rounding explains only {DRIFT * noise:.2g}: {cause}"
    skipped = f"; {rejected} are longer than the server accepts" if rejected else ""
    return f"{len(served)} scores match the reference scores of {directory} within {worst:.1e}{skipped}."


def _read_reference(directory: Path) -> dict[str, Any]:
    """Read the reference scores, and check that the model's files have not changed since they were written."""
    reference = json.loads((directory / "reference_scores.json").read_text(encoding="utf-8"))
    if not all(math.isfinite(one["score"]) for one in reference["conversations"]):
        raise InputError(f"{directory}/reference_scores.json has scores that are not finite: the weights are corrupt.")
    template = directory / "chat_template.jinja"
    if template.is_file() and reference["template"] != hashlib.sha256(template.read_bytes()).hexdigest():
        raise InputError(f"{template} was changed after the reference scores were written; restore the template.")
    if reference["pad_token_id"] != json.loads((directory / "config.json").read_text()).get("pad_token_id"):
        config = f"pad_token_id in {directory}/config.json"
        raise InputError(f"{config} was changed, so Transformers reads the score at a different token; restore it.")
    return reference


def tokenize(client: Any, messages: list[dict[str, Any]], tools: Any = None) -> tuple[list[int], str, int] | None:
    """Return a conversation's token ids on the server, the decoded text and --max-model-len; None without /tokenize."""
    try:
        reply = json.loads(client.post("/tokenize", client.body(messages, tools))[1])
        text = client.post("/detokenize", {"model": client.model, "tokens": reply["tokens"]})[1]
    except RuntimeError:  # ServerError from client.py
        return None
    return reply["tokens"], json.loads(text)["prompt"], reply["max_model_len"]


def longrope_problem(config: str, max_model_len: int) -> str:
    """Explain why a longrope model (Phi-3.5, Phi-4-mini) gives different scores; "" if longrope is not the cause.

    Transformers uses the long factors for texts longer than original_max_position_embeddings; vLLM uses them for every
    text if --max-model-len is larger.
    """
    original = re.search(r'"original_max_position_embeddings": *(\d+)', config)
    if not original or '"longrope"' not in config or max_model_len <= int(original[1]):
        return ""
    cause = f"with --max-model-len {max_model_len} vLLM uses the long factors of this longrope model for every text."
    return f"{cause} Start the server with --max-model-len {original[1]}."


def compare_scores(
    expected: list[float], served: list[float], noise: float, half: float, means: list[float] | None = None
) -> tuple[bool, str]:
    """Return whether scores for identical tokens are structurally wrong, and the cause ("" if rounding explains it).

    Args:
        expected: The reference scores.
        served: The scores from the server.
        noise: Largest change in a score due to rounding to the served dtype, measured when the model was saved.
        half: The same for rounding to bfloat16.
        means: The scores that mean pooling over all tokens would give.
    """
    worst = max_difference(expected, served)
    if worst <= DRIFT * noise:
        return False, ""
    sigmoids = [0.5 + math.tanh(value / 2) / 2 for value in expected]
    patterns = [
        (sigmoids, "the server applies a sigmoid; start it with use_activation false, as infer_vllm.sh does."),
        ([0.0] * len(expected), "the served reward head is zero."),
        (
            means,
            "the server uses mean pooling over all tokens; start it with pooling_type LAST, as infer_vllm.sh does.",
        ),
    ]
    for scores, cause in patterns:
        if scores and max_difference(scores, served) < min(worst / 2, max(1e-2, DRIFT * noise)):
            return True, cause
    if len(expected) > 2 and max(served) == min(served):
        return True, "the server reads the first token, which is always the same; start it with pooling_type LAST."
    residual = math.sqrt(statistics.fmean((a - b) ** 2 for a, b in zip(expected, served, strict=True)))
    if len(expected) > 2 and worst > 2 * DRIFT * noise and residual > 0.5 * statistics.pstdev(expected):
        return True, "the server has the same tokens but different weights (checkpoint, adapter or reward head)."
    if worst <= DRIFT * half:
        return False, "bfloat16 explains it: the served dtype or the weights are rounded."
    return False, "the served weights are coarsely rounded (quantized?) or belong to a closely related model."


def max_difference(first: Iterable[float], second: Iterable[float]) -> float:
    """Return the largest absolute difference between two sequences of the same length."""
    return max(abs(a - b) for a, b in zip(first, second, strict=True))


def text_difference(expected: str, served: str) -> str:
    """Describe how the text that a server renders differs from the text rendered in training."""
    if served == expected:
        return "the server has a different tokenizer: the same text has different tokens."
    if served.startswith(expected):
        return f"the server appends {served[len(expected) :]!r} to the conversation."
    if served.endswith(expected):
        before = served[: -len(expected)]
        added = "a system message" if "system" in before else "text"
        return f"the server adds {added} before the conversation, which training did not: {before!r}."
    if expected.startswith(served) or expected.endswith(served):
        missing = expected[len(served) :] if expected.startswith(served) else expected[: -len(served)]
        return f"the server leaves out {missing!r}, which training rendered."
    at = next(at for at, (a, b) in enumerate(zip(expected, served, strict=False)) if a != b)
    dates = [re.search(DATE, text[max(at - 20, 0) : at + 20]) for text in (expected, served)]
    problem = "prints a different date" if all(dates) else "renders with a different chat template"
    found, wanted = served[at : at + 40], expected[at : at + 40]
    return f"the server {problem}: at character {at + 1} {found!r} instead of {wanted!r}."
