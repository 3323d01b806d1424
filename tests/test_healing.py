"""A member that listens to shorter tokens than its own says what it may still have meant."""

from functools import cache

import pytest
import tiny
import torch
from accounting import accounts
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers

from deepen_core import Ensemble, FusionConfig, SamplingParams
from deepen_core.fusion.anchors import token_healing
from deepen_core.fusion.anchors.segmentation import Segmentation
from deepen_core.fusion.anchors.shared_tokens import Anchors
from deepen_core.fusion.anchors.token_healing import Healer, Heard
from deepen_core.tokenization.fast_tokenizer import Backend
from deepen_core.tokenization.vocabulary import Vocabulary


def metaspace(*pieces, merges=()):
    """A tokenizer of these pieces, which joins characters by these merges, in which a space is `▁`."""
    tokenizer = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, list(merges)))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


@pytest.fixture(scope="module")
def words():
    """The member: words and their beginnings."""
    return cut_by(metaspace("▁", "o", "n", "u", "t", "f", "▁o", "▁on", "▁out", "▁of", "ve", "é"))


@pytest.fixture(scope="module")
def letters():
    """Main: letters, and one word."""
    return metaspace("▁", "o", "n", "u", "t", "f", "▁o", "▁of", merges=[("▁", "o"), ("▁o", "f")])


def cut_by(tokenizer):
    return Segmentation(Vocabulary.from_tokenizer(tokenizer), Backend(tokenizer))


def healer_of(member, main):
    """A healer, and what main and the member share."""
    said = cut_by(main)
    anchors = Anchors.shared_by([said.vocabulary, member.vocabulary], ["main", "member"])
    return Healer(member, said, anchors, member.vocabulary.size), anchors.tokens


def heal(healer, sequences):
    """The correction where main gives nothing to any token, so that each goes to main's own next one."""
    return healer.heal(sequences, torch.zeros(len(sequences), 400))


@pytest.fixture
def healer(words, letters):
    return healer_of(words, letters)[0]


def heard(words, value, before, *said, cut=False):
    """The member's last token, and main's ids of what it has said."""
    return Heard(words.vocabulary.tokens[value], before, said, cut=cut)


def test_mass_goes_to_what_is_left_to_say(words, letters):
    """Behind " o": " on" and " out" are still open; main would have said " of" at once."""
    healer, anchors = healer_of(words, letters)
    before = torch.full((words.vocabulary.size,), -5.0)
    last, on, out, of = (words.vocabulary.tokens[v] for v in (b" o", b" on", b" out", b" of"))
    before[[last, on, out, of]] = torch.tensor([1.0, 2.0, 0.5, 1.5])
    healing = heal(healer, [heard(words, b" o", before, 6)])
    shares = torch.softmax(torch.tensor([1.0, 2.0, 0.5]), -1)
    assert float(healing.finished) == pytest.approx(float(shares[0]))
    assert float(healing.open[0, anchors.index(b"n")]) == pytest.approx(float(shares[1]))
    assert float(healing.open[0, anchors.index(b"u")]) == pytest.approx(float(shares[2]))
    assert float(healing.open.sum() + healing.finished) == pytest.approx(1.0)
    mass = torch.softmax(torch.randn(1, len(anchors) + 2, generator=torch.Generator().manual_seed(0)), -1)
    assert float(healing.applied(mass).sum()) == pytest.approx(1.0)


def test_what_main_did_not_say_is_no_beginning(healer, words):
    """A template's newline was nobody's choice: nothing longer can have been meant by it."""
    before = torch.zeros(words.vocabulary.size)
    assert heal(healer, [heard(words, b" o", before)]) is None
    assert heal(healer, [heard(words, b" o", before, 1)]) is None  # main has said the "o" of it, the space stood there
    assert heal(healer, [heard(words, b" o", before, 0, 1)]) is None  # not as it would have begun any longer token
    assert heal(healer, [heard(words, b" o", before, 2, 6)]) is not None


def test_behind_a_plain_prompt_every_longer_token_counts(words, letters):
    """A caller's text may be cut anywhere: behind " o" it may be on the way to " of", a token of main's own, too."""
    healer, anchors = healer_of(words, letters)
    healing = heal(healer, [heard(words, b" o", torch.zeros(words.vocabulary.size), cut=True)])
    assert healing.finished.tolist() == pytest.approx([1 / 4])
    open_ = {anchors[column]: float(healing.open[0, column]) for column in healing.open[0].nonzero()[:, 0].tolist()}
    assert open_ == pytest.approx({b"n": 1 / 4, b"u": 1 / 4, b"f": 1 / 4})


def test_a_token_that_the_prompt_begins_and_the_answer_can_continue_with(words, letters):
    """The prompt ends in a space and main has said "o": " on" and " out" may be meant, and " of" as well."""
    healer, anchors = healer_of(words, letters)
    healing = heal(healer, [heard(words, b" o", torch.zeros(words.vocabulary.size), 1, cut=True)])
    assert {anchors[column] for column in healing.open[0].nonzero()[:, 0].tolist()} == {b"n", b"u", b"f"}
    assert (
        heal(healer, [heard(words, b" o", torch.zeros(words.vocabulary.size), 2, cut=True)]) is None
    )  # which is no " o"


def test_a_longer_token_that_main_would_have_begun_otherwise_does_not_count():
    """Main says "nn" before a third "n", and has said "n": neither "nn" nor "nnn" was on its way."""
    member = cut_by(metaspace("n", "u", "nn", "nnn", "nu"))
    healer, anchors = healer_of(member, metaspace("n", "u", "nn", merges=[("n", "n")]))
    healing = heal(healer, [heard(member, b"n", torch.zeros(member.vocabulary.size), 0)])
    assert float(healing.finished) == pytest.approx(0.5)
    assert healing.open[0].nonzero()[:, 0].tolist() == [anchors.index(b"u")]


def test_a_token_of_main_that_began_before_the_members_is_taken_whole():
    """Main's token "on" ends where the member's "n" does: what counts is how main goes on with all of it."""
    member = cut_by(metaspace("o", "n", "u", "nu", "nt", "t"))
    healer, anchors = healer_of(member, metaspace("o", "n", "u", "t", "on", "ont", merges=[("o", "n"), ("on", "t")]))
    healing = heal(healer, [heard(member, b"n", torch.zeros(member.vocabulary.size), 4)])
    assert healing.open[0].nonzero()[:, 0].tolist() == [anchors.index(b"u")]  # not "t": main would have said "ont"


def test_what_begins_with_no_shared_token_is_unknown():
    """Nothing that the others can say leads there, least of all the end of the text."""
    member = cut_by(metaspace("▁", "o", "▁o", "▁oé"))
    healer, anchors = healer_of(member, metaspace("▁", "o", "é", "▁o", merges=[("▁", "o")]))
    healing = heal(healer, [heard(member, b" o", torch.zeros(member.vocabulary.size), 3)])
    assert healing.open[0].nonzero()[:, 0].tolist() == [len(anchors) + 1]
    assert float(healing.open.sum()) == pytest.approx(0.5)


def test_what_is_left_goes_to_all_of_mains_tokens_that_begin_with_it():
    """Behind "o" the member says "on": main says whether "n" or "ne" follows; "nt" is in a longer one."""
    member = cut_by(metaspace("o", "n", "e", "u", "t", "ne", "nu", "nt", "on", "ont"))
    healer, anchors = healer_of(member, metaspace("o", "n", "e", "u", "t", "ne", "nu", "nt"))
    own = torch.zeros(1, len(anchors) + 2)
    own[0, [anchors.index(v) for v in (b"n", b"ne", b"nt", b"o")]] = torch.tensor([0.1, 0.3, 0.4, 0.2])
    before = torch.full((member.vocabulary.size,), -50.0)
    before[member.vocabulary.tokens[b"on"]] = 0.0
    healing = healer.heal([heard(member, b"o", before, 0)], own)
    assert float(healing.finished) == pytest.approx(0.0, abs=1e-6)
    open_ = {anchors[column]: float(healing.open[0, column]) for column in healing.open[0].nonzero()[:, 0].tolist()}
    assert open_ == pytest.approx({b"n": 0.25, b"ne": 0.75})


@pytest.fixture
def indenting():
    """Main has a newline with one blank; the member a newline, and blanks by themselves."""
    main = metaspace("\n", "▁", "a", "▁▁", "▁a", "\n▁", merges=[("\n", "▁"), ("▁", "▁"), ("▁", "a")])
    member = cut_by(metaspace("\n", "▁", "a", "▁▁", "▁▁▁"))
    return healer_of(member, main), member


def test_main_is_not_led_into_what_it_has_ruled_out(indenting):
    r"""Main said "\n", not "\n ": no blank follows, however sure of one the member is."""
    (healer, anchors), member = indenting
    mass = torch.zeros(2, len(anchors) + 2)
    mass[:, [anchors.index(b" "), anchors.index(b"a"), anchors.index(b"\n")]] = torch.tensor([0.6, 0.3, 0.1])
    sequences = [Heard(member.vocabulary.tokens[b"\n"], None, said, cut=True) for said in ((0,), ())]
    healed = healer.healed(mass.clone(), sequences, torch.zeros_like(mass))
    assert healed[0, anchors.index(b" ")] == 0.0
    assert healed[0, anchors.index(b"a")] == pytest.approx(0.3)
    assert healed[0].sum() == pytest.approx(0.4)
    assert torch.equal(healed[1], mass[1])  # a prompt may end anywhere


def test_blanks_before_a_word_are_cut_as_before_a_word():
    r"""GPT-2 keeps "\n    " together, but cuts "\n    a" into "\n   " and " a": the member's four blanks go to " a"."""
    main = tiny.byte_level_of(["b\n    a"] * 9 + ["b\n    "] * 9, 300)
    member = cut_by(
        metaspace("\n", "▁", "a", "b", "▁▁", "▁▁▁▁", "▁▁▁", "▁a", merges=[("▁", "▁"), ("▁▁", "▁▁"), ("▁▁", "▁")])
    )
    healer, anchors = healer_of(member, main)
    said = healer._main.vocabulary.tokens[b"\n   "]
    assert healer._main.after((said,), b" ") is None
    assert healer._main.can_continue((said,), b" ")
    assert not healer._main.can_continue((said,), b"a")
    before = torch.full((member.vocabulary.size,), -50.0)
    before[member.vocabulary.tokens[b"    "]] = 0.0
    own = torch.zeros(1, len(anchors) + 2)
    own[0, [anchors.index(b" a"), anchors.index(b"b")]] = torch.tensor([0.1, 0.9])
    healing = healer.heal([heard(member, b"   ", before, said)], own)
    assert float(healing.open[0, anchors.index(b" a")]) == pytest.approx(1.0)


@pytest.mark.parametrize("make", [tiny.byte_level, tiny.gemma_like, tiny.sentencepiece_bpe, tiny.unigram])
@given(st.text(st.sampled_from("ab e\n.on1(  é"), max_size=30), st.integers(0, 3))
def test_what_a_tokenizer_writes_is_never_ruled_out(make, text, start):
    cut = once(make)
    ids = next(iter(cut._backend.encode_behind(text)), [])
    for place in range(start, len(ids)):
        if value := cut.token_bytes(ids[place]):
            assert cut.can_continue(ids[start:place], value)


@cache
def once(make):
    return cut_by(make())


@pytest.mark.parametrize(("value", "said"), [(b"n", 2), (b" of", 7), (b" out", 6)])
def test_nothing_is_open_where_no_longer_token_begins_so(healer, words, value, said):
    assert heal(healer, [heard(words, value, torch.zeros(words.vocabulary.size), said)]) is None


def test_rows_are_healed_each_on_its_own(healer, words):
    before = torch.zeros(words.vocabulary.size)
    sure = before.clone()
    sure[words.vocabulary.tokens[b" o"]] = 50.0
    sequences = [heard(words, value, logits, 6) for value, logits in ((b" o", before), (b"n", before), (b" o", sure))]
    healing = heal(healer, [*sequences, Heard(words.vocabulary.tokens[b" o"], None, (6,), cut=False)])
    assert healing.finished.tolist() == pytest.approx([1 / 3, 1.0, 1.0, 1.0])
    assert healing.open.sum(-1).tolist() == pytest.approx([2 / 3, 0.0, 0.0, 0.0])


@pytest.fixture(scope="module")
def newline_folders(made_once):
    """Two members whose templates end in a newline; the second one has tokens of many newlines, the first of two."""

    def make(root):
        few, many = (tiny.byte_level_of(["one\ntwo\n\n" * 9, "\n" * most, "so it goes on"], 300) for most in (2, 9))
        tiny.save_gpt2(root / "few", few, width=64)
        tiny.save_gpt2(root / "many", many, width=64, seed=1)

    root = made_once("newlines", make)
    return root / "few", root / "many"


CONVERSATION = [{"role": "user", "content": "Go on."}]


@pytest.mark.parametrize("turned", [False, True])
def test_no_member_is_asked_what_the_template_may_have_begun(newline_folders, turned):
    """Behind the newline of a template, the first token is fused as if there were no healing."""
    found = []
    for healing in (True, False):
        with Ensemble.load(
            newline_folders[::-1] if turned else newline_folders,
            fusion=FusionConfig(healing=healing),
            progress=False,
            device="cpu",
        ) as ensemble:
            few, many = (
                member.tokenizer.vocabulary.tokens for member in ensemble._engine.members[:: -1 if turned else 1]
            )
            assert b"\n" * 4 in many.keys() - few.keys()
            answer = ensemble.generate(CONVERSATION, max_new_tokens=1, logprobs=20, ignore_eos=True)
            found.append(answer.logprobs[0].top)
    assert found[0] == found[1]


@pytest.mark.parametrize("prompt", [CONVERSATION, "so it"])
@pytest.mark.parametrize("turned", [False, True])
def test_members_account_for_what_is_chosen(newline_folders, turned, prompt):
    """No token is chosen that every member rejects."""
    folders = newline_folders[::-1] if turned else newline_folders
    with Ensemble.load(folders, fusion={"target_self_mass": 0.99}, progress=False, device="cpu") as ensemble:
        steps = list(accounts(ensemble, prompt, max_new_tokens=30, ignore_eos=True))
    assert len(steps) == 30
    for step in steps:
        assert step.fused <= step.covered + 0.05, step.token


@pytest.mark.parametrize("names", [("alpha", "beta"), ("beta", "alpha"), ("gamma", "alpha")])
def test_the_logits_before_the_last_id_are_those_of_the_whole_text(load, names):
    """Kept from earlier steps, thrown away by rewinds, never stale."""
    with load(*names) as ensemble:
        sequence = ensemble._engine.decoder.start(
            "The quick", SamplingParams(max_new_tokens=60, temperature=1.0, seed=3, ignore_eos=True)
        )
        known = 0
        for _ in range(40):
            ensemble._engine.decoder.step([sequence])
            side, member = sequence.member_sequences[1], ensemble._engine.members[1]
            if sequence.others_behind or len(side.ids) > 200:
                continue
            with torch.inference_mode():
                member.next_logits([side])
                found = side.logits_before
                fresh = member.model(torch.tensor([side.ids])).logits[0, -2]
            if found is not None:
                known += 1
                torch.testing.assert_close(found, fresh, atol=1e-4, rtol=1e-4)
        assert known > 20


@pytest.mark.slow
def test_healing_lowers_the_cost_of_a_character_model_with_a_word_piece_model(shared):
    """Bits per byte of real stories, where main speaks in characters."""
    lines = (shared / "data" / "tinystories_valid.txt").read_text().split("\n")
    texts = [line[:160] for line in lines if len(line) > 200][:3]
    cost = {}
    for healing in (True, False):
        with pytest.warns(UserWarning, match="differ much in length"):
            ensemble = Ensemble.load(
                [shared / "models" / n for n in ("babyllama105", "stories260K")],
                fusion=FusionConfig(healing=healing),
                weights="static",
                progress=False,
                device="cpu",
            )
        with ensemble:
            cost[healing] = -sum(ensemble.score(t[:30], t[30:]).total for t in texts)
    assert cost[True] < 0.85 * cost[False]


def test_tokenizers_of_one_kind_have_little_to_heal():
    tokenizer = tiny.byte_level()
    healer, _ = healer_of(cut_by(tokenizer), tokenizer)
    a = healer._member.vocabulary
    assert all(heal(healer, [Heard(i, torch.zeros(a.size), (i,), cut=False)]) is None for i in a.tokens.values())


@pytest.mark.parametrize("tokenizer", [tiny.byte_level, tiny.sentencepiece_bpe, tiny.gemma_like])
def test_the_longer_tokens_of_each_token(tokenizer):
    """Of all, against looking at each pair of them."""
    cuts = cut_by(tokenizer().backend_tokenizer)
    healer, _ = healer_of(cuts, tokenizer().backend_tokenizer)
    tokens = cuts.vocabulary.tokens
    for token_id in range(cuts.vocabulary.size):
        value = cuts.token_bytes(token_id)
        longer = {i for token, i in tokens.items() if value and token.startswith(value) and token != value}
        found = healer._longer_than(token_id).tolist()
        assert len(found) == len(set(found))
        assert set(found) == longer


def nested():
    """One of whose longer tokens begins another, but not all that begins with the first."""
    return metaspace("▁", "o", "n", "a", "b", "▁o", "▁on", "▁ona", "on", "ona", "onb", "oa")


@pytest.mark.parametrize(
    "make",
    [
        nested,
        lambda: tiny.byte_level().backend_tokenizer,
        lambda: tiny.sentencepiece_bpe().backend_tokenizer,
        lambda: tiny.gemma_like().backend_tokenizer,
    ],
)
def test_the_columns_that_begin_with_what_is_left_of_a_token(make):
    """Without those into which a longer token of the member's reaches; against looking at each pair of tokens."""
    cuts = cut_by(make())
    healer, anchors = healer_of(cuts, make())
    tokens, compared = cuts.vocabulary.tokens, 0
    for token, token_id in tokens.items():
        longer = [other for other in tokens if other.startswith(token) and other != token]
        for left in {token[start:] for start in range(1, len(token))} & set(anchors):
            reached = [left + other[len(token) :] for other in longer]
            begun = [n for n, a in enumerate(anchors) if a.startswith(left) and not any(map(a.startswith, reached))]
            assert healer._begun_columns(token_id, left).tolist() == begun
            compared += len(begun) > 1
    assert compared


@given(
    st.lists(st.binary(min_size=1, max_size=3), unique=True).map(sorted),
    st.binary(min_size=1, max_size=3) | st.sampled_from([b"\xff", b"\xff\xff", b"a\xff"]),
)
def test_tokens_sorted_by_bytes_that_begin_with_some(tokens, start):
    tokens = sorted({*tokens, start + b"\xff", start[:-1] + b"a"})
    found = [tokens[place] for place in token_healing._beginning_with(tokens, start)]
    assert found == [token for token in tokens if token.startswith(start)]
