"""Tiny random encoder-decoder models, with tokenizers as their families have them, made on the spot."""

import json

import tiny
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    NllbTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

SCALE = 1.5
LANGUAGES = ["deu_Latn", "eng_Latn", "fra_Latn"]
_BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
}


def t5_tokenizer():
    """A unigram model without a BOS token; `</s>` ends every text."""
    trained = tiny.unigram()
    tokenizer = Tokenizer.from_str(trained.backend_tokenizer.to_str())
    tokenizer.post_processor = _around(tokenizer, "$A </s>")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", pad_token="<s>")


def bart_tokenizer():
    """Byte-level BPE between `<s>` and `</s>`."""
    source = tiny.byte_level()
    spec = source.backend_tokenizer.to_str()
    for old, new in (("<|bos|>", "<s>"), ("<|eos|>", "</s>"), ("<|turn|>", "<pad>"), ("<|end|>", "<mask>")):
        spec = spec.replace(old, new)
    tokenizer = Tokenizer.from_str(spec)
    tokenizer.post_processor = _around(tokenizer, "<s> $A </s>")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", mask_token="<mask>"
    )


def marian_tokenizer():
    """A SentencePiece model as converted for Marian: no BOS token, and padding that also starts the decoder."""
    trained = tiny.unigram(460)
    tokenizer = Tokenizer.from_str(trained.backend_tokenizer.to_str())
    tokenizer.add_special_tokens(["<pad>"])
    tokenizer.post_processor = _around(tokenizer, "$A </s>")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", pad_token="<pad>")


def nllb_tokenizer():
    """The class of NLLB, with a small vocabulary of its kind and three languages."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    control = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=control, show_progress=False)
    trained.train_from_iterator(tiny.CORPUS, trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return NllbTokenizer(vocab=model["vocab"], merges=merges, extra_special_tokens=LANGUAGES)


def _around(tokenizer, single):
    names = [name for name in single.split() if name != "$A"]
    return processors.TemplateProcessing(
        single=single, special_tokens=[(name, tokenizer.token_to_id(name)) for name in names]
    )


def save_t5(folder, *, seed=0, window=256, **options):
    tokenizer = t5_tokenizer()
    tokenizer.model_max_length = window
    start = tokenizer.pad_token_id
    config = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": len(tokenizer)}
    ids = {"pad_token_id": start, "eos_token_id": tokenizer.eos_token_id, "decoder_start_token_id": start}
    return _save(T5ForConditionalGeneration, T5Config(**{**config, **ids, **options}), folder, tokenizer, seed)


def save_bart(folder, *, seed=0, window=128, **options):
    tokenizer = bart_tokenizer()
    config = BartConfig(
        **{**_BART, "vocab_size": len(tokenizer), "max_position_embeddings": window, **_ids(tokenizer), **options},
        decoder_start_token_id=tokenizer.eos_token_id,
    )
    first = tokenizer.bos_token_id
    return _save(BartForConditionalGeneration, config, folder, tokenizer, seed, forced_bos_token_id=first)


def save_marian(folder, *, seed=0, window=128, **options):
    tokenizer = marian_tokenizer()
    config = MarianConfig(
        **{**_BART, "vocab_size": len(tokenizer), "max_position_embeddings": window, **_ids(tokenizer), **options},
        decoder_start_token_id=tokenizer.pad_token_id,
        forced_eos_token_id=tokenizer.eos_token_id,
        scale_embedding=True,
    )
    return _save(MarianMTModel, config, folder, tokenizer, seed, bad_words_ids=[[tokenizer.pad_token_id]])


def save_nllb(folder, *, seed=0, window=128, **options):
    tokenizer = nllb_tokenizer()
    config = M2M100Config(
        **{**_BART, "vocab_size": len(tokenizer), "max_position_embeddings": window, **_ids(tokenizer), **options},
        decoder_start_token_id=tokenizer.eos_token_id,
        scale_embedding=True,
    )
    return _save(M2M100ForConditionalGeneration, config, folder, tokenizer, seed)


FAMILIES = {"t5": save_t5, "bart": save_bart, "marian": save_marian, "nllb": save_nllb}


def _ids(tokenizer):
    return {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _save(kind, config, folder, tokenizer, seed, **generation):
    config.tie_word_embeddings = False  # or a model repeats what it said last
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config)
    with torch.no_grad():  # so that choices differ, by prompts and by what was said before them
        for path, weight in model.named_parameters():
            if "relative_attention_bias" in path or "embed_positions" in path:
                weight.mul_(20.0 if float(weight.std()) < 0.1 else 1.0)
            elif weight.dim() > 1:
                asks = path.split(".")[-2] in ("q", "k", "q_proj", "k_proj")
                weight.mul_(SCALE * (1 + 2 * asks) / (float(weight.std()) * weight.shape[-1] ** 0.5))
    model.generation_config.update(**generation)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
