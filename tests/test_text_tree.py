"""Texts with common beginnings as one tree, whose ids run once."""

import random

import pytest
import torch
from amounts import examples
from architectures import CONFIGURATIONS, VOCABULARY, build
from hypothesis import given, settings
from hypothesis import strategies as st

from deepen_core.members.text_tree import ROOT, TextPath, TextTree, common_length
from deepen_core.members.transformers.capabilities import probe, probe_trees
from deepen_core.members.transformers.causal import CausalMember
from deepen_core.members.transformers.masks import Masks

TEXTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=8)


def ancestors(tree, node):
    found = []
    while node != ROOT:
        found.append(node)
        node = tree.parents[node]
    return found[::-1]


@settings(max_examples=examples(200), deadline=None)
@given(texts=TEXTS, again=st.lists(st.integers(0, 100), max_size=3), cut=st.integers(0, 100))
def test_what_each_node_follows(texts, again, cut):
    tree = TextTree()
    path = TextPath(tree)
    for text in texts:
        path.move(text)
        assert path.ids == text
        assert [tree.ids[node] for node in path.nodes] == text
        assert ancestors(tree, path.nodes[-1]) == path.nodes
        assert [tree.depths[node] for node in path.nodes] == list(range(len(text)))
    assert len(tree) == len({tuple(text[:n]) for text in texts for n in range(1, len(text) + 1)})
    for node in again:
        copy = tree.again(node % len(tree))
        assert ancestors(tree, copy)[:-1] == ancestors(tree, node % copy)[:-1]
    for start in (0, cut % len(tree)):
        for stop in (len(tree), start + 1):
            visible = tree.visible(start, stop)
            assert visible.shape == (stop - start, stop)
            assert [line.nonzero()[0].tolist() for line in visible] == [ancestors(tree, n) for n in range(start, stop)]
    assert tree.is_chain(len(tree)) == (ancestors(tree, len(tree) - 1) == list(range(len(tree))))


@given(one=st.lists(st.integers(0, 1), max_size=30), other=st.lists(st.integers(0, 1), max_size=30), same=st.booleans())
def test_common_beginnings(one, other, same):
    other = one + other if same else other
    found = common_length(one, other)
    assert one[:found] == other[:found]
    assert found == min(len(one), len(other)) or one[found] != other[found]


def branching(seed, size=40):
    """Texts that grow and change at their ends, as in another member's vocabulary, from two prompts."""
    chosen = random.Random(seed)
    found = []
    for _ in range(2):
        text = [chosen.randrange(3, VOCABULARY) for _ in range(6)]
        while len(text) < size:
            text = text[: len(text) - chosen.choice([0, 0, 1, 2])]
            text = text + [chosen.randrange(3, VOCABULARY) for _ in range(chosen.choice([1, 1, 2]))]
            found.append(text)
    return found


@torch.inference_mode()
def read(member, texts, piece=23):
    """Logits after each text, from pieces of a tree."""
    tree, nodes = TextTree(), []
    run = member.tree_run(max(map(len, texts)))
    if run is None:
        return None
    for text in texts:
        path = TextPath(tree)
        path.move(text)
        nodes.append(path.nodes[-1])
    found = {}
    for start in range(0, len(tree), piece):
        wanted = sorted({node for node in nodes if start <= node < start + piece})
        logits = run.run(tree, min(start + piece, len(tree)), wanted)
        found |= dict(zip(wanted, logits, strict=True))
    assert member.work.ids_run == len(tree) < sum(map(len, texts)) / 4
    return torch.stack([found[node] for node in nodes])


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_tree_says_what_its_texts_say(name):
    """Every model that can run a ragged batch can run trees, up to the length to which it can."""
    model = build(name)
    member = CausalMember(name, model, None, 96)
    texts = branching(seed=1)
    found = read(member, texts)
    assert (found is not None) == (member.batching == "ragged")
    if found is None:
        texts = [text for text in texts if len(text) <= 20]
        found = read(member, texts)
        assert (found is not None) == member.batching.startswith("ragged")
    if found is not None:
        with torch.inference_mode():
            whole = torch.stack([model(torch.tensor([text])).logits[0, -1] for text in texts])
        torch.testing.assert_close(found, whole, atol=2e-4, rtol=2e-4)


def plain(masks, _visible, here, keys):
    """Masks by position alone: an id sees other branches."""
    return masks._by_kind(here[None, None, :, None], keys, (keys > here[:, None])[None, None])


@pytest.mark.parametrize("name", ["llama", "gemma3", "mistral"])
def test_a_model_that_sees_other_branches_runs_no_trees(name, monkeypatch):
    model = build(name)
    masks = probe(model, 96).masks
    assert probe_trees(model, 96, masks)
    with monkeypatch.context() as patched:
        patched.setattr(Masks, "of_tree", plain)
        assert not probe_trees(model, 96, masks)
    forward = model.forward

    def by_place(ids, *, position_ids=None, **options):
        """Goes by the place in the cache."""
        past = options["past_key_values"].get_seq_length() if "past_key_values" in options else 0
        return forward(ids, position_ids=past + torch.arange(ids.shape[1])[None], **options)

    model.forward = by_place
    assert not probe_trees(model, 96, masks)
