"""A callback handler that remembers, counters of what reaches the engine, and the ways to ask."""

import threading
from contextlib import contextmanager
from functools import reduce
from operator import add

from langchain_core import __version__
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import message_chunk_to_message
from scheduler_parts import hook

from deepen_integrations.langchain import ChatDeepen, DeepenLLM

MODELS = (DeepenLLM, ChatDeepen)
CORE = tuple(map(int, __version__.split(".")[:3]))
"""The version of langchain-core, such as (1, 7, 2)."""
WAYS = ("invoke", "ainvoke", "stream", "astream")


def plain(model):
    """What a model writes of itself; `asdict` has been the name since langchain-core 1.4.2."""
    return model.asdict() if hasattr(model, "asdict") else model.dict()


async def text_of(model, way, prompt, config=None, **options):
    """What a model of either kind says."""
    if way == "invoke":
        return said(model.invoke(prompt, config, **options))
    if way == "ainvoke":
        return said(await model.ainvoke(prompt, config, **options))
    if way == "stream":
        return "".join(map(said, model.stream(prompt, config, **options)))
    assert way == "astream"
    return "".join([said(piece) async for piece in model.astream(prompt, config, **options)])


def said(answer):
    """The text of an answer or a piece of either kind of model."""
    return answer if isinstance(answer, str) else answer.text


async def asked(model, way, prompt, config=None, **options):
    """The answer of a chat model, or of one that is bound: a stream's pieces are added."""
    if way == "invoke":
        return model.invoke(prompt, config, **options)
    if way == "ainvoke":
        return await model.ainvoke(prompt, config, **options)
    if way == "stream":
        return summed(list(model.stream(prompt, config, **options)))
    assert way == "astream"
    return summed([chunk async for chunk in model.astream(prompt, config, **options)])


def summed(chunks):
    """The message that chunks come to when they are added, as frameworks do."""
    return message_chunk_to_message(reduce(add, chunks))


def check_the_first_piece(ensemble, model):
    """A stream says its first piece when few of its steps are taken."""
    member = hook(ensemble)
    member.permits = threading.Semaphore(4)
    stream = model.stream("The quick brown fox")
    assert said(next(stream))
    assert len(member.forwards) <= 4
    member.permits.release(10_000)
    assert sum(1 for _ in stream) > 50
    assert len(member.forwards) > 50


class Recorder(BaseCallbackHandler):
    """Remembers what LangChain tells.

    Attributes:
        fail_at: Raises a KeyError at the token of this number.
    """

    raise_error = True

    def __init__(self, fail_at=None):
        self.starts, self.prompts, self.tokens, self.ends, self.errors = [], [], [], [], []
        self.fail_at = fail_at
        self.after_the_end = 0
        self.partial = []

    def on_llm_start(self, serialized, prompts, **kwargs):
        self.starts.append({**kwargs, "serialized": serialized})
        self.prompts += prompts

    def on_llm_new_token(self, token, *, chunk=None, **kwargs):
        self.tokens.append((token, chunk))
        self.after_the_end += bool(self.ends or self.errors)
        if len(self.tokens) - 1 == self.fail_at:
            raise KeyError(token)

    def on_llm_end(self, response, **kwargs):
        self.ends.append(response)

    def on_llm_error(self, error, *, response=None, **kwargs):
        self.errors.append(error)
        self.partial.append(response)


@contextmanager
def submissions(ensemble):
    """How many sequences each submission to the scheduler has."""
    scheduler, sizes = ensemble._worker, []
    submit = scheduler.submit

    def spy(sequences, *more):
        sizes.append(len(sequences))
        return submit(sequences, *more)

    scheduler.submit = spy
    try:
        yield sizes
    finally:
        del scheduler.submit
