"""Fixtures for the adapters: an ensemble made of rules instead of models, and the real demo."""

import asyncio
import contextlib
import os
import re
from pathlib import Path
from types import SimpleNamespace

import amounts  # noqa: F401 (chooses how many examples hypothesis tries)
import pytest
from programs import Programs

from deepen_core.chat.thoughts import Thoughts
from deepen_core.config import resolve_sampling
from deepen_core.demo import member_paths
from deepen_core.errors import DeepenError
from deepen_core.results import Chunk, Generation, TokenLogprob, Usage


def pytest_collection_modifyitems(items):
    """Tests for which members have to learn something first take long."""
    for item in items:
        if item.originalname in getattr(item.module, "NEED_MEANING", ()):
            item.add_marker(pytest.mark.slow)


pytest_plugins = [
    "fixtures_adapters",
    "fixtures_once",
    "fixtures_engine",
    "fixtures_llama_index",
    "fixtures_cli",
    "fixtures_folders",
    "fixtures_replies",
    "fixtures_serve",
    "fixtures_wheel",
]


class RuleEnsemble:
    """Answers by rules, a word a token, and remembers what it was asked.

    Attributes:
        answers: Prompt to answer; `default` for any other.
        failure: Raised in place of an answer, in a stream after the first piece.
        failures: Prompt to the error that it alone comes to, in a list.
        requests: The prompt and the parameters of every call of generate or stream.
        open_streams: Streams that were begun and not ended.
    """

    main_name = "alpha"
    context_window = 512
    has_chat_template = False
    thinking = "never"

    def thoughts(self, _params=None):
        return Thoughts(self.thinking)

    def __init__(self):
        self.answers = {}
        self.default = " The answer is Lisbon."
        self.failure = None
        self.failures = {}
        self.requests = []
        self.open_streams = 0
        self.closed = False
        self.info = SimpleNamespace(members=[SimpleNamespace(name="alpha"), SimpleNamespace(name="beta")])

    @property
    def budget(self):
        return RuleBudget(self.context_window, self.has_chat_template)

    @property
    def planning_window(self):
        return self.context_window

    def generate(self, prompt, params=None, *, return_exceptions=False, **options):
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], dict)):
            params = resolve_sampling(params, options)
            self.requests.append((prompt, params))
            if self.failure:
                raise self.failure
            return self._answer(prompt, params)
        each = params if isinstance(params, list) else [params] * len(prompt)
        each = [resolve_sampling(one, options) for one in each]
        if prompt and isinstance(prompt[0], list):  # conversations
            self.requests += zip(prompt, each, strict=True)
        else:
            self.requests.append((prompt, each[0] if each else None))
        if self.failure:
            raise self.failure
        outcomes = [self.failures.get(str(p)) or self._answer(p, o) for p, o in zip(prompt, each, strict=True)]
        failed = [outcome for outcome in outcomes if isinstance(outcome, DeepenError)]
        if failed and not return_exceptions:
            raise failed[0]
        return outcomes

    async def agenerate(self, prompt, params=None, **options):
        return self.generate(prompt, params, **options)

    def stream(self, prompt, params=None, **options):
        params = resolve_sampling(params, options)
        self.requests.append((prompt, params))
        return self._pieces(prompt, params)

    async def astream(self, prompt, params=None, **options):
        with contextlib.closing(self.stream(prompt, params, **options)) as pieces:
            for piece in pieces:
                await asyncio.sleep(0)
                yield piece

    def _pieces(self, prompt, params):
        self.open_streams += 1
        answer = self._answer(prompt, params)
        try:
            for word in words(answer.text):
                yield Chunk(word)
                if self.failure:
                    raise self.failure
            yield Chunk("", finish_reason=answer.finish_reason, generation=answer)
        finally:
            self.open_streams -= 1

    def _answer(self, prompt, params):
        asked = prompt if isinstance(prompt, str) else "".join(prompt[-1]["content"])
        whole = self.answers.get(asked, self.default)
        ends = [whole.index(stop) for stop in params.stop if stop in whole]
        most = params.max_new_tokens or 256
        text = "".join(words(whole[: min(ends, default=len(whole))])[:most])
        logprobs = None
        if params.logprobs is not None:
            other = (9, b" Oslo", -2.0)
            logprobs = [
                TokenLogprob(i, w.encode(), -0.5, ((i, w.encode(), -0.5), other)[: params.logprobs])
                for i, w in enumerate(words(text))
            ]
        return Generation(
            text=text,
            token_ids=list(range(len(words(text)))),
            finish_reason="stop" if len(words(text)) < most else "length",
            usage=Usage(len(words(asked)), len(words(text))),
            logprobs=logprobs,
        )

    def tokenize(self, text):
        return [len(word) for word in words(text)]

    def count_tokens(self, prompt):
        return self.budget.count(prompt)

    def close(self):
        self.closed = True


class RuleBudget:
    """What a rule ensemble says of its window; it holds no ensemble."""

    def __init__(self, window, has_chat_template):
        self.context_window = self.main_window = self.planning_window = window
        self.has_chat_template = has_chat_template

    def count(self, prompt, _params=None):
        return len(
            words(prompt if isinstance(prompt, str) else " ".join(f"{m['role']} {m['content']}" for m in prompt))
        )


def words(text):
    return re.findall(r"\s*\S+", text)


@pytest.fixture
def ensemble():
    return RuleEnsemble()


@pytest.fixture(scope="session")
def needs_demo():
    """Skips where the demo's models are not there."""
    missing = [str(path) for path in member_paths() if not (path / "model.safetensors").is_file()]
    if missing:
        pytest.skip(f"the demo's models are missing: {', '.join(missing)}")


@pytest.fixture
def loads(monkeypatch):
    """Loading by adapters, with the options of every load; the ensembles are rule ensembles."""
    from deepen_integrations import shared_ensembles

    seen = []

    def load(options, progress, chat):
        ensemble = RuleEnsemble()
        seen.append(SimpleNamespace(options=options, progress=progress, chat=chat, ensemble=ensemble))
        return ensemble

    monkeypatch.setattr(shared_ensembles, "_load", load)
    return seen


@pytest.fixture(scope="session")
def shared():
    """The folder beside the project with real models and recorded cases; tests that need it are skipped without."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: it holds real models, tokenizers and recorded cases")
    return folder


@pytest.fixture(scope="session")
def programs(tmp_path_factory):
    """Runs programs in processes of their own; skips where there are no forks."""
    if not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    with contextlib.closing(Programs(tmp_path_factory.mktemp("programs"))) as programs:
        yield programs


@pytest.fixture
def loop_of_llama_index():
    """LlamaIndex counts tokens on the thread's event loop and leaves open the one that it makes."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()
