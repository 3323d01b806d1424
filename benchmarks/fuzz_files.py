"""The ways in that read files: folders of models, and the headers of their weights."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from benchmarks.fuzz_entry import Entry
from benchmarks.fuzz_inputs import Mutator
from deepen_core.demo import member_paths
from deepen_core.members.loading import describe_member, load_members, member_configs
from deepen_core.members.transformers.weight_files import weight_shapes
from deepen_core.progress import Steps

_TEXTS = ["Where does the painter live?", "She lives in a house by the sea, and has 3 cats."]
_VOCABULARY = 300
_SMALL = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json")


def file_entries(root: Path) -> list[Entry]:
    """Returns the ways in that read files.

    Args:
        root: A folder for them.
    """
    sources = [shallow_copy(path, root / path.name, vocabulary=_VOCABULARY) for path in member_paths()]
    contents = {
        path: {name: json.loads((path / name).read_text(encoding="utf-8")) for name in _SMALL} for path in sources
    }
    header = {"__metadata__": {"format": "pt"}, "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}

    def folder(mutator: Mutator) -> None:
        place, name = mutator.draw.choice(sources), mutator.draw.choice(_SMALL)
        text = json.dumps(mutator.changed(contents[place][name], 4), ensure_ascii=True)
        data = text.encode() if mutator.draw.random() < 0.8 else mutator.changed_bytes(text.encode())
        (place / name).write_bytes(data)
        try:
            (config,) = member_configs([str(place)])
            described = describe_member(config, "cpu", "float32", progress=False)
            load_members([described], Steps("Loading", "a member", 1, shown=False))
        finally:
            (place / name).write_text(json.dumps(contents[place][name]), encoding="utf-8")

    def weights(mutator: Mutator) -> None:
        text = json.dumps(mutator.changed(header)).encode()
        data = struct.pack("<Q", len(text)) + text + bytes(24)
        place = root / "weights"
        place.mkdir(exist_ok=True)
        (place / "model.safetensors").write_bytes(mutator.changed_bytes(data))
        weight_shapes(place)

    return [Entry("model folders", folder, share=0.05), Entry("headers of weight files", weights)]


def shallow_copy(source: Path, place: Path, vocabulary: int | None = None) -> Path:
    """Writes a model of the same architecture with one layer, which takes less time.

    Args:
        source: The folder of the model.
        place: The folder of the copy.
        vocabulary: Size of a new tokenizer of the same kind, so that fewer of the places that are changed are in the
            middle of a long vocabulary; the same tokenizer if None.

    Returns:
        Its folder.
    """
    tokenizer = AutoTokenizer.from_pretrained(source)
    config = AutoConfig.from_pretrained(source)
    if vocabulary is not None:
        tokenizer = tokenizer.train_new_from_iterator(_TEXTS, vocabulary)
        config.vocab_size = len(tokenizer)
    tokenizer.save_pretrained(place)
    config.num_hidden_layers = 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # findings are repeated with the same weights
        AutoModelForCausalLM.from_config(config).save_pretrained(place)
    return place
