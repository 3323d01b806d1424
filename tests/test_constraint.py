"""An answer follows its constraint, whoever speaks and however its tokens are chosen."""

import asyncio
import functools
import gc
import json
import re
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from amounts import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepen_core import SamplingParams
from deepen_core.errors import DecodingError, SamplingError
from deepen_core.sampling.sampler import masked

PROMPT = "The quick brown fox"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "city": {"enum": ["Zürich", "東京"]},
    },
    "required": ["name", "age", "city"],
    "additionalProperties": False,
}
WAYS = [{}, {"temperature": 1.0, "seed": 7}, {"temperature": 1.5, "top_k": 5, "seed": 8, "repetition_penalty": 1.3}]
NAMES = [("alpha", "beta"), ("beta", "alpha"), ("gamma", "alpha", "wordpiece"), ("no_bos",)]
ADDITION = 'start: sum "=" /[0-9]{1,2}/\nsum: NUMBER ("+" NUMBER){1,2}\nNUMBER: /[1-9][0-9]?/'
KINDS = [
    {"json_schema": PERSON},
    {"regex": "[a-z]{2,9}(-[0-9]+)?"},
    {"choices": ["Lisbon", "Li", "Oslo"]},
    {"grammar": ADDITION},
]


@pytest.mark.parametrize("options", WAYS, ids=["greedy", "sampled", "penalised"])
@pytest.mark.parametrize("names", NAMES, ids="-".join)
def test_json(load, names, options):
    with load(*names) as ensemble:
        answer = ensemble.generate(PROMPT, json_schema=PERSON, max_new_tokens=150, **options)
    assert answer.finish_reason == "stop"
    value = json.loads(answer.text)
    assert list(value) == ["name", "age", "city"]
    assert len(value["name"]) <= 8
    assert 0 <= value["age"] <= 150
    assert value["city"] in {"Zürich", "東京"}
    assert value["city"] in answer.text, "written as it is, not as \\u escapes"


@functools.cache
def _compiled(expression):
    return re.compile(expression)


PIECES = st.sampled_from(["[a-z]", r"\d", "ä", "(yes|no)", "[^x]", r"\.", " ", "/", '"', "(a|bc)", r"\\", "[^a-zü]"])
COUNTS = st.sampled_from(["", "?", "{2}", "{1,3}"])


@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    pieces=st.lists(st.tuples(PIECES, COUNTS), min_size=1, max_size=4),
    optional_end=st.booleans(),
    temperature=st.sampled_from([0.0, 1.0]),
)
def test_regex_agrees_with_python(pair, pieces, optional_end, temperature):
    expression = "".join(piece + count for piece, count in pieces) + ("[!?]?" if optional_end else "!")
    answer = pair.generate(PROMPT, regex=expression, max_new_tokens=100, temperature=temperature, seed=1)
    assert answer.finish_reason == "stop"
    assert _compiled(expression).fullmatch(answer.text), (expression, answer.text)


@pytest.mark.parametrize("expression", ["^ab?$", "ab?", "^ab?", "ab?$", "(?i)AB?", r"a\$|a", "^ab|a$"])
def test_anchors_of_a_regex_are_no_text(pair, expression):
    answer = pair.generate(PROMPT, regex=expression, max_new_tokens=10)
    assert re.fullmatch(expression, answer.text)


CHOICES = ["Lisbon", "Lisbon is", " Oslo", "a.*", "(", "名前", "two\nlines", "Li"]


@pytest.mark.parametrize("names", NAMES, ids="-".join)
def test_choices(load, names):
    with load(*names) as ensemble:
        answers = ensemble.generate([PROMPT] * 2, choices=CHOICES, max_new_tokens=40)
        answers += [
            ensemble.generate(PROMPT, choices=CHOICES, max_new_tokens=40, temperature=2.0, seed=s) for s in range(30)
        ]
    assert {a.finish_reason for a in answers} == {"stop"}
    assert {a.text for a in answers} <= set(CHOICES)
    assert len({a.text for a in answers}) >= 3, "it is a choice"


@pytest.mark.parametrize("choice", CHOICES)
def test_the_only_choice_is_taken(pair, choice):
    answer = pair.generate(PROMPT, choices=[choice], max_new_tokens=40)
    assert (answer.text, answer.finish_reason) == (choice, "stop")


def test_grammar(pair):
    for seed in range(10):
        answer = pair.generate(PROMPT, grammar=ADDITION, max_new_tokens=40, temperature=1.0, seed=seed)
        assert re.fullmatch(r"[1-9]\d?(\+[1-9]\d?){1,2}=\d{1,2}", answer.text)


def test_json_in_a_grammar_is_as_compact(pair):
    """And what only looks like the beginning of JSON, in a string or an expression, is left alone."""
    schema = {"type": "object", "properties": {"ü": {"type": "boolean"}}, "required": ["ü"]}
    schema["additionalProperties"] = False
    grammar = f'start: "<%json {{" %json {json.dumps(schema)} "}}// no comment" /x%json \\{{/  // %json {{'
    for seed in range(10):
        answer = pair.generate(PROMPT, grammar=grammar, max_new_tokens=60, temperature=3.0, seed=seed)
        assert re.fullmatch(r'<%json \{\{"ü": ?(true|false)\}\}// no commentx%json \{', answer.text)


@pytest.mark.parametrize("names", [("beta", "alpha"), ("gamma", "alpha")], ids="-".join)
def test_at_the_start_of_a_text_the_dummy_space_is_no_text(load, names):
    """The caller never sees it, so the constraint must not either; nor may a space be lost that is wanted."""
    with load(*names) as ensemble:
        vocabulary = ensemble._engine.members[0].tokenizer.vocabulary
        spaced = set()
        for seed in range(20):
            options = {"max_new_tokens": 30, "temperature": 2.0, "seed": seed}
            answer = ensemble.generate("", regex="[a-zA-Z]{3,6}", **options)
            assert re.fullmatch("[a-zA-Z]{3,6}", answer.text)
            spaced.add(vocabulary.token_bytes(answer.token_ids[0]).startswith(b" "))
            assert ensemble.generate("", choices=[" the", " fox"], **options).text in {" the", " fox"}
        assert spaced == {True, False}, "the first word may be spelled either way"


@pytest.mark.parametrize("constraint", KINDS, ids=lambda kind: next(iter(kind)))
def test_a_batch_with_free_rows_equals_each_alone(pair, constraint):
    """Greedy and sampled, constrained and free, in one batch and alone."""
    asked = [
        {**constraint, "max_new_tokens": 80},
        {"max_new_tokens": 20},
        {**constraint, "max_new_tokens": 80, "temperature": 1.0, "seed": 3},
        {"max_new_tokens": 20, "temperature": 1.0, "seed": 3},
        {"choices": ["Oslo", "Lisbon"], "max_new_tokens": 20},
    ]
    handles = [pair.submit(PROMPT, **options) for options in asked]
    together = [handle.result() for handle in handles]
    alone = [pair.generate(PROMPT, **options) for options in asked]
    assert [a.token_ids for a in together] == [a.token_ids for a in alone]


@pytest.mark.parametrize("constraint", KINDS, ids=lambda kind: next(iter(kind)))
async def test_streams_and_async(pair, constraint):
    options = {**constraint, "max_new_tokens": 80, "temperature": 1.0, "seed": 11}
    whole = await pair.agenerate(PROMPT, **options)
    chunks = list(pair.stream(PROMPT, **options))
    later = [chunk async for chunk in pair.astream(PROMPT, **options)]
    assert "".join(c.text for c in chunks) == "".join(c.text for c in later) == whole.text
    assert chunks[-1].generation.token_ids == whole.token_ids
    assert whole.finish_reason == "stop"
    several = await asyncio.gather(*(pair.agenerate(PROMPT, **options) for _ in range(5)))
    assert {a.text for a in several} == {whole.text}


def test_many_threads(pair):
    """They compile and decode at once, equal constraints and others."""
    asked = [{"regex": f"[a-z]{{{4 + place % 5}}}", "max_new_tokens": 20, "seed": place} for place in range(40)]
    asked += [{"json_schema": PERSON, "max_new_tokens": 100, "temperature": 1.0, "seed": s} for s in range(8)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda options: pair.generate(PROMPT, **options).text, asked))
    assert found == [pair.generate(PROMPT, **options).text for options in asked]


def test_a_closed_ensemble_leaves_nothing(load):
    with load("beta", "alpha") as ensemble:
        ensemble.generate(["", PROMPT], choices=["the", "fox"])
        lexicons = list(map(weakref.ref, ensemble._engine.decoder.factory.constraints._lexicons.values()))
        tokens = [weakref.ref(t) for t in gc.get_objects() if type(t).__name__ == "_Tokens"]
    del ensemble
    gc.collect()
    assert len(lexicons) == 2
    assert [reference() for reference in lexicons] == [None] * 2
    assert sum(reference() is None for reference in tokens) >= 2


def test_seeds(pair):
    options = {"json_schema": PERSON, "max_new_tokens": 100, "temperature": 1.0}
    first = pair.generate(PROMPT, seed=1, **options)
    assert first.text == pair.generate(PROMPT, seed=1, **options).text
    assert first.text != pair.generate(PROMPT, seed=2, **options).text


def test_an_answer_ends_with_its_last_token(pair):
    """No forward is spent on an end that is certain."""
    member = pair._engine.members[0]
    before = member.work.forwards
    answer = pair.generate(PROMPT, json_schema=PERSON, max_new_tokens=150)
    assert answer.text.endswith("}")
    assert member.work.forwards - before <= len(answer.token_ids)


def test_an_answer_that_is_cut_says_so(pair):
    answer = pair.generate(PROMPT, json_schema=PERSON, max_new_tokens=4)
    assert (answer.finish_reason, len(answer.token_ids)) == ("length", 4)
    answer = pair.generate(PROMPT, json_schema=PERSON, max_new_tokens=100, timeout=1e-9)
    assert answer.finish_reason == "timeout"
    exact = len(pair.generate(PROMPT, json_schema=PERSON, max_new_tokens=150).token_ids)
    assert pair.generate(PROMPT, json_schema=PERSON, max_new_tokens=exact).finish_reason == "stop"


def test_a_cancelled_sequence(pair):
    handle = pair.submit(PROMPT, regex="[a-z]+", ignore_eos=True, max_new_tokens=200)
    next(handle)
    handle.cancel()
    answer = handle.result()
    assert answer.finish_reason == "cancelled"
    assert re.fullmatch("[a-z]*", answer.text)


def test_the_end_is_allowed_just_where_the_answer_is_complete(pair):
    """`ignore_eos` forbids the end while there is anything else to say."""
    assert len(pair.generate(PROMPT, regex="[a-z]{1,30}", ignore_eos=True, max_new_tokens=60).text) == 30
    assert pair.generate(PROMPT, json_schema=PERSON, ignore_eos=True, max_new_tokens=150).finish_reason == "stop"
    decoder, vocabulary = pair._engine.decoder, pair._engine.members[0].tokenizer.vocabulary
    constraint = decoder.factory.constraints.start(SamplingParams(regex="ab?"), starts_text=False)
    stops = sorted(vocabulary.stop_ids)
    assert not constraint.allowed(500, torch.device("cpu"))[stops].any()
    constraint.advance(vocabulary.id_of(b"a"))
    assert constraint.allowed(500, torch.device("cpu"))[stops].all()
    assert not constraint.complete
    constraint.advance(vocabulary.id_of(b"b"))
    assert constraint.complete


def test_a_mask_is_exactly_what_may_follow(load):
    """Every token that Python's re says may come first, and no other: no control token, no id beyond the vocabulary."""
    with load("beta", "alpha") as ensemble:
        vocabulary = ensemble._engine.members[0].tokenizer.vocabulary
        start = functools.partial(
            ensemble._engine.decoder.factory.constraints.start, SamplingParams(regex="[a-z]{3}[0-9]")
        )
        for starts_text in (False, True):
            mask = start(starts_text=starts_text).allowed(vocabulary.size + 40, torch.device("cpu"))
            for token_id in range(vocabulary.size + 40):
                value = vocabulary.token_bytes(token_id) or b""
                value = value.removeprefix(b" ") if starts_text else value  # and a lone space leads nowhere
                fits = re.fullmatch(rb"[a-z]{1,3}|[a-z]{3}[0-9]", value)
                assert bool(mask[token_id]) == bool(fits), (token_id, value)
            narrow = start(starts_text=starts_text).allowed(300, torch.device("cpu"))
            assert torch.equal(narrow, mask[:300])


def test_masked_scores_fall_back_to_mains_own():
    allowed = torch.tensor([False, True, True, False])
    own = torch.tensor([9.0, 1.0, 2.0, 3.0])
    fused = torch.tensor([-0.1, -5.0, -6.0, -7.0])
    inf = torch.inf
    assert masked(fused, own, allowed).tolist() == [-inf, -5.0, -6.0, -inf]
    lost = torch.tensor([-0.1, -inf, -inf, -7.0])
    rounding = torch.tensor([-0.1, -101.0, -inf, -7.0])
    for scores in (lost, rounding):
        assert masked(scores, own, allowed).tolist() == [-inf, 1.0, 2.0, -inf]
    partly = torch.tensor([-0.1, -60.0, -inf, -7.0])
    assert masked(partly, own, allowed).tolist() == [-inf, -60.0, -inf, -inf]
    nothing = torch.tensor([9.0, -inf, -inf, 3.0])
    assert masked(lost, nothing, allowed).tolist() == [-inf, 0.0, 0.0, -inf]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_where_fusion_gives_nothing_to_what_is_allowed(load, monkeypatch, temperature):
    """Whatever it leaves over, main's own word is taken, and never a forbidden token."""
    with load("alpha", "beta") as ensemble:
        fuse = ensemble._engine.fusion.fuse

        def spoiled(*arguments):
            fused = fuse(*arguments)
            return torch.full_like(fused, -torch.inf).index_fill_(1, torch.tensor([40]), 0.0)

        monkeypatch.setattr(ensemble._engine.fusion, "fuse", spoiled)
        answer = ensemble.generate(PROMPT, json_schema=PERSON, max_new_tokens=150, temperature=temperature, seed=2)
    assert set(json.loads(answer.text)) == {"name", "age", "city"}


def test_other_members_keep_canonical_ids(load):
    """The mask is main's; what the others hear is tokenised as any text."""
    with load("alpha", "beta") as ensemble:
        row = ensemble._engine.decoder.start(PROMPT, SamplingParams(json_schema=PERSON, max_new_tokens=100))
        seen = 0
        while not row.ended:
            ensemble._engine.decoder.step([row])
            if not row.ended and not row.others_behind:
                text = row._vocabulary.join(row.token_ids).decode()
                assert row.member_sequences[1].ids[1:] == ensemble._engine.members[1].tokenizer.encode(PROMPT + text)
                seen += 1
    assert seen > 10


def test_logprobs_are_from_before_the_mask(pair):
    """They say what the ensemble thought, not what it was left."""
    answer = pair.generate(PROMPT, choices=["qqq"], max_new_tokens=10, logprobs=2)
    free = pair.generate(PROMPT, max_new_tokens=1, logprobs=2)
    assert answer.logprobs[0].top == free.logprobs[0].top
    assert answer.logprobs[0].logprob < free.logprobs[0].logprob < 0
    assert len(answer.logprobs) == len(answer.token_ids)


def test_stop_strings_do_not_cut_what_must_be_whole(pair):
    answer = pair.generate(PROMPT, json_schema=PERSON, max_new_tokens=150, stop=["}", '"'])
    assert set(json.loads(answer.text)) == {"name", "age", "city"}
    assert answer.warnings == [
        "The stop strings were not applied: an answer cut at one would not follow the json_schema."
    ]
    assert pair.generate(PROMPT, choices=["Oslo"], max_new_tokens=20, stop=["l"]).text == "Oslo"
    cut = pair.generate(PROMPT, choices=["Oslo"], max_new_tokens=20)
    assert not cut.warnings
    for constraint in ({"regex": "Oslo"}, {"grammar": 'start: "Oslo"'}):
        answer = pair.generate(PROMPT, max_new_tokens=20, stop=["l"], **constraint)
        assert (answer.text, answer.finish_reason, answer.warnings) == ("Os", "stop", [])


def test_what_main_cannot_spell_is_told(load):
    """A WordPiece vocabulary has no brace that does not begin a word."""
    with load("wordpiece", "alpha") as ensemble:
        with pytest.raises(SamplingError, match=r"No answer can follow .* no token that may come next"):
            ensemble.generate(PROMPT, json_schema=PERSON)
        assert ensemble.generate(PROMPT, regex=" the[{]?", ignore_eos=True).text == " the"
        dead = [ensemble.submit(PROMPT, regex=" the[{]x"), ensemble.submit(PROMPT, max_new_tokens=9, ignore_eos=True)]
        with pytest.raises(DecodingError, match="The regex cannot be followed further: the main member has no token"):
            dead[0].result()
        assert len(dead[1].result().token_ids) == 9
