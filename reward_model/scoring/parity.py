"""Whether a server gives the scores that Transformers gives, and if not, which rule of scoring is broken."""

from typing import Any

import numpy as np
import requests
from scipy.special import expit
from scipy.stats import spearmanr
from transformers import PreTrainedTokenizerBase

from reward_model.data.pair import Messages

# Largest difference of scores that rounding explains, by the dtype of the weights. In fp32 it is about 1e-5, but on
# a CPU with AVX-512 vLLM was 2e-4 off for a model of 30 layers, where Transformers stayed within 2e-5 of fp64; its
# library has an exponential of 20 bits for such CPUs.
TOLERANCE = {"float32": 5e-4, "float16": 2e-2, "bfloat16": 1e-1}


def score_differences(here: list[float], served: list[float], dtype: str) -> dict[str, Any]:
    """Differences of two lists of scores of the same conversations; `worst` is the index of the largest."""
    difference = np.abs(np.subtract(here, served))
    return {
        "conversations": len(here),
        "largest_difference": float(difference.max()),
        "tolerance": TOLERANCE[dtype],
        "rank_correlation": float(spearmanr(here, served).statistic) if len(here) > 2 else 1.0,
        "worst": int(difference.argmax()),
        "equal": bool(difference.max() <= TOLERANCE[dtype]),
    }


def cause(
    here: list[float],
    served: list[float],
    expected: list[int],
    received: list[int] | None,
    tokenizer: PreTrainedTokenizerBase,
) -> str:
    """Which rule is broken, as far as scores and the tokens of the worst conversation tell.

    `expected` are the tokens that training had, `received` those that the server makes (None: it does not say).
    """
    if np.abs(expit(here) - served).max() < 1e-3:
        return "the server applies a sigmoid; start it with use_activation false, as infer_vllm.sh does."
    if received is None:
        return "the server does not tell its tokens (/tokenize), so the cause cannot be named."
    if received == expected:
        return (
            "the server reads the same tokens, so either its pooler does not read the last one (pooling_type LAST), or "
            "its weights or dtype are others."
        )
    if received[: len(expected)] == expected:
        return f"the server appends {tokenizer.decode(received[len(expected) :])!r} to the conversation."
    if received[-len(expected) :] == expected:
        before = tokenizer.decode(received[: -len(expected)])
        what = "a system message" if "system" in before else "tokens"
        return f"the server puts {what} before the conversation that training did not have: {before!r}."
    if expected[: len(received)] == received or expected[-len(received) :] == received:
        missing = tokenizer.decode(
            expected[len(received) :] if expected[: len(received)] == received else expected[: -len(received)]
        )
        return f"the server leaves out {missing!r}, which training had."
    at = next(i for i, (a, b) in enumerate(zip(expected, received, strict=False)) if a != b)
    ours, theirs = (tokenizer.decode(ids[at : at + 8]) for ids in (expected, received))
    return f"the server renders with another chat template: at token {at + 1} {theirs!r} instead of {ours!r}."


def served_tokens(
    url: str, model: str, messages: Messages, tools: list[dict[str, Any]] | None, headers: dict[str, str]
) -> list[int] | None:
    """The tokens that the server makes of a conversation, None where it has no /tokenize."""
    body: dict[str, Any] = {"model": model, "messages": messages, "add_generation_prompt": False}
    body |= {"chat_template_kwargs": {"tools": tools}} if tools else {}
    response = requests.post(f"{url.rstrip('/')}/tokenize", json=body, headers=headers, timeout=60)
    return response.json().get("tokens") if response.ok else None
