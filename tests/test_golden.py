"""Conformance with the inputs and outputs recorded from the original implementation."""

import itertools
import json

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models

from deepen_core.fusion.anchors.shared_tokens import common_tokens
from deepen_core.fusion.deepen.relative_space import relative_matrix
from deepen_core.fusion.deepen.search import adamw_search, em_search
from deepen_core.tokenization.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "golden"
    return {
        "fuse": load_file(folder / "fuse_cases.safetensors"),
        "build": load_file(folder / "builder_cases.safetensors"),
        "meta": json.loads((folder / "meta.json").read_text()),
        "vocabs": json.loads((folder / "vocabs.json").read_text()),
    }


def test_matrices_of_all_worlds(golden):
    compared = 0
    for number, world in enumerate(golden["meta"]["worlds"]):
        for model in range(world["models"]):
            name = f"w{number}"
            found = relative_matrix(golden["build"][f"{name}.emb{model}"], golden["build"][f"{name}.anchors{model}"])
            torch.testing.assert_close(found, golden["fuse"][f"{name}.matrix{model}"], atol=1e-5, rtol=0)
            compared += 1
    assert compared == 17


def test_matrices_of_the_edge_cases(golden):
    names = sorted(k.split(".")[1] for k in golden["build"] if k.startswith("edge.") and k.endswith(".emb"))
    assert len(names) == 11
    for name in names:
        embeddings = golden["build"][f"edge.{name}.emb"]
        anchors = golden["build"][f"edge.{name}.anchors"]
        found = relative_matrix(embeddings, anchors, 10.0 if name == "temp10" else 100.0)
        # The original computes half-precision cosines in half precision; here they are always float32.
        tolerance = {"bf16": 0.1, "fp16": 0.01}.get(name, 1e-5)
        torch.testing.assert_close(found, golden["build"][f"edge.{name}.matrix"], atol=tolerance, rtol=0, msg=name)


def test_adamw_search_of_all_cases(golden):
    fuse, cases = golden["fuse"], golden["meta"]["cases"]
    choices = []
    for case in cases:
        name = case["case"]
        world = name.split(".")[0]
        parts = [
            weight * (torch.softmax(fuse[f"{name}.logits{m}"].float(), -1) @ fuse[f"{world}.matrix{m}"])
            for m, weight in enumerate(case["weights"])
        ]
        target = torch.stack(parts).sum(0)
        torch.testing.assert_close(target, fuse[f"{name}.avg"], atol=1e-6, rtol=0)
        main = fuse[f"{name}.logits0"]
        first = adamw_search(main, fuse[f"{world}.matrix0"], target, case["lr"], 1)
        # The recorded first step belongs to a search whose schedule is the same whatever its length.
        torch.testing.assert_close(first, fuse[f"{name}.step1"].float(), atol=1e-4, rtol=0)
        found = adamw_search(main, fuse[f"{world}.matrix0"], target, case["lr"], case["steps"])
        torch.testing.assert_close(found, fuse[f"{name}.out"].float(), atol=1e-4, rtol=0)
        choices.append(int(found.argmax()) == case["argmax_out"])
    assert len(choices) == 35
    assert all(choices)


def test_em_search_lowers_the_divergence_of_all_cases(golden):
    fuse = golden["fuse"]
    for case in golden["meta"]["cases"]:
        name, world = case["case"], case["case"].split(".")[0]
        matrix, target = fuse[f"{world}.matrix0"].double(), fuse[f"{name}.avg"].double()
        probs = torch.softmax(fuse[f"{name}.logits0"].double(), -1)
        divergence = []
        for steps in range(6):
            projected = em_search(probs, matrix, target, steps) @ matrix
            divergence.append(float(torch.xlogy(target, target / projected).sum()))
        assert all(b <= a + 1e-9 for a, b in itertools.pairwise(divergence)), name
        assert divergence[5] < 0.9 * divergence[0] or divergence[0] < 1e-6, name


def _vocabulary(tokens):
    """A vocabulary of the recorded token strings, in the spelling they have."""
    byte_level = any("Ġ" in t for t in tokens)
    tokenizer = Tokenizer(models.BPE(dict(tokens), [], unk_token=None))
    tokenizer.decoder = decoders.ByteLevel() if byte_level else decoders.Metaspace()
    return Vocabulary.from_tokenizer(tokenizer)


def _by_the_original_rule(token):
    """The original's name of a token: its string with a mark for each space."""
    return token.decode().replace(" ", "▁")


def test_common_tokens_of_all_worlds(golden):
    for name, world in golden["vocabs"]["worlds"].items():
        vocabularies = [_vocabulary(v) for v in world["vocabs"]]
        found = [_by_the_original_rule(t) for t in common_tokens(vocabularies)]
        assert len(found) == len(set(found))
        assert set(found) == set(world["anchor_tokens_in_order"]), name


def test_common_tokens_of_the_small_cases(golden):
    """Both spellings in one vocabulary, a collision, three members, an inner mark: after the original's replacement."""
    cases = golden["vocabs"]["common_vocab_cases"]
    assert set(cases) == {"marker", "collision", "three", "inner"}
    for name, case in cases.items():
        vocabularies = [_vocabulary({t.replace("Ġ", "▁"): i for t, i in v.items()}) for v in case["vocabs"]]
        found = {_by_the_original_rule(t): [v.id_of(t) for v in vocabularies] for t in common_tokens(vocabularies)}
        expected = {
            entry["common_vocab_token"]: [entry[f"vocab_{n + 1}_index"] for n in range(len(vocabularies))]
            for entry in case["common"]
        }
        assert found == expected, name
