"""The score contract: fixed conversations with their tokens and scores, kept beside the weights of a reward model.

Whoever serves the model can ask for them again and see whether the scores are still those that were trained; client.py
does, without torch. Scores are computed from body and head themselves, so no autocast and no padding is in them.
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
NORMALISATION = "score_normalisation.json"  # named as vLLM names them: logit_mean, logit_sigma
LONG = 3000  # tokens of one conversation, where the model takes as many
PARAMETERS = {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]}
FUNCTION = {"name": "weather", "description": "The weather of a town.", "parameters": PARAMETERS}
TOOLS = [{"type": "function", "function": FUNCTION}]
# The call has the key order in which vLLM gives calls to a template, so that a template that prints a call as JSON
# renders the same text in both. Mistral's templates want an id of nine characters.
CALL = {"id": "weatherI1", "function": {"arguments": {"town": "Zürich"}, "name": "weather"}, "type": "function"}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "Dry, 21 °C.", "name": "weather", "tool_call_id": "weatherI1"}
REASONING = "Zürich is dry today."
# (system message, turns: alternately the user's and the assistant's text, or messages, tools)
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


@torch.no_grad()
def reference_scores_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """Return the reference conversations, each with its text, a hash of its tokens, its score, its score when every
    module's output is rounded, and the mean score of all tokens, which identifies a wrong pooler.

    Conversations that the template rejects, and reasoning that it does not render, are left out.
    """
    long = SENTENCE * (LONG // len(token_ids([SENTENCE], tokenizer)[0]))
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or LONG
    longest = [(None, [f"Summarise this: {long}", "It is about a bridge."], None)] if context > LONG + 200 else []
    each, encoded = [], []
    for system, turns, tools in [*CONVERSATIONS, *longest]:
        messages = [{"role": "system", "content": system}] if system else []
        for i, turn in enumerate(turns):
            messages.append(turn if isinstance(turn, dict) else {"role": ("user", "assistant")[i % 2], "content": turn})
        try:
            text = render(messages, tokenizer, tools)
        except InputError:
            continue
        if "reasoning_content" in messages[-1] and REASONING not in text:
            continue
        encoded += token_ids([text], tokenizer)
        each.append((messages, tools))
    # Few forwards, as each gathers all weights under ZeRO-3; the long one alone, or all would be padded to it.
    short = [ids for ids in encoded if len(ids) < LONG // 2]
    scores = [*_scores_of_tokens(model, short), *(_scores_of_tokens(model, [ids])[0] for ids in encoded[len(short) :])]
    with rounded(model):
        noisy = [*_scores_of_tokens(model, short), *scores[len(short) :]]
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
        for (messages, tools), ids, values, rough in zip(each, encoded, scores, noisy, strict=True)
    ]


@contextmanager
def rounded(model: PreTrainedModel) -> Iterator[None]:
    """Round the output of every module of the body to bfloat16, whatever dtype computes it.

    It predicts by how much scores change where bfloat16 is served, and costs no bfloat16 arithmetic, which most CPUs
    emulate. The factor makes it a second, different rounding where the model computes in bfloat16 already.
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


def rounding_noise(folder: Path) -> float:
    """Return the largest change of a reference score by rounding to bfloat16; 0 where none was measured."""
    if not (folder / FILE).is_file():
        return 0.0
    conversations = json.loads((folder / FILE).read_text(encoding="utf-8"))["conversations"]
    return max(abs(one.get("rounded_score", one["score"]) - one["score"]) for one in conversations)


def _scores_of_tokens(model: PreTrainedModel, encoded: list[list[int]]) -> list[torch.Tensor]:
    """For each conversation what the head makes of each of its tokens, padded to one batch."""
    rows = [torch.tensor(ids) for ids in encoded]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(model.device)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(model.device)
    body, switch = getattr(model, model.base_model_prefix), rope_switch(model.config)
    with rotate_by_length(model, mask.sum(1, keepdim=True) > switch if switch else None):
        hidden = body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    mean, sigma = getattr(model, "normalisation", (0.0, 1.0))
    scores = (model.score(hidden).float().squeeze(-1) - mean) / sigma
    return [row[: len(ids)] for row, ids in zip(scores, encoded, strict=True)]


def write_reference_scores(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the contract into the folder that the model was saved to. Every rank must call it; an adapter gets none."""
    if not isinstance(model, PreTrainedModel):
        return
    training = model.training
    conversations = reference_scores_of(model.eval(), tokenizer)
    model.train(training)
    if not all(isfinite(one["score"]) for one in conversations):
        raise InputError(
            f"The scores of the model in {folder} are not finite (nan or infinity): its weights are broken."
        )
    if torch.distributed.is_initialized() and torch.distributed.get_rank() > 0:
        return
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    template = folder / "chat_template.jinja"
    contract = {
        "dtype": config.get("dtype") or "float32",
        "pad_token_id": config.get("pad_token_id"),
        "template": sha256(template.read_bytes()).hexdigest() if template.is_file() else None,
        "conversations": conversations,
    }
    (folder / FILE).write_text(json.dumps(contract, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def normalisation(folder: Path) -> tuple[float, float]:
    """Mean and deviation by which the scores of a model are normalised; 0 and 1 unless evaluate.py has made them."""
    if not (folder / NORMALISATION).is_file():
        return 0.0, 1.0
    made = json.loads((folder / NORMALISATION).read_text(encoding="utf-8"))
    return made["logit_mean"], made["logit_sigma"]


def drift(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> float:
    """Return the largest difference of the model's scores from its reference scores; 0 where it has none."""
    if not (folder / FILE).is_file():
        return 0.0
    contract = json.loads((folder / FILE).read_text(encoding="utf-8"))["conversations"]
    scores = {one["text"]: one["score"] for one in reference_scores_of(model, tokenizer)}
    return max(abs(scores.get(one["text"], float("inf")) - one["score"]) for one in contract)
