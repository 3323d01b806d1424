"""Small tokenizers of every kind and random models, made on the spot: the tests need no downloads."""

import json
from collections import Counter
from itertools import combinations

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    FalconH1Config,
    FalconH1ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedTokenizerFast,
)

CORPUS = [
    "The quick brown fox jumps over the lazy dog. The dog sleeps; the fox doesn't.",
    (
        "def mean(values):\n    total = 0\n    for value in values:\n        total += value\n"
        "    return total / len(values)\n"
    ),
    "Once upon a time there was a little girl named Mira. She lived near the sea and loved boats.",
    "Der Hund schläft, die Füchsin läuft über die Straße. Où est la bibliothèque? Año nuevo.",
    "你好，世界。今天天气很好。 こんにちは世界。 Привет, мир! مرحبا",
    "Numbers: 1, 22, 333, 4444, 55555. Sums: 3.14 + 2.71 = 5.85; 10% of 48,000.",
    "\tif (a && b) {\n\t\treturn a ? b : c;\n\t}\n\n\n  spaces   everywhere    here",
] * 3

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


def byte_level(size=420):
    return byte_level_of(CORPUS, size)


def byte_level_of(lines, size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|bos|>", "<|eos|>", "<|turn|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return _wrap(tokenizer, "<|bos|>", "<|eos|>")


def sentencepiece_bpe(size=520, *, across_words=False, bos=True):
    """BPE as Llama has it: a space is `▁`, unknown characters fall back to bytes, nothing cuts the text.

    Args:
        size: Of the vocabulary.
        across_words: Let pieces hold inner spaces.
        bos: Whether there is a BOS token at all.
    """
    control = ["<unk>", "<s>", "</s>", "<|turn|>", "<|end|>"]
    source = Tokenizer(models.BPE(unk_token="<unk>"))
    source.pre_tokenizer = pre_tokenizers.Metaspace(split=not across_words)
    fallback = [f"<0x{b:02X}>" for b in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=control + fallback, show_progress=False)
    source.train_from_iterator([line.replace("你好", "") for line in CORPUS], trainer)
    spec = json.loads(source.to_str())
    spec["added_tokens"] = [t for t in spec["added_tokens"] if t["content"] in control]
    spec["model"].update(byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _wrap(tokenizer, "<s>" if bos else None, "</s>")


def unigram(size=480, *, split=True):
    """A SentencePiece unigram model with byte fallback."""
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    control = ["<unk>", "<s>", "</s>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=control, unk_token="<unk>", show_progress=False, shrinking_factor=0.75
    )
    trained.train_from_iterator(CORPUS, trainer)
    pieces = [tuple(p) for p in json.loads(trained.to_str())["model"]["vocab"]]
    pieces[len(control) :] = _settled(pieces[len(control) :])
    pieces += [(f"<0x{b:02X}>", -20.0) for b in range(256)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    if split:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.add_special_tokens(control)
    return _wrap(tokenizer, "<s>", "</s>")


def _settled(pieces):
    """Pieces as they are whenever they are made: the trainer adds in an order of chance, and so ranks the rarest."""
    lowest = min(score for _, score in pieces)
    scores = {piece: round(lowest if score < lowest + 0.01 else score, 6) for piece, score in pieces}
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


def metaspace_first(size=520):
    """As `sentencepiece_bpe`, but only the start of a document gets a dummy space (Llama since 2024)."""
    spec = json.loads(sentencepiece_bpe(size).backend_tokenizer.to_str())
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return _wrap(tokenizer, "<s>", "</s>")


def wordpiece(size=400):
    """The letters and what is longest and most frequent of the words; a trainer breaks ties by chance."""
    normalizer, cut = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    counts = Counter()
    for line in CORPUS:
        for word, _ in cut.pre_tokenize_str(normalizer.normalize_str(line)):
            for start, end in combinations(range(len(word) + 1), 2):
                counts["##" * (start > 0) + word[start:end]] += end - start
    letters = sorted({piece.removeprefix("##")[0] for piece in counts})
    pieces = ["[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{x}" for x in letters if f"##{x}" in counts)]
    pieces += sorted(counts.keys() - pieces, key=lambda piece: (-counts[piece], piece))[: size - len(pieces)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, cut
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[UNK]", "[CLS]", "[SEP]"])
    return _wrap(tokenizer, "[CLS]", "[SEP]", unk="[UNK]")


def nfc_byte_level(size=420):
    """Byte-level BPE behind a normalizer that composes characters (Qwen)."""
    source = byte_level(size)
    tokenizer = Tokenizer.from_str(source.backend_tokenizer.to_str())
    tokenizer.normalizer = normalizers.NFC()
    return _wrap(tokenizer, "<|bos|>", "<|eos|>")


def plain_bpe(size=300):
    """BPE whose pieces hold blanks as they are, and that nothing cuts."""
    tokenizer = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=["<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _wrap(tokenizer, "<s>", "</s>")


def metaspace_words(size=520):
    """As `metaspace_first`, but cut at blanks."""
    tokenizer = Tokenizer.from_str(metaspace_first(size).backend_tokenizer.to_str())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return _wrap(tokenizer, "<s>", "</s>")


def gemma_like(size=520):
    """BPE over uncut text with pieces of several blanks, which are listed as added tokens too."""
    spec = json.loads(sentencepiece_bpe(size, across_words=True).backend_tokenizer.to_str())
    spec["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    spec["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"String": " "},
        "behavior": "MergedWithPrevious",
        "invert": False,
    }
    spec["decoder"]["decoders"].pop()
    vocabulary, merges = spec["model"]["vocab"], spec["model"]["merges"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    for half in ("▁", "▁▁"):
        if half + half not in vocabulary:
            vocabulary[half + half] = len(vocabulary)
            merges.append([half, half])
        spec["added_tokens"].append({"id": vocabulary[half + half], "content": half + half, **flags})
    spec["added_tokens"].sort(key=lambda token: token["id"])
    return _wrap(Tokenizer.from_str(json.dumps(spec)), "<s>", "</s>")


def cut_by_regex(pattern, lines=tuple(CORPUS), size=700):
    """Byte-level BPE behind a pattern of one's own (Llama 3, Qwen, GPT-4o)."""
    tokenizer = Tokenizer.from_str(byte_level().backend_tokenizer.to_str())
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|bos|>", "<|eos|>", "<|turn|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return _wrap(tokenizer, "<|bos|>", "<|eos|>")


def with_flags(tokenizer, **flags):
    """A copy of a tokenizer whose special tokens have other flags (`rstrip` in Phi-3)."""
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in spec["added_tokens"]:
        token.update(flags if token["special"] else {})
    return _wrap(Tokenizer.from_str(json.dumps(spec)), tokenizer.bos_token, tokenizer.eos_token)


def _wrap(tokenizer, bos, eos, unk=None):
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    names = {"eos_token": eos, "unk_token": unk or ("<unk>" if tokenizer.token_to_id("<unk>") is not None else None)}
    if bos is not None:
        names["bos_token"] = bos
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **{k: v for k, v in names.items() if v}
    )


def save_gpt2(folder, tokenizer, *, seed=0, window=256, chat=True, width=32, layers=2):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = GPT2Config(
            **_ids(tokenizer),
            n_positions=window,
            n_embd=width,
            n_layer=layers,
            n_head=4,
        )
        return _save(GPT2LMHeadModel(config), folder, tokenizer, chat)


def save_terse(folder, tokenizer, *, window=8192, seed=3):
    """A random GPT-2 that ends strings, numbers and lists soon, where a grammar lets it.

    Random weights know no end: the longer an answer to a schema with texts, the surer it is cut off.
    """
    closers = [piece for piece in tokenizer.get_vocab() if piece and set(piece) <= set('"}]')]
    return save_fond(folder, tokenizer, closers, window=window, seed=seed)


def save_fond(folder, tokenizer, pieces, *, window=8192, seed=3):
    """A random GPT-2 that likes to say some tokens.

    Their logits are raised, by a direction that the last layer norm adds and their embeddings have.
    """
    save_gpt2(folder, tokenizer, seed=seed, window=window, layers=1)
    model = GPT2LMHeadModel.from_pretrained(folder)
    with torch.no_grad():
        norm, embeddings = model.transformer.ln_f, model.transformer.wte.weight
        embeddings[:, 0] = 0.0
        embeddings[tokenizer.convert_tokens_to_ids(pieces), 0] = 1.0
        model.transformer.wpe.weight *= 4.0  # or tied embeddings repeat the last token, such as a quote
        norm.weight[0], norm.bias[0] = 0.0, 6.0
    model.save_pretrained(folder)
    return folder


def save_llama(folder, tokenizer, *, seed=1, window=256, chat=True, width=32, layers=2, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LlamaConfig(
            **_ids(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=window,
            tie_word_embeddings=True,
            **options,
        )
        return _save(LlamaForCausalLM(config), folder, tokenizer, chat)


def save_falcon_h1(folder, tokenizer, *, seed=2, window=256, chat=True):
    """A model whose layers all have a recurrent state beside their keys and values."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = FalconH1Config(
            **_ids(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=window,
            mamba_d_ssm=32,
            mamba_n_heads=4,
            mamba_d_head=8,
            mamba_d_state=8,
            mamba_chunk_size=8,
        )
        return _save(FalconH1ForCausalLM(config), folder, tokenizer, chat)


def save_mamba(folder, tokenizer, *, seed=0, chat=True):
    """A model with a recurrent state alone, which takes new ids one by one."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = MambaConfig(
            **_ids(tokenizer),
            hidden_size=32,
            state_size=4,
            num_hidden_layers=2,
        )
        return _save(MambaForCausalLM(config), folder, tokenizer, chat)


def _ids(tokenizer):
    """What every configuration takes from its tokenizer."""
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _save(model, folder, tokenizer, chat):
    # Random weights of the usual size make flat distributions; wider ones make choices that a test can tell apart.
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(6.0)
    model.save_pretrained(folder)
    tokenizer.chat_template = CHAT_TEMPLATE if chat else None
    tokenizer.save_pretrained(folder)
    return folder
