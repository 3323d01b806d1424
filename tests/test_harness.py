"""An ensemble as a model of lm-evaluation-harness: log-likelihoods, documents, answers, conversations."""

import random

import pytest
import tiny
from amounts import examples
from harness_parts import CHAT, FOX, PAIRS, requests
from hypothesis import given, settings
from hypothesis import strategies as st

from deepen_core import Ensemble
from deepen_core.chat.messages import TextStart
from deepen_core.config import MemberConfig
from deepen_core.errors import (
    ChatTemplateError,
    ContextWindowError,
    MemberError,
    PromptError,
    SamplingError,
)
from deepen_integrations.harness import DeepenHarnessLM
from deepen_integrations.harness.answering import question
from deepen_integrations.harness.conversation import MARK, as_text, prompt_of, split_pair
from deepen_integrations.harness.fitting import rolling_windows

WORDS = "".join(random.Random(0).choices([" the", " dog", " fox", " a", "\n"], k=350))  # each a token


@pytest.fixture(scope="module")
def model(pair):
    return DeepenHarnessLM(pair)


@pytest.fixture(scope="module")
def plain_folder(made_once):
    """A byte-level model that puts nothing before a text, as GPT-2 does, and likes to say words."""

    def make(root):
        tokenizer = tiny.byte_level()
        tokenizer.backend_tokenizer.post_processor = None
        tiny.save_fond(root, tokenizer, ["Ġfox", "Ġdog", "Ġthe", "Ġa"], window=64)

    return made_once("plain", make)


@pytest.fixture(scope="module")
def own():
    """The harness's own model for transformers."""
    pytest.importorskip("accelerate", reason="the harness's own model needs accelerate")
    from lm_eval.models.huggingface import HFLM

    def load(folder, window, **options):
        # The harness counts the ids before the last one.
        return HFLM(str(folder), device="cpu", dtype="float32", batch_size=4, max_length=window - 1, **options)

    return load


@pytest.fixture(scope="module")
def both_mains(pair, load):
    return [pair, load("alpha", "beta", main=1)]


class TestAsTheHarnessesOwnModel:
    """A single member has the values of the harness's own model."""

    @pytest.mark.parametrize("name", ["alpha", "beta", "no_bos"])
    def test_loglikelihood(self, own, load, folders, name):
        with load(name) as ensemble:
            likely = ensemble.generate(FOX, max_new_tokens=6, ignore_eos=True).text
            asked = requests(*PAIRS, (FOX, likely), (FOX, likely + "!"))
            found = DeepenHarnessLM(ensemble).loglikelihood(asked, disable_tqdm=True)
        expected = own(folders[name], 256).loglikelihood(asked, disable_tqdm=True)
        assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in expected], abs=1e-4)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]

    def test_greedy_texts(self, own, plain_folder):
        """Both answers occur."""
        with Ensemble.load([plain_folder], device="cpu", progress=False) as ensemble:
            texts = [ensemble.generate(FOX, max_new_tokens=n, ignore_eos=True).text for n in range(1, 9)]
            asked = requests(*((FOX, text) for text in texts), *((FOX, text + "s") for text in texts))
            found = DeepenHarnessLM(ensemble).loglikelihood(asked, disable_tqdm=True)
        assert found == [
            (pytest.approx(nats, abs=1e-4), greedy)
            for nats, greedy in own(plain_folder, 64).loglikelihood(asked, disable_tqdm=True)
        ]
        assert {greedy for _, greedy in found} == {True, False}

    @pytest.mark.parametrize("text", ["", "Hello", "你好", tiny.CORPUS[0], WORDS])
    def test_documents(self, own, plain_folder, text):
        """The longest has six windows, whose texts have the tokens that they have in the document."""
        with Ensemble.load([plain_folder], device="cpu", progress=False) as ensemble:
            found = DeepenHarnessLM(ensemble).loglikelihood_rolling(requests((text,)), disable_tqdm=True)
            assert len(rolling_windows(ensemble, text)) == (6 if text == WORDS else bool(text))
        expected = own(plain_folder, 64).loglikelihood_rolling(requests((text,)), disable_tqdm=True)
        assert found == pytest.approx(expected, abs=1e-4, rel=1e-6)

    @pytest.mark.parametrize("name", ["alpha", "beta", "no_bos"])
    def test_a_document_in_one_window(self, own, load, folders, name):
        """The harness counts a BOS that the tokenizer puts before a text as a part of it, unless told not to add it."""
        text = tiny.CORPUS[0]
        with load(name) as ensemble:
            found = DeepenHarnessLM(ensemble).loglikelihood_rolling(requests((text,)), disable_tqdm=True)
        expected = own(folders[name], 256, add_bos_token=False).loglikelihood_rolling(
            requests((text,)), disable_tqdm=True
        )
        assert found == pytest.approx(expected, abs=1e-4)

    def test_answers(self, own, load, folders):
        asked = requests(
            (FOX, {"until": ["n n", "."], "max_gen_toks": 20}),
            ("def mean(", {"until": ["\n\n"], "max_gen_toks": 8}),
            ("Once upon a", {"until": "V", "max_gen_toks": 12}),
        )
        with load("alpha") as ensemble:
            found = DeepenHarnessLM(ensemble).generate_until(asked, disable_tqdm=True)
        assert found == own(folders["alpha"], 256).generate_until(asked, disable_tqdm=True)
        assert len(set(map(len, found))) > 1


class TestLogLikelihood:
    def test_is_the_ensembles_score(self, model, pair):
        found = model.loglikelihood(requests(*PAIRS), disable_tqdm=True)
        for (context, continuation), (nats, _) in zip(PAIRS, found, strict=True):
            kept = context.rstrip()
            assert nats == pytest.approx(pair.score(kept, context[len(kept) :] + continuation).total, abs=1e-4)

    def test_what_greedy_decoding_says_is_greedy(self, plain_folder, folders):
        """And nothing else: not the answer with its last word changed, nor that of main alone."""
        with Ensemble.load([plain_folder, folders["beta"]], device="cpu", progress=False) as ensemble:
            answer = ensemble.generate(FOX, max_new_tokens=4, ignore_eos=True)
            assert ensemble.score(FOX, answer.text).token_ids == answer.token_ids
            words = answer.text.rsplit(" ", 1)[0] + " girl"
            asked = requests((FOX, answer.text), (FOX, words), ("", " girl"), ("", " girl" * 3))
            found = DeepenHarnessLM(ensemble).loglikelihood(asked, disable_tqdm=True)
        assert [greedy for _, greedy in found] == [True, False, False, False]

    def test_an_order_changes_nothing(self, model):
        shuffled = random.Random(3).sample(range(len(PAIRS)), len(PAIRS))
        found = model.loglikelihood(requests(*PAIRS), disable_tqdm=True)
        again = model.loglikelihood(requests(*(PAIRS[n] for n in shuffled)), disable_tqdm=True)
        for (nats, greedy), number in zip(again, shuffled, strict=True):
            assert found[number] == (pytest.approx(nats, abs=1e-4), greedy)

    def test_after_nothing_without_bos(self, load):
        """A member without BOS starts after EOS; where all have BOS, an empty text starts there."""
        with load("alpha", "no_bos") as ensemble:
            [(nats, _)] = DeepenHarnessLM(ensemble).loglikelihood(requests(("", "The dog")), disable_tqdm=True)
            assert nats == pytest.approx(ensemble.score(TextStart(), "The dog").total)
            with pytest.raises(PromptError, match="'no_bos' has no BOS token"):
                ensemble.score("", "The dog")

    def test_a_context_that_is_too_long_loses_its_beginning(self, model, pair, caplog):
        """What is kept takes nearly all of the window that is filled first."""
        long = " ".join(tiny.CORPUS)
        [(nats, _)] = model.loglikelihood(requests((long, " jumps over")), disable_tqdm=True)
        [record] = [r for r in caplog.records if "too long" in r.message]
        kept, whole = record.args
        assert whole == len(long)
        assert 0.9 < pair.budget.share(long[-kept:], " jumps over") <= 1
        assert nats == pytest.approx(pair.score(long[-kept:], " jumps over").total, abs=1e-4)

    def test_a_continuation_that_is_too_long(self, model):
        with pytest.raises(ContextWindowError, match=r"Prompt and continuation have \d+ tokens"):
            model.loglikelihood(requests((FOX, " dog" * 300)), disable_tqdm=True)


class TestDocuments:
    def test_of_two_members(self, model, pair):
        """Windows are main's, but for a text of which the other member has more tokens."""
        for text in (" ".join(tiny.CORPUS), "猫" * 100, tiny.CORPUS[0]):
            [nats] = model.loglikelihood_rolling(requests((text,)), disable_tqdm=True)
            windows = rolling_windows(pair, text)
            assert "".join(piece for _, piece in windows) == text
            assert nats == pytest.approx(sum(pair.score(*window).total for window in windows), abs=1e-3)

    def test_whose_beginnings_need_more_room_than_they_do(self, load, monkeypatch):
        """Beta has one token more for " nuevo" than for " nuevo.": the document is cut where both fit."""
        text = FOX + " nuevo."
        with load("alpha", "beta") as ensemble:
            beta = ensemble._engine.members[1]
            expected = ensemble.score("", text).total
            whole = 1 + len(beta.tokenizer.encode(text))
            monkeypatch.setattr(beta, "context_window", whole)
            monkeypatch.setattr(
                ensemble.budget, "_windows", [(m.tokenizer, m.context_window) for m in ensemble._engine.members]
            )
            [nats] = DeepenHarnessLM(ensemble).loglikelihood_rolling(requests((text,)), disable_tqdm=True)
            assert nats != pytest.approx(expected, abs=1e-4)
            windows = rolling_windows(ensemble, text, 1 - 8 / whole)
            assert nats == pytest.approx(sum(ensemble.score(*window).total for window in windows), abs=1e-4)
            assert len(windows) > 1

    @given(text=st.text("thedogn's \n你🙂", max_size=900), main=st.sampled_from([0, 1]))
    @settings(max_examples=examples(30), deadline=None)
    def test_windows_are_a_document(self, both_mains, text, main):
        """Every character is in one piece, after the text before it, and everything fits."""
        ensemble = both_mains[main]
        windows = rolling_windows(ensemble, text)
        assert "".join(piece for _, piece in windows) == text
        place = 0
        for context, piece in windows:
            assert text[:place].endswith(context)
            assert bool(context) == bool(place)
            assert piece
            assert ensemble.budget.share(context, piece) <= 1
            place += len(piece)


class TestAnswers:
    def test_are_the_ensembles(self, model, pair):
        asked = [(FOX, {"until": ["x"], "max_gen_toks": 9}), ("Once", {"until": [], "max_new_tokens": 4})]
        found = model.generate_until(requests(*asked), disable_tqdm=True)
        assert found == [
            pair.generate(FOX, max_new_tokens=9, stop=["x"]).text,
            pair.generate("Once", max_new_tokens=4).text,
        ]

    def test_sampled_answers_differ_and_repeat(self, model):
        options = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.5}
        found = model.generate_until(requests(*[(FOX, options)] * 4), disable_tqdm=True)
        assert len(set(found)) > 1
        assert model.generate_until(requests(*[(FOX, options)] * 4), disable_tqdm=True) == found

    def test_no_temperature_is_1_where_answers_are_sampled(self, model, pair):
        found = model.generate_until(requests((FOX, {"do_sample": True, "max_gen_toks": 8})), disable_tqdm=True)
        assert found == [pair.generate(FOX, max_new_tokens=8, temperature=1.0, seed=0).text]

    @pytest.mark.parametrize(
        ("options", "message"), [({"num_beams": 4}, "num_beams"), ({"top_p": 3.0}, "top_p"), ({"typo": 1}, "typo")]
    )
    def test_options_that_cannot_be_followed(self, model, options, message):
        with pytest.raises(SamplingError, match=message):
            model.generate_until(requests((FOX, options)), disable_tqdm=True)

    def test_if_one_fails_the_others_end(self, load, monkeypatch):
        long, options = "a " * 60, {"until": [], "max_gen_toks": 150, "ignore_eos": True}
        with load("alpha") as ensemble:
            member, submit, handles = ensemble._engine.members[0], ensemble.submit, []
            run = member.next_logits

            def failing(sequences):
                if any(sequence.start > 60 for sequence in sequences):
                    raise RuntimeError("no answer today")
                return run(sequences)

            def noted(*args):
                handles.append(submit(*args))
                return handles[-1]

            monkeypatch.setattr(member, "next_logits", failing)
            monkeypatch.setattr(ensemble, "submit", noted)
            asked = [(long, {**options, "max_gen_toks": 3}), *[(f"b{n}", options) for n in range(4)]]
            with pytest.raises(MemberError, match="no answer today"):
                DeepenHarnessLM(ensemble).generate_until(requests(*asked), disable_tqdm=True)
            assert [handle.result(60).finish_reason for handle in handles[1:]] == ["cancelled"] * 4

    def test_options_without_effect(self, model, pair):
        options = {"num_beams": 1, "max_gen_toks": 3, "until": [""]}
        found = model.generate_until(requests((FOX, options)), disable_tqdm=True)
        assert found == [pair.generate(FOX, max_new_tokens=3).text]

    def test_room_for_the_answer(self, model, pair, caplog):
        """As in the harness, the context loses its beginning; but never more than half of the window."""
        long = " ".join(tiny.CORPUS)
        for most, share in ((64, 0.75), (4000, 0.5)):
            caplog.clear()
            [found] = model.generate_until(requests((long, {"max_gen_toks": most, "until": [" n"]})), disable_tqdm=True)
            [kept] = [r.args[0] for r in caplog.records if "too long" in r.message]
            assert share - 0.1 < pair.budget.share(long[-kept:]) <= share
            assert found == pair.generate(long[-kept:], max_new_tokens=most, stop=[" n"]).text


class TestConversations:
    def test_each_member_reads_them_by_its_own_template(self, model, pair):
        context = model.apply_chat_template(CHAT)
        assert model.generate_until(requests((context, {"max_gen_toks": 8})), disable_tqdm=True) == [
            pair.generate(CHAT, max_new_tokens=8).text
        ]
        [(nats, _)] = model.loglikelihood(requests((context, "By the sea")), disable_tqdm=True)
        assert nats == pytest.approx(pair.score(CHAT, "By the sea").total, abs=1e-4)

    def test_the_beginning_of_an_answer(self, model, pair):
        begun = [*CHAT, {"role": "assistant", "content": "It is"}]
        context = model.apply_chat_template(begun, add_generation_prompt=False)
        prompt = [*CHAT, {"role": "assistant", "content": "It is", "prefix": True}]
        assert prompt_of(context) == prompt
        found = model.loglikelihood(requests((context, " here"), (context + " ", "here")), disable_tqdm=True)
        expected = pair.score(prompt, " here").total
        assert [nats for nats, _ in found] == pytest.approx([expected] * 2, abs=1e-4)

    @given(
        messages=st.lists(
            st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": st.text()}),
            min_size=1,
        ),
        rest=st.text(),
    )
    def test_are_read_back(self, messages, rest):
        """Whatever the messages say, and with text that a task puts after them."""
        begun = [{"role": "assistant", "content": rest, "prefix": True}] if rest else []
        assert prompt_of(as_text(messages, begins_answer=False) + rest) == [*messages, *begun]
        if messages[-1]["role"] == "assistant":
            content = messages[-1]["content"] + rest
            assert prompt_of(as_text(messages, begins_answer=True) + rest) == [
                *messages[:-1],
                {"role": "assistant", "content": content, "prefix": True},
            ]

    def test_white_space_that_begins_an_answer_is_scored(self):
        begun = as_text([*CHAT, {"role": "assistant", "content": " "}], begins_answer=True)
        assert split_pair(begun, "a") == (CHAT, " a")
        assert split_pair("x \n", "a") == ("x", " \na")
        assert split_pair(as_text(CHAT, begins_answer=False), " a") == (CHAT, " a")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("x" + MARK + "[]", "puts 'x' before a conversation"),
            (MARK + "[{", "has changed a conversation"),
            (MARK + "{} x", "before {}, which is not a list"),
            (MARK + "[]", "The conversation is empty"),
            (MARK + "[1] x", "Message 0 is 1"),
            (MARK + '[{"role": "assistant", "prefix": true}] x', "begins the answer with None, which is not a text"),
        ],
    )
    def test_that_a_task_has_changed(self, model, text, message):
        with pytest.raises(PromptError, match=message):
            model.generate_until(requests((text, {})), disable_tqdm=True)
        with pytest.raises(PromptError, match=message):
            model.loglikelihood(requests((text, "x")), disable_tqdm=True)

    def test_an_answer_that_a_user_begins(self, model):
        with pytest.raises(PromptError, match=r"last of 2 messages is to begin the answer, and its role is 'user'"):
            model.apply_chat_template(CHAT, add_generation_prompt=False)

    def test_that_are_too_long_lose_their_first_turns(self, model, pair, caplog):
        turns = [{"role": role, "content": tiny.CORPUS[n]} for n in range(6) for role in ("user", "assistant")]
        context = model.apply_chat_template([CHAT[0], *turns, CHAT[1]])
        [(nats, _)] = model.loglikelihood(requests((context, "By the sea")), disable_tqdm=True)
        assert "too long" in caplog.text
        kept = [[CHAT[0], *turns[n:], CHAT[1]] for n in range(0, len(turns) + 1, 2)]
        fitting = next(messages for messages in kept if pair.budget.share(messages, "By the sea") <= 1 - 8 / 256)
        assert nats == pytest.approx(pair.score(fitting, "By the sea").total, abs=1e-4)

    def test_without_a_template(self, load):
        with load("alpha", "gamma") as ensemble, pytest.raises(ChatTemplateError, match="'gamma' has no chat template"):
            DeepenHarnessLM(ensemble).apply_chat_template(CHAT)

    def test_what_the_harness_records(self, model):
        assert model.chat_template(False) is None
        assert "alpha, beta" in model.chat_template(True)
        assert model.tokenizer_name


@pytest.fixture(scope="module")
def thinker(plain_folder):
    """An ensemble of one whose template lets it think before it answers."""
    template = tiny.CHAT_TEMPLATE.replace("assistant\n", "assistant\n<think>\n") + "{# </think> #}"
    member = MemberConfig(model=str(plain_folder), chat_template=template)
    with Ensemble.load([member], device="cpu", progress=False) as ensemble:
        yield ensemble


class TestThoughts:
    def test_are_left_out_and_may_hold_what_ends_an_answer(self, thinker):
        context = DeepenHarnessLM(thinker).apply_chat_template(CHAT[1:])
        asked = question(thinker, context, {"until": ["\n", " dog"]}, max_gen_toks=9, seed=0)
        assert asked.params.stop == ()
        assert asked.answer("It may\nbe a dog.</think>\n\nIn Lisbon.\nNo dog") == "In Lisbon."
        assert asked.answer("It may\nbe") == "It may"
        thought = thinker.generate(CHAT[1:], max_new_tokens=9).text
        assert " dog" in thought
        found = DeepenHarnessLM(thinker, max_gen_toks=9).generate_until(requests((context, {"until": [" dog"]})))
        assert found == [thought.split(" dog")[0].lstrip()]

    def test_do_not_follow_a_text(self, thinker):
        asked = question(thinker, FOX, {"until": ["\n"]}, max_gen_toks=9, seed=0)
        assert asked.params.stop == ("\n",)
        assert asked.answer("a</think>b\n") == "a</think>b"
