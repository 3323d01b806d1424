"""How much of a prompt may be planned: what is filled up to the planning window by main's tokens fits every member."""

import inspect
import math
from itertools import pairwise

import pytest
import tiny
from amounts import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from deepen_core import Ensemble
from deepen_core.demo import documents
from deepen_core.engine.frontend import GenerationAPI
from deepen_core.errors import ContextWindowError
from deepen_core.members.context_budget import added_tokens, fertility
from deepen_core.members.tokenizer import MemberTokenizer

# Says a good deal by itself, as Llama 3 and Qwen do, and takes no system message.
TALKATIVE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system messages') }}{% endif %}"
    "<|turn|>system\nCutting knowledge date: long ago. Today is another day.<|end|>\n"
    "{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def folders(made_once):
    """Members whose tokens differ in length, with templates and without."""

    def make(root):
        tiny.save_gpt2(root / "bytes", tiny.byte_level(270), window=2000)
        tiny.save_llama(root / "words", tiny.byte_level(2000), window=1800)
        tiny.save_llama(root / "pieces", tiny.sentencepiece_bpe(), window=2000, seed=3)
        tiny.save_llama(root / "texts", tiny.unigram(), window=2000, seed=4, chat=False)
        tiny.save_llama(root / "talks", tiny.sentencepiece_bpe(), window=2000, seed=5)
        (root / "talks" / "chat_template.jinja").write_text(TALKATIVE, encoding="utf-8")

    root = made_once("planned", make)
    return {name: root / name for name in ("bytes", "words", "pieces", "texts", "talks")}


@pytest.fixture(scope="module")
def load(folders):
    loaded = {}

    def load_named(*names, **options):
        key = (names, str(options))
        if key not in loaded:
            loaded[key] = Ensemble.load([folders[n] for n in names], progress=False, device="cpu", **options)
        return loaded[key]

    yield load_named
    for ensemble in loaded.values():
        ensemble.close()


def filled(ensemble, words, tokens):
    """As many of some words or lines, over and over, as have so many of main's tokens."""
    text, more = "", words[0]
    between = "\n" if words is CODE else " "
    place = 0
    while ensemble.count_tokens(more) <= tokens:
        text, place = more, place + 1
        more = f"{text}{between}{words[place % len(words)]}"
    return text


WORDS = " ".join(document.text for document in documents()[:8]).split()
CODE = inspect.getsource(GenerationAPI).split("\n")
CODE_BLOCKS = inspect.getsource(GenerationAPI).split("\n\n")


@pytest.mark.filterwarnings("ignore::deepen_core.errors.CompatibilityWarning")
@pytest.mark.parametrize("members", [("words", "bytes"), ("bytes", "words"), ("words", "pieces"), ("pieces", "texts")])
@pytest.mark.parametrize("words", [WORDS, CODE], ids=["prose", "code"])
@pytest.mark.parametrize("answer", [1, 200])
def test_what_is_planned_by_mains_tokens_fits_every_member(load, members, words, answer):
    ensemble = load(*members)
    text = filled(ensemble, words, ensemble.planning_window - answer)
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]
    prompt = talk if ensemble.has_chat_template else text
    generation = ensemble.generate(prompt, max_new_tokens=1, ignore_eos=True)
    assert generation.usage.completion_tokens == 1
    for member, work in zip(ensemble.info.members, generation.member_work, strict=True):
        assert work.prompt_tokens + answer <= member.context_window


@pytest.mark.filterwarnings("ignore::deepen_core.errors.CompatibilityWarning")
def test_without_planning_the_same_prompt_does_not_fit(load):
    ensemble = load("words", "bytes")
    assert ensemble.planning_window < ensemble.context_window == 1800
    with pytest.raises(ContextWindowError, match=r"has \d+ tokens for member 'bytes', whose context window is 2000"):
        ensemble.generate(filled(ensemble, WORDS, 1700), max_new_tokens=1)


@pytest.mark.filterwarnings("ignore::deepen_core.errors.CompatibilityWarning")
def test_a_member_that_does_not_count_plans_nothing(load):
    alone = load("words", "words").planning_window
    assert load("words", "bytes", weights=[1, 0]).planning_window == alone < 1800


def test_longer_tokens_than_mains_make_the_window_no_larger(load):
    alone, together = load("bytes", "bytes").planning_window, load("bytes", "words").planning_window
    assert together < 1800 < alone


@pytest.fixture(scope="module")
def tokenizer(folders):
    return lambda name: MemberTokenizer(AutoTokenizer.from_pretrained(folders[name]), name)


def test_without_templates_only_bos_is_added(tokenizer):
    assert added_tokens(tokenizer("texts"), conversations=False) == 1
    assert added_tokens(MemberTokenizer(tiny.sentencepiece_bpe(bos=False), "none"), conversations=False) == 0


def test_what_a_template_says_by_itself_counts_and_what_it_refuses_does_not(tokenizer):
    usual, talkative = (added_tokens(tokenizer(name), conversations=True) for name in ("pieces", "talks"))
    said = len(tokenizer("talks").encode("Cutting knowledge date: long ago. Today is another day."))
    assert talkative > said
    assert talkative - said < usual + 20


@settings(max_examples=examples(40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from([d.text for d in documents()] + CODE_BLOCKS), min_size=3, max_size=12))
def test_texts_of_known_kinds_need_no_more_than_the_fertility(tokenizer, parts):
    """Over a text of some length; a few words may need more."""
    names = ("bytes", "words", "pieces", "texts")
    readers = _readers(tokenizer, names)
    text = "\n".join(parts)
    for one, other in (*pairwise(names), *pairwise(reversed(names))):
        tokens, spoken = readers[one], readers[other]
        assert len(tokens.encode(text)) <= fertility(tokens, spoken) * len(spoken.encode(text)) + 8


_read = {}


def _readers(tokenizer, names):
    for name in names:
        if name not in _read:
            _read[name] = tokenizer(name)
    return _read


# Counts for every member


@pytest.fixture(scope="module")
def halved(made_once, folders):
    """Two members whose windows and tokens differ, and how many tokens transformers makes of a prompt for each."""

    def make(root):
        tiny.save_llama(root / "short", tiny.sentencepiece_bpe(), window=1000, seed=6)

    places = [folders["words"], made_once("halved", make) / "short"]
    readers = [AutoTokenizer.from_pretrained(place) for place in places]

    def counts(prompt):
        if isinstance(prompt, str):
            return [len(reader(prompt, add_special_tokens=False)["input_ids"]) for reader in readers]
        return [len(reader.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]) for reader in readers]

    return places, counts


@pytest.mark.parametrize("prompt", [WORDS[:60], CODE[:20]], ids=["prose", "code"])
@pytest.mark.parametrize("talk", [False, True])
def test_a_prompt_counts_for_the_member_whose_window_it_fills_most(halved, prompt, talk):
    places, counts = halved
    text = " ".join(prompt)
    asked = [{"role": "user", "content": text}] if talk else text
    main, other = counts(asked)
    assert other > main
    assert Ensemble.read_budget(places).count(asked) == math.ceil(other * 1800 / 1000)
    assert Ensemble.read_budget(places, main=1).count(asked) == other
    assert Ensemble.read_budget(places, weights=[1, 0]).count(asked) == main
    roomy = Ensemble.read_budget([places[0], {"model": str(places[1]), "context_window": 1_000_000}])
    assert roomy.count(asked) == main
    capped = Ensemble.read_budget(places, max_context_window=900)
    assert (capped.count(asked), capped.main_window, capped.context_window) == (other, 900, 900)


@pytest.mark.filterwarnings("ignore::deepen_core.errors.CompatibilityWarning")
def test_a_prompt_that_counts_less_than_the_window_fits_and_one_more_does_not(halved):
    with Ensemble.load(halved[0], progress=False, device="cpu") as ensemble:
        budget, text = ensemble.budget, [{"role": "user", "content": ""}]
        assert (budget.main_window, budget.context_window) == (1800, 1000)
        while budget.count([{"role": "user", "content": text[0]["content"] + "a "}]) < budget.main_window:
            text = [{"role": "user", "content": text[0]["content"] + "a "}]
        assert ensemble.generate(text, max_new_tokens=1, ignore_eos=True).token_ids
        with pytest.raises(ContextWindowError, match="short"):
            ensemble.generate([{"role": "user", "content": text[0]["content"] + "a a "}], max_new_tokens=1)


@pytest.mark.parametrize("prompt", ["The dog", [{"role": "user", "content": "The dog"}]])
def test_a_text_that_takes_all_of_a_window_can_be_scored_and_one_more_cannot(halved, prompt):
    with Ensemble.load(halved[0], progress=False, device="cpu") as ensemble:
        text = " dog"
        while ensemble.budget.share(prompt, text + " dog") <= 1:
            text += " dog"
        assert ensemble.budget.share(prompt, text) > 0.99
        assert ensemble.score(prompt, text).logprobs
        with pytest.raises(ContextWindowError, match="Prompt and continuation have"):
            ensemble.score(prompt, text + " dog")


@given(text=st.text("thedogn's \n你🙂́e", max_size=60))
@settings(max_examples=examples(40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_token_ends_cut_a_text_into_tokens(load, text):
    """Up to there, each of main's tokens is as the tokenizer has it."""
    ensemble = load("words", "words")
    ends = ensemble.token_ends(text)
    vocabulary = ensemble._engine.main_member.tokenizer.vocabulary
    ids = ensemble.tokenize(text)
    assert len(ends) == len(ids)
    for count, end in enumerate(ends, start=1):
        if count == len(ids) or ends[count] > end:
            assert vocabulary.join(ids[:count]) == text[:end].encode()


def test_a_cap_holds_for_every_member(load):
    with load("words", "bytes", max_context_window=600) as ensemble:
        assert [m.context_window for m in ensemble.info.members] == [600, 600]
        with pytest.raises(ContextWindowError, match="context window is 600"):
            ensemble.generate(filled(ensemble, WORDS, 700))
