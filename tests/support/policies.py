"""Tiny policies with random weights, and their plain log-probabilities."""

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 61
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
ALTERNATING = ["sliding_attention", "full_attention"]
FAMILIES = {
    "Llama": ("Llama", {}),
    "Llama, tied head": ("Llama", {"tie_word_embeddings": True}),
    "Mistral, window inside the row": ("Mistral", {"sliding_window": 5}),
    "Mistral, window beyond the row": ("Mistral", {"sliding_window": 100}),
    "Qwen2": ("Qwen2", {}),
    "Qwen2, windows": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "Qwen3": ("Qwen3", {}),
    "Gemma2": (
        "Gemma2",
        {
            "sliding_window": 5,
            "layer_types": ALTERNATING,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
            "attn_implementation": "eager",  # transformers' sdpa leaves the soft cap out
        },
    ),
    "Gemma3": ("Gemma3", {"sliding_window": 5, "layer_types": ALTERNATING}),
    "Phi3": ("Phi3", {"sliding_window": 7}),
    "GPT2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "Cohere": ("Cohere", {"logit_scale": 0.3}),
    "Granite": ("Granite", {"logits_scaling": 3.0, "attention_multiplier": 0.2}),
    "Mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "DeepseekV3": (
        "DeepseekV3",
        {
            "num_key_value_heads": 4,
            "q_lora_rank": 12,
            "kv_lora_rank": 8,
            "head_dim": 4,  # of the rotated part
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 8,
            "v_head_dim": 6,  # queries and keys have 12
            "first_k_dense_replace": 1,
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            **MOE,
        },
    ),
    "GptOss": (
        "GptOss",
        {
            "sliding_window": 5,
            "layer_types": ALTERNATING,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "attn_implementation": "eager",  # transformers' sdpa knows no sinks
        },
    ),
    "Qwen3Moe": ("Qwen3Moe", {"num_experts": 4, "decoder_sparse_step": 1, **MOE}),
}


def tiny_llama(vocab_size: int, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            initializer_range=0.3,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            tie_word_embeddings=False,
        )
    )


def make_family(family: str, dtype=torch.float64):
    """A policy of one of FAMILIES."""
    name, extra = FAMILIES[family]
    if name == "Gemma3":
        name, config = "Gemma3", transformers.Gemma3TextConfig(**COMMON | extra)
    else:
        config = getattr(transformers, f"{name}Config")(**COMMON | extra)
    torch.manual_seed(0)
    implementation = extra.get("attn_implementation", "sdpa")
    config._attn_implementation = implementation
    config._experts_implementation = "eager"  # the grouped one knows no float64
    # In evaluation mode: the two ways would draw different dropout masks.
    class_name = {"GPT2": "GPT2LMHeadModel"}.get(name, f"{name}ForCausalLM")
    policy = getattr(transformers, class_name)(config).eval()
    assert policy.config._attn_implementation == implementation
    return policy.to(dtype)


def plain_logp(policy, prompt: list[int], response: list[int]) -> float:
    """Σ log π of a response's tokens, one by one."""
    with torch.no_grad():
        logits = policy(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
    positions = range(len(prompt) - 1, len(prompt) + len(response) - 1)
    return sum(logits[p, token].item() for p, token in zip(positions, response, strict=True))
