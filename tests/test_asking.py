"""Prompts that fail beside others: `generate(..., return_exceptions=True)`, from threads and event loops."""

import asyncio

import pytest
from scheduler_parts import FAILING, OPTIONS, PROMPT, Serving, fails_at, hook, sequences_held

from deepen_core.errors import (
    ChatTemplateError,
    ClosedError,
    ConfigurationError,
    ContextWindowError,
    MemberError,
    PromptError,
    SamplingError,
)

TOO_LONG = "word " * 500
HALF = "\ud800"


def ask(ensemble, way, prompt, **options):
    if way == "generate":
        return ensemble.generate(prompt, **{**OPTIONS, **options})
    return asyncio.run(ensemble.agenerate(prompt, **{**OPTIONS, **options}))


@pytest.mark.parametrize("way", ["generate", "agenerate"])
class TestErrorsInPlace(Serving):
    def test_only_the_prompts_that_fail_are_errors(self, ensemble, way):
        whole = ensemble.generate(PROMPT, **OPTIONS)
        got = ask(ensemble, way, [TOO_LONG, PROMPT, HALF, PROMPT], return_exceptions=True)
        assert [type(one) for one in got] == [ContextWindowError, type(whole), PromptError, type(whole)]
        assert got[1].token_ids == got[3].token_ids == whole.token_ids

    def test_without_it_the_first_error_is_raised_before_anything_runs(self, ensemble, way):
        member = hook(ensemble)
        with pytest.raises(ContextWindowError):
            ask(ensemble, way, [PROMPT, TOO_LONG])
        assert not member.forwards
        assert not member.prefills

    def test_the_readable_prompts_go_in_by_one_submission(self, ensemble, way, monkeypatch):
        submit, sizes = ensemble._worker.submit, []

        def spy(sequences, *more):
            sizes.append(len(sequences))
            return submit(sequences, *more)

        monkeypatch.setattr(ensemble._worker, "submit", spy)
        ask(ensemble, way, [PROMPT, TOO_LONG, PROMPT], return_exceptions=True)
        assert sizes == [2]

    def test_a_member_that_fails_in_one_row_leaves_the_others(self, ensemble, way):
        error = MemberError("no room")
        hook(ensemble, 1).fail = fails_at(ensemble._engine.members[1], FAILING, error, tokens=2)
        first, failed, last = ask(ensemble, way, [PROMPT, FAILING, PROMPT], return_exceptions=True)
        assert isinstance(failed, MemberError)
        assert first.token_ids == last.token_ids
        assert len(first.token_ids) == OPTIONS["max_new_tokens"]

    def test_a_single_prompt_comes_back_as_its_error(self, ensemble, way):
        assert isinstance(ask(ensemble, way, TOO_LONG, return_exceptions=True), ContextWindowError)
        assert ask(ensemble, way, PROMPT, return_exceptions=True).text == ask(ensemble, way, PROMPT).text

    def test_a_conversation_that_is_wrong_fails_alone(self, ensemble, way):
        good = [{"role": "user", "content": "hi"}]
        got = ask(
            ensemble,
            way,
            [good, [], [{"role": "user", "content": HALF}], [{"role": "user"}, 3]],
            return_exceptions=True,
        )
        assert [isinstance(one, PromptError) for one in got] == [False, True, True, True]

    def test_none_and_all_may_fail(self, ensemble, way):
        assert ask(ensemble, way, [], return_exceptions=True) == []
        got = ask(ensemble, way, [TOO_LONG, HALF], return_exceptions=True)
        assert [type(one) for one in got] == [ContextWindowError, PromptError]

    def test_what_is_not_a_prompts_fault_is_raised(self, ensemble, way):
        with pytest.raises(SamplingError, match="temprature"):
            ask(ensemble, way, [PROMPT], return_exceptions=True, temprature=1)
        ensemble.close()
        with pytest.raises(ClosedError):
            ask(ensemble, way, [PROMPT], return_exceptions=True)


def test_a_member_without_a_template_refuses_conversations_only(load):
    with load("alpha", "gamma") as ensemble:
        said, refused = ensemble.generate(
            [PROMPT, [{"role": "user", "content": "hi"}]], return_exceptions=True, **OPTIONS
        )
    assert said.text
    assert isinstance(refused, ChatTemplateError)


class TestInterruptions(Serving):
    def test_ctrl_c_in_a_submission_cancels_what_it_has_begun(self, ensemble, monkeypatch):
        """The error is kept, as a shell does, and with it everything that the call had."""
        inbox = ensemble._worker._inbox

        class Interrupted:
            count = 0

            def __getattr__(self, name):
                return getattr(inbox, name)

            def put(self, item):
                inbox.put(item)
                self.count += 1
                if self.count == 2:
                    raise KeyboardInterrupt

        ensemble.generate(PROMPT, max_new_tokens=1)
        monkeypatch.setattr(ensemble._worker, "_inbox", Interrupted())
        with pytest.raises(KeyboardInterrupt) as kept:
            ensemble.generate([PROMPT] * 3, **{**OPTIONS, "max_new_tokens": 100})
        monkeypatch.undo()
        assert kept.value.__traceback__
        handle = ensemble.submit(PROMPT, max_new_tokens=5, ignore_eos=True)
        assert handle.result(timeout=30).finish_reason == "length"
        assert sequences_held(ensemble) == 0


@pytest.mark.parametrize("way", ["agenerate", "asubmit", "astream"])
def test_outside_of_asyncio_async_methods_say_so(pair, way):
    """As in trio, where a coroutine is driven without a loop of asyncio."""
    asked = getattr(pair, way)(PROMPT, **OPTIONS)
    with pytest.raises(ConfigurationError, match=r"need asyncio.*trio\.to_thread\.run_sync"):
        (asked if way != "astream" else anext(asked)).send(None)
