"""The engine's errors as LangChain's: what its middleware and runnables do about each."""

import gc
import pickle
import weakref

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelFallbackMiddleware, ModelRetryMiddleware, SummarizationMiddleware
from langchain_core import exceptions
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, HumanMessage
from langchain_parts import WAYS, asked

from deepen_core import errors
from deepen_core.errors import DeepenError
from deepen_integrations.langchain import ChatDeepen, DeepenLLM
from deepen_integrations.langchain.error_kinds import (
    ModelAPIError,
    ModelError,
    ModelInvalidRequestError,
    ModelRateLimitError,
    ModelTimeoutError,
)
from deepen_integrations.langchain.errors import KINDS

KNOWN = [
    (errors.ContextWindowError, ContextOverflowError, False),
    (errors.PromptError, ModelInvalidRequestError, False),
    (errors.SamplingError, ModelInvalidRequestError, False),
    (errors.ChatTemplateError, ModelInvalidRequestError, False),
    (errors.MemberError, ModelAPIError, True),
    (errors.NonFiniteLogitsError, ModelError, False),
    (errors.DecodingError, ModelAPIError, True),
    (errors.TimedOutError, ModelTimeoutError, True),
    (errors.MemberTimeoutError, ModelTimeoutError, True),
    (errors.QueueFullError, ModelRateLimitError, True),
    (errors.ClosedError, ModelError, False),
]


def every_error(kind=DeepenError):
    yield kind
    for one in kind.__subclasses__():
        if one.__module__ == errors.__name__:
            yield from every_error(one)


def test_every_error_of_the_engine_is_one_of_langchains():
    """But for those that only readers of answers and traces raise, and those of handles and evaluations."""
    lacking = {errors.EvaluationError, errors.NotDoneError, errors.TraceError}
    others = {DeepenError, *lacking, *every_error(errors.UnusableAnswerError)}
    assert set(KINDS) == set(every_error()) - others


@pytest.mark.parametrize("kind", sorted({known for _, known, _ in KNOWN}, key=str))
def test_kinds_are_langchains_own_if_it_has_them(kind):
    assert getattr(exceptions, kind.__name__, kind) is kind
    assert issubclass(kind, exceptions.LangChainException)


@pytest.mark.parametrize("kind", KINDS)
def test_they_survive_pickling(kind):
    told = pickle.loads(pickle.dumps(KINDS[kind]("what happened")))
    assert (type(told), str(told)) == (KINDS[kind], "what happened")


@pytest.mark.parametrize(("kind", "known", "again"), KNOWN)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", [ChatDeepen, DeepenLLM])
async def test_both_models_raise_them_in_every_way(ensemble, make, way, kind, known, again):
    ensemble.has_chat_template, ensemble.failure = True, kind("what happened")
    with pytest.raises(kind, match=r"^what happened$") as told:
        await asked(make.from_ensemble(ensemble), way, "hi")
    assert isinstance(told.value, known)
    assert told.value.is_retryable is again
    assert told.value.__cause__ is ensemble.failure


# Before LangChain had kinds of errors, its middleware asked again whatever the error.
@pytest.mark.parametrize(
    ("kind", "again"), [(errors.SamplingError, 1 if hasattr(exceptions, "ModelError") else 3), (errors.MemberError, 3)]
)
def test_what_will_fail_again_is_asked_once(ensemble, kind, again):
    ensemble.has_chat_template, ensemble.failure = True, kind("what happened")
    retry = ModelRetryMiddleware(max_retries=2, initial_delay=0, jitter=False, on_failure="error")
    with pytest.raises(kind):
        create_agent(ChatDeepen.from_ensemble(ensemble), [], middleware=[retry]).invoke({"messages": [("human", "hi")]})
    assert len(ensemble.requests) == again


def test_a_conversation_that_is_too_long_is_summarised(terse):
    """Even where the whole of what is to be summarised is too long for that."""
    chat = ChatDeepen.from_ensemble(terse, max_tokens=8)
    keeps = {"trigger": ("messages", 4), "keep": ("messages", 1), "trim_tokens_to_summarize": None}
    dogs, cats = HumanMessage("dog " * 2200), HumanMessage("cat " * 2200)
    talk = [dogs, AIMessage("ok"), cats, AIMessage("ok"), HumanMessage("Hi.")]
    with pytest.raises(ContextOverflowError, match="shorten it by at least"):
        chat.invoke(talk)
    agent = create_agent(chat, [], middleware=[SummarizationMiddleware(chat, **keeps)])
    *_, summary, asked_for, answer = agent.invoke({"messages": talk})["messages"]
    assert summary.text.startswith("Here is a summary")
    assert asked_for.text == "Hi."
    assert answer.usage_metadata["output_tokens"] == 8


def test_time_that_runs_out_is_an_error_where_one_is_asked_for(pair):
    chat = ChatDeepen.from_ensemble(pair, max_tokens=8)
    slow = ChatDeepen.from_ensemble(pair, timeout=1e-6, on_timeout="raise")
    with pytest.raises(ModelTimeoutError, match=r"not complete after 1e-06 s: 0 of at most \d+ tokens were generated"):
        slow.invoke("hi")
    with pytest.raises(errors.TimedOutError):
        list(slow.stream("hi"))
    assert slow.with_fallbacks([chat]).invoke("hi").text == chat.invoke("hi").text
    fallback = ModelFallbackMiddleware(chat)
    told = create_agent(slow, [], middleware=[fallback]).invoke({"messages": [("human", "hi")]})["messages"][-1]
    assert told.text == chat.invoke("hi").text
    assert slow.invoke("hi", on_timeout="return").response_metadata["finish_reason"] == "timeout"


def test_a_batch_returns_them_in_place(ensemble):
    ensemble.failures["bad"] = errors.ContextWindowError("too long")
    found = DeepenLLM.from_ensemble(ensemble).batch(["hi", "bad"], return_exceptions=True)
    assert found[0] == ensemble.default
    assert isinstance(found[1], ContextOverflowError)


@pytest.mark.parametrize("make", [ChatDeepen, DeepenLLM])
def test_they_hold_no_models(ensemble, make):
    """A model that raised one is gone with its last reference, without a search for garbage."""
    ensemble.has_chat_template, ensemble.failure = True, errors.MemberError("what happened")
    model = make.from_ensemble(ensemble)
    gone = weakref.ref(model)
    gc.disable()
    try:
        with pytest.raises(errors.MemberError):
            model.invoke("hi")
        del model
        ensemble.failure = None
        assert gone() is None
    finally:
        gc.enable()
