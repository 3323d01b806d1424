"""Small random models that read images beside text."""

import tiny
import torch
import transformers as t

_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "head_dim": 8,
    "pad_token_id": 0,
}
_EYES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
_ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}


def _llava(text, size):
    eyes = t.CLIPVisionConfig(**_EYES)
    config = t.LlavaConfig(vision_config=eyes, text_config=t.LlamaConfig(**text), image_token_index=size)
    return t.LlavaForConditionalGeneration(config)


def _qwen2_vl(text, size):
    eyes = {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 8}
    ids = {"image_token_id": size, "video_token_id": size + 1}
    text = {**text, "rope_parameters": _ROPE, "bos_token_id": 0, "eos_token_id": 1}
    return t.Qwen2VLForConditionalGeneration(t.Qwen2VLConfig(text_config=text, vision_config=eyes, **ids))


def _smolvlm(text, size):
    config = t.SmolVLMConfig(
        text_config=t.LlamaConfig(**text), vision_config=_EYES, image_token_id=size, scale_factor=2
    )
    return t.SmolVLMForConditionalGeneration(config)


def _mllama(text, size):
    """It has embeddings for places of an image beyond its logits."""
    eyes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_global_layers": 1,
        "attention_heads": 2,
        "intermediate_size": 32,
        "vision_output_dim": 32,
        "image_size": 16,
        "patch_size": 8,
        "intermediate_layers_indices": [0],
    }
    text = {**text, "cross_attention_layers": [1], "bos_token_id": 0, "eos_token_id": 1}
    return t.MllamaForConditionalGeneration(
        t.MllamaConfig(text_config=text, vision_config=eyes, image_token_index=size)
    )


FAMILIES = {"llava": _llava, "qwen2_vl": _qwen2_vl, "smolvlm": _smolvlm, "mllama": _mllama}


def make(family):
    """Returns a model of a family and its tokenizer."""
    tokenizer = tiny.byte_level()
    size = len(tokenizer)
    torch.manual_seed(0)
    model = FAMILIES[family]({**_TEXT, "vocab_size": size + 4}, size).eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model, tokenizer
