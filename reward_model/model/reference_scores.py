"""Reference scores: fixed conversations with their tokens and scores, saved with the weights of a reward model.

`client.py check` and infer_vllm.sh check a server against them, without torch: reward_model/scoring/reference_check.py.
The scores are computed by calling the body and the head directly, without autocast and without packing.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reward_model import InputError
from reward_model.model.modeling import rope_switch, rotate_by_length
from reward_model.model.tokenization import render, token_ids

FILE = "reference_scores.json"
NORMALIZATION_FILE = "score_normalization.json"  # uses vLLM's names: logit_mean, logit_sigma
LONG = 3000  # tokens in the long conversation, which is used if the model's context is longer
PARAMETERS = {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]}
FUNCTION = {"name": "weather", "description": "The weather of a town.", "parameters": PARAMETERS}
TOOLS = [{"type": "function", "function": FUNCTION}]
# The keys are in the order in which vLLM passes calls to a template, so that a template that prints calls as JSON
# renders the same text in Transformers and vLLM. Mistral's templates require ids with nine characters.
CALL = {"id": "weatherI1", "function": {"arguments": {"town": "Zürich"}, "name": "weather"}, "type": "function"}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "Dry, 21 °C.", "name": "weather", "tool_call_id": "weatherI1"}
REASONING = "Zürich is dry today."
# (system message; turns, as alternating texts of user and assistant or as messages; tools)
CONVERSATIONS: list[tuple[str | None, list[Any], Any]] = [
    (None, ["How do I get a stain of red wine out of a carpet?", "Blot it, then use salt and cold water."], None),
    (None, ["How do I get a stain of red wine out of a carpet?", "I like carpets."], None),
    (None, ["What is 17 * 23?", "17 * 23 = 391, since 17 * 20 = 340 and 17 * 3 = 51."], None),
    (None, ["What is 17 * 23?", "It is 400.\n\nI am sure."], None),
    (None, ["请用一句话解释什么是光合作用。", "植物利用阳光，把二氧化碳和水变成养分，并放出氧气。"], None),
    (None, ["请推荐一道家常菜。", "番茄炒鸡蛋：先炒蛋，再炒番茄，最后一起翻炒，加盐。"], None),
    (None, ["Hi!", "Hello! How can I help?", "Tell me a joke.", "Why did the byte blush? It saw a bit."], None),
    (None, ["你好", "你好！", "讲个笑话", "程序员最怕什么？需求又改了。", "再讲一个", "好的，等我想想。"], None),
    ("Answer like a pirate.", ["Where is the station?", "Arr, two streets down, matey."], None),
    (None, ["Write a function that adds two numbers.", "```python\ndef add(a, b):\n    return a + b\n```"], None),
    (None, ["Say goodbye.", "Bye 👋🏽 … «ade»\u200b \t "], None),
    (None, ["Is it raining in Turin?", "I shall look it up: no, it is dry."], TOOLS),
    (None, ["Is it raining in Zürich?", CALLING, RESULT, "No, it is dry."], TOOLS),
    (None, ["Is it raining?", {"role": "assistant", "content": "No.", "reasoning_content": REASONING}], None),
]
SENTENCE = "The river was wide, the bridge was old, and nobody could say who had built it or when. "


def write_reference_scores(model: Any, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write the reference scores to the directory where the model was saved.

    All ranks must call this, because the forward pass gathers weights under ZeRO-3. Adapters get no reference scores.
    """
    if not isinstance(model, PreTrainedModel):
        return
    training = model.training
    conversations = compute_reference_scores(model.eval(), tokenizer)
    model.train(training)
    if not all(isfinite(one["score"]) for one in conversations):
        raise InputError(
            f"The model in {directory} produces non-finite scores (nan or infinity): its weights are corrupt."
        )
    if torch.distributed.is_initialized() and torch.distributed.get_rank() > 0:
        return
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    template = directory / "chat_template.jinja"
    reference = {
        "dtype": config.get("dtype") or "float32",
        "pad_token_id": config.get("pad_token_id"),
        "template": sha256(template.read_bytes()).hexdigest() if template.is_file() else None,
        "conversations": conversations,
    }
    (directory / FILE).write_text(json.dumps(reference, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def read_reference_scores(directory: Path) -> list[dict[str, Any]]:
    """Return a model's reference conversations with their scores, or [] if its directory contains none."""
    file = directory / FILE
    return json.loads(file.read_text(encoding="utf-8"))["conversations"] if file.is_file() else []


def compute_reference_scores(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """Return the reference conversations with the scores of a model.

    Each comes with its text, a hash of its tokens, its score, its score when the output of every module is rounded, and
    the mean score over all tokens, which identifies a wrong pooler.
    """
    conversations, encoded = _encode_conversations(model, tokenizer)
    scores = _scores(model, encoded)
    with rounded(model):
        noisy = _scores_of_tokens(model, [ids for ids in encoded if len(ids) < LONG // 2])
    noisy += scores[len(noisy) :]
    return [
        {
            "messages": messages,
            "tools": tools,
            "text": tokenizer.decode(ids),
            "tokens": sha256(json.dumps(ids).encode()).hexdigest(),
            "score": values[-1].item(),
            "rounded_score": rough[-1].item(),
            "mean_score": values.mean().item(),
        }
        for (messages, tools), ids, values, rough in zip(conversations, encoded, scores, noisy, strict=True)
    ]


def drift(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> float:
    """Return the largest difference between the model's scores and its reference scores, or 0 if there are none."""
    reference = read_reference_scores(directory)
    if not reference:
        return 0.0
    _, encoded = _encode_conversations(model, tokenizer)
    ends = [values[-1].item() for values in _scores(model, encoded)]
    scores = dict(zip(map(tokenizer.decode, encoded), ends, strict=True))
    return max(abs(scores.get(one["text"], float("inf")) - one["score"]) for one in reference)


def rounding_noise(directory: Path) -> float:
    """Return the largest change in a reference score caused by rounding to bfloat16, or 0 if it was not measured."""
    reference = read_reference_scores(directory)
    return max((abs(one.get("rounded_score", one["score"]) - one["score"]) for one in reference), default=0.0)


def read_normalization(directory: Path) -> tuple[float, float]:
    """Return the mean and standard deviation with which evaluate.py normalized the scores, or 0 and 1 if it did not."""
    if not (directory / NORMALIZATION_FILE).is_file():
        return 0.0, 1.0
    written = json.loads((directory / NORMALIZATION_FILE).read_text(encoding="utf-8"))
    return written["logit_mean"], written["logit_sigma"]


@contextmanager
def rounded(model: PreTrainedModel) -> Iterator[None]:
    """Round the output of every module in the body to bfloat16, whatever dtype it is computed in.

    This predicts how much scores change if the model is served in bfloat16, without using bfloat16 arithmetic, which
    most CPUs emulate. If the model already computes in bfloat16, scaling by a factor first makes this rounding differ
    from the model's own.
    """

    def hook(module: torch.nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(output, torch.Tensor) and output.is_floating_point():
            return ((output.float() * 1.37).bfloat16().float() / 1.37).to(output.dtype)
        return None

    leaves = [module for module in model.modules() if module is not model.score and not any(module.children())]
    hooks = [module.register_forward_hook(hook) for module in leaves]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def _encode_conversations(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[list[Any], list[Any]]:
    """Return (messages, tools) and the token ids of each reference conversation, the long one last.

    A conversation is left out if the template rejects it or does not render its reasoning.
    """
    long = SENTENCE * (LONG // len(token_ids([SENTENCE], tokenizer)[0]))
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or LONG
    longest = [(None, [f"Summarise this: {long}", "It is about a bridge."], None)] if context > LONG + 200 else []
    conversations, texts = [], []
    for system, turns, tools in [*CONVERSATIONS, *longest]:
        messages = [{"role": "system", "content": system}] if system else []
        for i, turn in enumerate(turns):
            messages.append(turn if isinstance(turn, dict) else {"role": ("user", "assistant")[i % 2], "content": turn})
        try:
            text = render(messages, tokenizer, tools)
        except InputError:
            continue
        if "reasoning_content" not in messages[-1] or REASONING in text:
            conversations.append((messages, tools))
            texts.append(text)
    return conversations, token_ids(texts, tokenizer)


def _scores(model: PreTrainedModel, encoded: list[list[int]]) -> list[torch.Tensor]:
    """Return the scores at all tokens of each conversation.

    Uses few forward passes, because each one gathers all weights under ZeRO-3: one for all short conversations, and one
    for the long conversation, to whose length the short ones would otherwise be padded.
    """
    short = [ids for ids in encoded if len(ids) < LONG // 2]
    return [values for part in (short, encoded[len(short) :]) if part for values in _scores_of_tokens(model, part)]


@torch.no_grad()
def _scores_of_tokens(model: PreTrainedModel, encoded: list[list[int]]) -> list[torch.Tensor]:
    """Return the score at each token of each conversation, computed in one padded batch."""
    rows = [torch.tensor(ids) for ids in encoded]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(model.device)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(model.device)
    body, switch = getattr(model, model.base_model_prefix), rope_switch(model.config)
    with rotate_by_length(model, mask.sum(1, keepdim=True) > switch if switch else None):
        hidden = body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    mean, sigma = getattr(model, "normalization", (0.0, 1.0))
    scores = (model.score(hidden).float().squeeze(-1) - mean) / sigma
    return [row[: len(ids)] for row, ids in zip(scores, encoded, strict=True)]
