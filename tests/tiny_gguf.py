"""GGUF files of the tiny Llama models that `tiny` makes, written as llama.cpp's converter does."""

import json

import gguf
import numpy as np
from tiny import CHAT_TEMPLATE
from transformers import AutoModelForCausalLM, AutoTokenizer

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
TENSORS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def save_gguf(folder, path, *, window=None, chat=True, kind=gguf.GGMLQuantizationType.F32, change=None):
    """Writes the model of a folder as a GGUF file.

    Args:
        folder: A tiny Llama and its tokenizer, byte-level or of SentencePiece.
        path: The file.
        window: Declares another context window.
        chat: Whether its chat template is in it.
        kind: How matrices are stored.
        change: Gets the writer before the end, to add to it.
    """
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(window or config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(0 if kind == gguf.GGMLQuantizationType.F32 else 7)
    _add_tokenizer(writer, tokenizer)
    if chat:
        writer.add_chat_template(CHAT_TEMPLATE)
    for name, weights in _tensors(model):
        stored = weights.astype(np.float32)
        as_is = stored.ndim == 1 or kind == gguf.GGMLQuantizationType.F32
        data = stored if as_is else gguf.quants.quantize(stored, kind)
        writer.add_tensor(name, data, raw_dtype=None if as_is else kind)
    if change is not None:
        change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer, tokenizer):
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    special = {token["id"] for token in spec["added_tokens"] if token["special"]}
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    byte_level = "<0x00>" not in tokens
    kinds = [CONTROL if number in special else _kind(token, byte_level) for number, token in enumerate(tokens)]
    writer.add_tokenizer_model("gpt2" if byte_level else "llama")
    writer.add_tokenizer_pre("gpt-2" if byte_level else "default")
    writer.add_token_list(tokens)
    writer.add_token_types([UNKNOWN if token == "<unk>" else kind for token, kind in zip(tokens, kinds, strict=True)])
    if byte_level:
        writer.add_token_merges([" ".join(merge) for merge in spec["model"]["merges"]])
    else:
        writer.add_token_scores([-float(number) for number in range(len(tokens))])
        writer.add_add_space_prefix(True)
        writer.add_unk_token_id(tokens.index("<unk>"))
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(True)


def _kind(token, byte_level):
    return BYTE if not byte_level and len(token) == 6 and token.startswith("<0x") else NORMAL


def _tensors(model):
    config, state = model.config, {name: weights.numpy() for name, weights in model.state_dict().items()}
    yield "token_embd.weight", state["model.embed_tokens.weight"]
    yield "output_norm.weight", state["model.norm.weight"]
    for layer in range(config.num_hidden_layers):
        for theirs, ours in TENSORS.items():
            weights = state[f"model.layers.{layer}.{theirs}.weight"]
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(ours)
            yield f"blk.{layer}.{ours}.weight", weights if heads is None else _interleaved(weights, heads)


def _interleaved(weights, heads):
    """The lines of each head as llama.cpp rotates them: pairs beside each other, not in two halves."""
    lines, width = weights.shape
    return weights.reshape(heads, 2, lines // heads // 2, width).swapaxes(1, 2).reshape(lines, width)
