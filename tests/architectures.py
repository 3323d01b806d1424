"""Tiny random models of many architectures, made from their configurations, windows so small that they matter."""

import torch
import transformers
from transformers import AutoModelForCausalLM

VOCABULARY = 97
WINDOW = 96

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": WINDOW,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": WINDOW,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_NO_GROUPS = {k: v for k, v in _COMMON.items() if k not in ("num_key_value_heads",)}
_FALCON = {k: v for k, v in _NO_GROUPS.items() if k != "intermediate_size"}
_LINEAR = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
_CONVOLVED = {**_COMMON, "layer_types": ["conv", "full_attention", "conv"]}
_MAMBA = {"vocab_size": VOCABULARY, "hidden_size": 32, "state_size": 4, "num_hidden_layers": 2}
# Chunks so short that texts have several.
_MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8}
_PLAIN = {"mamba_d_state": 4, "use_mamba_kernels": False}  # transformers 5.13 demands kernels otherwise
_ZAMBA = {**_NO_GROUPS, **_PLAIN, "num_hidden_layers": 5}
_MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
_LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 4,
    "long_factor": [2.0, 3.0, 4.0, 5.0],
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 24,
    "factor": 4.0,
}

# Name: configuration class and its options.
CONFIGURATIONS = {
    "llama": ("LlamaConfig", _COMMON),
    "mistral": ("MistralConfig", {**_COMMON, "sliding_window": 7}),
    "qwen2": ("Qwen2Config", {**_COMMON, "use_sliding_window": True, "sliding_window": 6, "layer_types": _MIXED}),
    "qwen3": ("Qwen3Config", {**_COMMON, "head_dim": 8}),
    "gemma2": (
        "Gemma2Config",
        {**_COMMON, "head_dim": 8, "sliding_window": 5, "layer_types": _MIXED, "query_pre_attn_scalar": 8},
    ),
    "gemma3": ("Gemma3TextConfig", {**_COMMON, "head_dim": 8, "sliding_window": 5, "layer_types": _MIXED}),
    "phi3": ("Phi3Config", {**_COMMON, "sliding_window": 9}),
    "gpt2": ("GPT2Config", _GPT2),
    "gpt-neox": ("GPTNeoXConfig", _NO_GROUPS),
    "falcon-multi-query": ("FalconConfig", {**_FALCON, "multi_query": True, "new_decoder_architecture": False}),
    "falcon-new": ("FalconConfig", {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-alibi": ("FalconConfig", {**_FALCON, "alibi": True, "multi_query": False}),
    "bloom": ("BloomConfig", {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "gpt-neo": (
        "GPTNeoConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 6,
            "max_position_embeddings": WINDOW,
        },
    ),
    "opt": ("OPTConfig", {**_NO_GROUPS, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "mamba": ("MambaConfig", _MAMBA),
    "falcon-mamba": ("FalconMambaConfig", _MAMBA),
    "mamba2": ("Mamba2Config", {**_MAMBA, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 8}),
    "rwkv": (
        "RwkvConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_hidden_layers": 6,
            "context_length": WINDOW,
            "rescale_every": 2,
        },
    ),
    "xlstm": (
        "xLSTMConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "num_heads": 2,
            "autocast_kernel_dtype": "float32",
        },
    ),
    "recurrent-gemma": (
        "RecurrentGemmaConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "lru_width": 32,
            "attention_window_size": 12,
            "block_types": ["recurrent", "recurrent", "attention"],
        },
    ),
    "jamba": (
        "JambaConfig",
        {
            **_COMMON,
            **_PLAIN,
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
        },
    ),
    "bamba": ("BambaConfig", {**_COMMON, **_MAMBA2, "attn_layer_indices": [1]}),
    "granite-hybrid": (
        "GraniteMoeHybridConfig",
        {
            **_COMMON,
            **_MAMBA2,
            "layer_types": ["mamba", "attention", "mamba"],
            "shared_intermediate_size": 48,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
        },
    ),
    "falcon-h1": ("FalconH1Config", {**_COMMON, **_MAMBA2, "mamba_d_ssm": 64}),
    # Chunks as long as a text: where two meet, transformers 5.13 computes this family and Zamba2 wrong.
    "nemotron-h": (
        "NemotronHConfig",
        {
            **{k: v for k, v in _COMMON.items() if k != "num_hidden_layers"},
            "layers_block_type": ["mamba", "attention", "mlp"],
            "head_dim": 8,
            "ssm_state_size": 8,
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "n_groups": 2,
            "chunk_size": WINDOW,
        },
    ),
    "zamba": (
        "ZambaConfig",
        {**_ZAMBA, "num_key_value_heads": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4},
    ),
    "zamba2": (
        "Zamba2Config",
        {
            **_ZAMBA,
            "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid", "mamba"],
            "n_mamba_heads": 8,
            "chunk_size": WINDOW,
        },
    ),
    "qwen3-next": (
        "Qwen3NextConfig",
        {
            **_COMMON,
            **_LINEAR,
            "head_dim": 8,
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
        },
    ),
    "qwen3.5": ("Qwen3_5TextConfig", {**_COMMON, **_LINEAR, "head_dim": 8}),
    "lfm2": ("Lfm2Config", _CONVOLVED),
    "lfm2-moe": (
        "Lfm2MoeConfig",
        {
            **_CONVOLVED,
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "moe_intermediate_size": 16,
            "num_dense_layers": 1,
        },
    ),
    "xlnet": ("XLNetConfig", {"vocab_size": VOCABULARY, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}),
    "openai-gpt": ("OpenAIGPTConfig", {k: v for k, v in _GPT2.items() if "token_id" not in k}),
    "longrope": ("Phi3Config", {**_COMMON, "rope_parameters": _LONGROPE, "original_max_position_embeddings": 24}),
    "dynamic": (
        "LlamaConfig",
        {
            **_COMMON,
            "max_position_embeddings": 24,
            "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
        },
    ),
}


def build(name, *, dtype=torch.float32, seed=0, **changes):
    """A random model whose logits tell its ids apart."""
    kind, options = CONFIGURATIONS[name]
    config = getattr(transformers, kind)(**{**options, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for path, weight in model.named_parameters():
                if path.endswith(("dt_bias", "dt_proj.bias", "dt_proj_bias", "A_log")):
                    weight.fill_(0.0)  # steps so long, and a decay so slow, that states matter after a few ids
                elif weight.dim() > 1:
                    weight.mul_(4.0)
    return model.eval().requires_grad_(False).to(dtype)
