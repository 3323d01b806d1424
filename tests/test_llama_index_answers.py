"""Answers of DeepenLLM in LlamaIndex on real members: the same in all eight ways, whole characters, one BOS."""

import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index_parts import EIGHT, QUESTION, USER, Counting, called, text_of
from scheduler_parts import hook

from deepen_core import Ensemble
from deepen_integrations.llama_index import DeepenLLM

pytestmark = pytest.mark.usefixtures("loop_of_llama_index")

STREAMS = [name for name in EIGHT if "stream" in name]


@pytest.fixture(params=["texts", "chats"])
def kind(request):
    return request.param


@pytest.fixture
def llm(kind, reading_ensembles):
    return DeepenLLM.from_ensemble(reading_ensembles[kind], max_new_tokens=8, ignore_eos=True)


def expected(llm, endpoint, **options):
    """What a call is to come to, asked of the engine."""
    if llm.metadata.is_chat_model:
        prompt = [{"role": "user", "content": QUESTION}]
    else:
        prompt = QUESTION if "complete" in endpoint else f"user: {QUESTION}\nassistant: "
    return llm.ensemble.generate(prompt, llm.sampling(options))


@pytest.mark.parametrize("endpoint", EIGHT)
@pytest.mark.parametrize("options", [{}, {"temperature": 1.5, "seed": 5}, {"max_tokens": 3}], ids=str)
def test_answers_are_the_engines(llm, endpoint, options):
    responses = called(llm, endpoint, **options)
    answer = expected(llm, endpoint, **options)
    assert text_of(responses[-1]) == answer.text
    if endpoint in STREAMS:
        assert "".join(response.delta for response in responses) == answer.text


@pytest.mark.parametrize("endpoint", STREAMS)
def test_text_grows_and_holds_no_half_characters(llm, endpoint):
    for word in ("你好，世界", "Où est la bibliothèque", "Привет, мир"):
        responses = called(llm, endpoint, choices=[word], max_tokens=40)
        assert text_of(responses[-1]) == word
        assert all("\ufffd" not in response.delta for response in responses)
        so_far = ""
        for response in responses:
            so_far += response.delta
            assert text_of(response) == so_far


@pytest.mark.parametrize("endpoint", STREAMS)
def test_no_part_of_a_stop_string_shows(llm, endpoint):
    word = "one two, three"
    for stop, text in ((["two"], "one "), ([", thr"], "one two"), (["hree", "wo,"], "one t"), (["three!"], word)):
        responses = called(llm, endpoint, regex=word, stop=stop, max_tokens=40)
        assert text_of(responses[-1]) == text
        assert all(text.startswith(text_of(response)) for response in responses)


@pytest.mark.parametrize("endpoint", EIGHT)
def test_an_empty_answer_is_one_response(llm, endpoint):
    responses = called(llm, endpoint, regex="one two", stop=["one"], max_tokens=40)
    assert [text_of(response) for response in responses] == [""]
    assert responses[0].raw["finish_reason"] == "stop"


@pytest.mark.parametrize("endpoint", EIGHT)
def test_the_last_response_tells_usage_and_reason(llm, kind, reading_folders, endpoint):
    *others, last = called(llm, endpoint)
    assert all(response.raw is None for response in others)
    assert last.raw["finish_reason"] == "length"
    answer = expected(llm, endpoint)
    prompt_tokens = answer.usage.prompt_tokens
    assert last.raw["usage"] == {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": 8,
        "total_tokens": prompt_tokens + 8,
    }
    if kind == "chats" or "complete" in endpoint:
        assert prompt_tokens == Counting(reading_folders[kind][0]).prompt(USER if kind == "chats" else QUESTION)
    stopped = called(llm, endpoint, regex="a{3}", max_tokens=20)[-1]
    assert stopped.raw["finish_reason"] == "stop"


@pytest.mark.parametrize("endpoint", EIGHT)
def test_a_logprob_for_each_token(llm, endpoint):
    responses = called(llm, endpoint, logprobs=3)
    last, logprobs = responses[-1], [token for response in responses for token in response.logprobs or ()]
    assert len(logprobs) == last.raw["usage"]["completion_tokens"] == 8
    for position in logprobs:
        assert 3 <= len(position) <= 4
        assert all(choice.logprob <= 0 for choice in position)
    assert (
        b"".join(bytes(position[0].bytes) for position in logprobs)
        .decode("utf-8", "replace")
        .startswith(text_of(last).rstrip("\ufffd"))
    )


def test_unformatted_is_a_users_message_and_formatted_is_verbatim(llm, kind):
    unformatted, formatted = llm.complete(QUESTION), llm.complete(QUESTION, formatted=True)
    verbatim = llm.ensemble.generate(QUESTION, llm.sampling({}))
    assert formatted.raw["usage"]["prompt_tokens"] == verbatim.usage.prompt_tokens
    assert formatted.text == verbatim.text
    if kind == "chats":
        chat = llm.chat(USER)
        assert unformatted.text == chat.message.content
        assert unformatted.raw.pop("timings").keys() == chat.raw.pop("timings").keys()
        assert unformatted.raw == chat.raw
        assert unformatted.raw["usage"]["prompt_tokens"] > verbatim.usage.prompt_tokens
    else:
        assert unformatted.text == formatted.text


@pytest.mark.parametrize("kind", ["texts", "chats"])
@pytest.mark.parametrize("endpoint", [*EIGHT, "formatted", "system"])
def test_each_member_starts_with_one_bos(reading_folders, kind, endpoint):
    with Ensemble.load(reading_folders[kind], progress=False) as ensemble:
        llm = DeepenLLM.from_ensemble(ensemble, max_new_tokens=2, ignore_eos=True)
        hooked, seen = [hook(ensemble, 0), hook(ensemble, 1)], [[], []]
        for member, prompts in zip(hooked, seen, strict=True):
            member.fail = lambda rows, prompts=prompts: prompts.extend(list(row.ids) for row in rows)
        if endpoint == "formatted":
            llm.complete(QUESTION, formatted=True)
        elif endpoint == "system":
            llm.chat([ChatMessage(role="system", content="Be brief."), *USER])
        else:
            called(llm, endpoint)
    for folder, prompts in zip(reading_folders[kind], seen, strict=True):
        bos = Counting(folder).tokenizer.bos_token_id
        assert prompts
        assert all(ids[0] == bos and ids.count(bos) == 1 for ids in prompts)


@pytest.mark.parametrize("endpoint", EIGHT)
def test_equal_seeds_give_equal_text(llm, endpoint):
    texts = [text_of(called(llm, endpoint, temperature=2.0, seed=seed)[-1]) for seed in (1, 1, 2, 3)]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


def test_a_call_within_a_stream(llm):
    whole, inner = llm.complete(QUESTION).text, llm.chat(USER).message.content
    pieces = []
    for response in llm.stream_complete(QUESTION):
        pieces.append(response.delta)
        assert llm.chat(USER).message.content == inner
    assert "".join(pieces) == whole
