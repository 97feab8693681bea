"""Tiny configs of all decoders that Transformers can classify with: packed, padded, and refused ones."""

import torch
from helpers import LINEAR, tiny_config
from transformers import AutoModelForSequenceClassification

SLIDING = {"sliding_window": 8}
MLA = {
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12,
    "num_key_value_heads": 4,
}  # fmt: skip
MOE = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "first_k_dense_replace": 1}
GROUPED = {**MLA, **MOE, "n_group": 2, "topk_group": 1}
GPT2 = {"n_layer": 2, "n_head": 4, "n_embd": 64, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
LONGROPE = {
    "original_max_position_embeddings": 16,
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 16,
        "short_factor": [1.0] * 8, "long_factor": [1.0 + number for number in range(8)],
    },
}  # fmt: skip
TEXT = {
    "vocab_size": 640, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 2048, "initializer_range": 0.2,
    "pad_token_id": 0,
}  # fmt: skip
ARCHITECTURES = {
    "llama": {},
    "qwen2": {},
    "qwen2 sliding": {**SLIDING, "use_sliding_window": True, "max_window_layers": 1},
    "qwen3": {},
    "mistral": {"sliding_window": None},
    "mistral sliding": SLIDING,
    "gemma": {"head_dim": 16},
    "gemma3_text": {**SLIDING, "head_dim": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "phi3": {},
    "olmo2": {},
    "smollm3": {},
    "glm4": {"head_dim": 16},
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 32, "num_experts_per_tok": 2},
    "ministral3": {},
    "gpt2": GPT2,
    "gpt-sw3": GPT2,
    "gpt_neox": {},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64, "dropout": 0.0},
    "phimoe": {"num_local_experts": 4},
    "diffllama": {},
    "starcoder2": {"residual_dropout": 0.0, "embedding_dropout": 0.0},
    "deepseek_v3": GROUPED,
    "deepseek_v2": {**MLA, **MOE},
    "minicpm3": MLA,
    "mistral4": GROUPED,
    "axk1": GROUPED,
    "qwen3_next": {
        **LINEAR, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
    },
    "qwen3_5_text": LINEAR,
    "qwen3_5": {
        "text_config": {**TEXT, **LINEAR},
        "vision_config": {
            "hidden_size": 32, "intermediate_size": 32, "depth": 1, "num_heads": 2, "out_hidden_size": 64,
        },
    },
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid"], "mamba_headdim": 16, "n_mamba_heads": 8, "mamba_d_state": 8,
        "mamba_ngroups": 1,
    },
    "jetmoe": {"num_local_experts": 4, "num_experts_per_tok": 2, "kv_channels": 16},
    "helium": {"head_dim": 16},
    "persimmon": {},
    "gpt_bigcode": GPT2,
    "arcee": {},
    "biogpt": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "exaone4": {},
    "glm": {"head_dim": 16},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16, "num_experts": 4, "moe_topk": 2},
    "ministral": {"head_dim": 16},
    "olmo": {},
    "olmo3": {},
    "phi": {},
    "seed_oss": {"head_dim": 16, "residual_dropout": 0.0, "attention_dropout": 0.0},
    "gemma3": {
        "text_config": {**TEXT, **SLIDING, "layer_types": ["sliding_attention", "full_attention"]},
        "vision_config": {
            "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 28, "patch_size": 14,
        },
    },
}  # fmt: skip
# The rotary factors change beyond 16 tokens. A padded batch of Transformers mixes both regimes.
TWO_REGIMES = {
    "phi3 longrope": LONGROPE,
    "phimoe longrope": {
        "num_local_experts": 4,
        "rope_parameters": {**LONGROPE["rope_parameters"], "short_mscale": 1.1, "long_mscale": 1.3},
    },
}  # fmt: skip
PADDED = {
    "gemma2": ({"head_dim": 16}, "softcap"),
    "gpt_oss": ({"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16}, "more than SDPA"),
    "jamba": (
        {"num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
        "1 of 2 layers that cannot process packed rows",
    ),
    "zamba": (
        {"num_hidden_layers": 3, "layer_types": ["mamba", "hybrid", "hybrid"], "mamba_d_state": 8, "mamba_dt_rank": 8,
         "attention_hidden_size": 128, "attention_head_dim": 32}, "packed rows change the hidden states"),
    "bloom": ({"n_layer": 2, "n_head": 4, "hidden_dropout": 0.0, "attention_dropout": 0.0}, "more than SDPA"),
    "falcon alibi": ({"alibi": True, "hidden_dropout": 0.0, "attention_dropout": 0.0}, "more than SDPA"),
    "minimax": ({"num_local_experts": 4}, "1 of 2 layers that cannot process packed rows"),
    "stablelm": ({}, "2 of 2 layers that cannot process packed rows"),
    "axk2": (GROUPED, "indexed_attention"),
    "mpt": ({"d_model": 64, "n_heads": 4, "n_layers": 2}, "more than SDPA"),
    "falcon": ({"hidden_dropout": 0.0, "attention_dropout": 0.0}, "more than SDPA"),
    "gemma2 soft-capped": ({"head_dim": 16, "attn_logit_softcapping": 1.0}, "softcap"),
    "gpt_neo": ({"num_layers": 2, "attention_types": [[["global", "local"], 1]], "num_heads": 4}, "more than SDPA"),
    "gptj": ({"n_layer": 2, "n_head": 4, "n_embd": 64, "rotary_dim": 8}, "more than SDPA"),
    "openai-gpt": ({"n_layer": 2, "n_head": 4, "n_embd": 64}, "more than SDPA"),
    "nemotron": ({}, "2 of 2 layers that cannot process packed rows"),
    "doge": ({}, "attention_mask"),
}  # fmt: skip
# Encoders read the first token and encoder-decoders another text; CTRL and ModernBERT's decoder have other heads.
REFUSED = {
    "bert": {}, "roberta": {}, "deberta": {}, "deberta-v2": {}, "modernbert": {}, "modernbert-decoder": {}, "t5": {},
    "bart": {}, "ctrl": {"n_embd": 64, "n_layer": 2, "n_head": 4, "dff": 96},
}  # fmt: skip


def reward_model(name: str, changes: dict, attention: str | None = "eager") -> torch.nn.Module:
    """Return a random reward model. With `attention` None, Transformers chooses the attention implementation."""
    torch.manual_seed(0)
    config = tiny_config(name.split()[0], num_labels=1, initializer_range=0.2, **changes)
    return AutoModelForSequenceClassification.from_config(config, attn_implementation=attention)
