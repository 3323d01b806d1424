"""A member that listens to shorter tokens than its own says what it may still have meant."""

import pytest
import tiny
import torch

from deepen_core import SamplingParams
from deepen_core.anchors import Anchors
from deepen_core.healing import Healer
from deepen_core.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def words():
    """The member: words and their beginnings."""
    from tokenizers import Tokenizer, decoders, models

    pieces = ["▁", "o", "n", "u", "t", "f", "▁o", "▁on", "▁out", "▁of", "ve", "é"]
    tokenizer = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, []))
    tokenizer.decoder = decoders.Metaspace()
    return Vocabulary.from_tokenizer(tokenizer)


@pytest.fixture(scope="module")
def letters():
    """Main: letters, and one word."""
    from tokenizers import Tokenizer, decoders, models

    pieces = ["▁", "o", "n", "u", "t", "f", "▁o", "▁of"]
    tokenizer = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, []))
    tokenizer.decoder = decoders.Metaspace()
    return Vocabulary.from_tokenizer(tokenizer)


@pytest.fixture
def healer(words, letters):
    return Healer(words, letters, Anchors.shared_by([letters, words], ["main", "member"]), words.size)


def test_mass_goes_to_what_is_left_to_say(healer, words, letters):
    """Behind " o": " on" and " out" are still open; main would have said " of" at once."""
    anchors = Anchors.shared_by([letters, words], ["main", "member"]).tokens
    before = torch.full((words.size,), -5.0)
    last, on, out, of = (words.tokens[v] for v in (b" o", b" on", b" out", b" of"))
    before[[last, on, out, of]] = torch.tensor([1.0, 2.0, 0.5, 9.0])
    healing = healer.heal([(last, before)])
    shares = torch.softmax(torch.tensor([1.0, 2.0, 0.5]), -1)
    assert float(healing.finished) == pytest.approx(float(shares[0]))
    assert float(healing.open[0, anchors.index(b"n")]) == pytest.approx(float(shares[1]))
    assert float(healing.open[0, anchors.index(b"u")]) == pytest.approx(float(shares[2]))
    assert float(healing.open.sum() + healing.finished) == pytest.approx(1.0)
    mass = torch.softmax(torch.randn(1, len(anchors) + 2, generator=torch.Generator().manual_seed(0)), -1)
    assert float(healing.applied(mass).sum()) == pytest.approx(1.0)


def test_what_begins_with_no_shared_token_is_unknown(letters):
    """Nothing that main can say leads there, least of all the end of the text."""
    from tokenizers import Tokenizer, decoders, models

    pieces = ["▁", "o", "▁o", "▁oé"]
    tokenizer = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, []))
    tokenizer.decoder = decoders.Metaspace()
    member = Vocabulary.from_tokenizer(tokenizer)
    anchors = Anchors.shared_by([letters, member], ["main", "member"])
    healing = Healer(member, letters, anchors, member.size).heal([(member.tokens[b" o"], torch.zeros(member.size))])
    assert healing.open[0].nonzero()[:, 0].tolist() == [len(anchors) + 1]
    assert float(healing.open.sum()) == pytest.approx(0.5)


@pytest.mark.parametrize("value", [b"n", b" of", b" out"])
def test_nothing_is_open_where_no_longer_token_begins_so(healer, words, value):
    assert healer.heal([(words.tokens[value], torch.zeros(words.size))]) is None


def test_rows_are_healed_each_on_its_own(healer, words):
    before, last = torch.zeros(words.size), words.tokens[b" o"]
    sure = before.clone()
    sure[last] = 50.0
    healing = healer.heal([(last, before), (words.tokens[b"n"], before), (last, None), (last, sure)])
    assert healing.finished.tolist() == pytest.approx([1 / 3, 1.0, 1.0, 1.0])
    assert healing.open.sum(-1).tolist() == pytest.approx([2 / 3, 0.0, 0.0, 0.0])


@pytest.mark.parametrize("names", [("alpha", "beta"), ("beta", "alpha"), ("gamma", "alpha")])
def test_the_logits_before_the_last_id_are_those_of_the_whole_text(load, names):
    """Kept from earlier steps, thrown away by rewinds, never stale."""
    with load(*names) as ensemble:
        row = ensemble._decoder.start(
            "The quick", SamplingParams(max_new_tokens=60, temperature=1.0, seed=3, ignore_eos=True)
        )
        known = 0
        for _ in range(40):
            ensemble._decoder.step([row])
            side, member = row.sides[1], ensemble._members[1]
            if row.others_behind or len(side.ids) > 200:
                continue
            with torch.inference_mode():
                member.next_logits([side])
                found = side.logits_before
                fresh = member.model(torch.tensor([side.ids])).logits[0, -2]
            if found is not None:
                known += 1
                torch.testing.assert_close(found, fresh, atol=1e-4, rtol=1e-4)
        assert known > 20


def test_healing_lowers_the_cost_of_a_character_model_with_a_word_piece_model(shared):
    """Bits per byte of real stories, where main speaks in characters."""
    from deepen_core import Ensemble, FusionConfig

    lines = (shared / "data" / "tinystories_valid.txt").read_text().split("\n")
    texts = [line[:160] for line in lines if len(line) > 200][:3]
    cost = {}
    for healing in (True, False):
        with pytest.warns(UserWarning, match="differ much in length"):
            ensemble = Ensemble.load(
                [shared / "models" / n for n in ("babyllama105", "stories260K")],
                fusion=FusionConfig(healing=healing),
                progress=False,
                device="cpu",
            )
        with ensemble:
            cost[healing] = -sum(ensemble.score(t[:30], t[30:]).total for t in texts)
    assert cost[True] < 0.85 * cost[False]


def test_tokenizers_of_one_kind_have_little_to_heal():
    a = Vocabulary.from_tokenizer(tiny.byte_level())
    healer = Healer(a, a, Anchors.shared_by([a, a], ["a", "b"]), a.size)
    assert all(healer.heal([(i, torch.zeros(a.size))]) is None for i in a.tokens.values())
