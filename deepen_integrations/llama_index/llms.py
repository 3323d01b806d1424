"""An ensemble as a LlamaIndex model."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import aclosing, closing
from typing import TYPE_CHECKING, Any, TypeVar

from llama_index.core.base.llms.generic_utils import messages_to_prompt
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    LogProb,
    MessageRole,
    TextBlock,
)
from llama_index.core.constants import DEFAULT_CONTEXT_WINDOW
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.llm import default_completion_to_prompt
from pydantic import Field

from deepen_core.config import SamplingParams
from deepen_core.errors import PromptError
from deepen_core.results import Chunk, Generation
from deepen_integrations.adapter import report
from deepen_integrations.llama_index.agents import ReActModel
from deepen_integrations.llama_index.structured import StructuredPrediction

if TYPE_CHECKING:
    from deepen_core import Ensemble

Response = TypeVar("Response", CompletionResponse, ChatResponse)

_Prompt = str | list[dict[str, str]]
_Form = Callable[[str, str | None, dict[str, Any] | None], Response]
"""Makes a response of the text so far, its newest piece, and what is told at the end."""

_ROLES = {
    MessageRole.DEVELOPER: "system",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.FUNCTION: "tool",
}
"""Roles of LlamaIndex that chat templates call otherwise."""


class DeepenLLM(StructuredPrediction, ReActModel):
    r"""Several local language models with different tokenizers, answering as one.

    Install `deepen-integrations[llama-index]`. No server and no key are needed.

    Options are fields. Those that say how to answer may be given to a call by keyword too, and then replace
    the field's value; `max_tokens` is another name of `max_new_tokens`.

    `structured_predict`, `as_structured_llm` and `output_cls` of query engines give valid objects whatever the models
    say, with the extra `structured`. For a `ReActAgent` give `llm.for_react()`. `configure_settings(llm)` makes it the
    default of everything in LlamaIndex.

    Constructing loads nothing. The first call loads the models, once per process for equal `models`, `main`,
    `weights`, `fusion`, `device`, `dtype` and `max_batch_size`.

    Conversations go to each member through its own chat template. If a member has none, or if
    `messages_to_prompt` was given, all members read the same text.

    Examples:
        ```python
        from deepen_integrations.llama_index import DeepenLLM

        llm = DeepenLLM.demo(max_new_tokens=16)
        # or DeepenLLM(models=["./general", "./specialist"], temperature=0.7)
        # or DeepenLLM.from_ensemble(ensemble), where ensemble = Ensemble.load(...)

        print(llm.complete("Question: Where does Mira live?\nAnswer:").text)
        for response in llm.stream_complete("Mira lives in", stop=["."]):
            print(response.delta, end="")

        index.as_query_engine(llm=llm).query("Where does Mira live?")
        ```
    """

    context_window: int | None = Field(default=None, ge=1)
    """Tokens that the text of a prompt and its answer may have together, which LlamaIndex fills prompts up to.

    If not given, as many of main's tokens as fit every member, less what chat templates add: measured once the ensemble
    is loaded, and with an allowance before.
    """

    @classmethod
    def class_name(cls) -> str:
        """The name in serialized form."""
        return "DeepenLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex plans prompts with. It is known before the models are loaded, and loads nothing."""
        facts = self.facts
        window = self.context_window or facts.context_window or DEFAULT_CONTEXT_WINDOW
        return LLMMetadata(
            context_window=window,
            # Answers end where the window is full, so one that may be longer than that takes no more room in plans.
            num_output=min(self.max_new_tokens, window // 2),
            is_chat_model=facts.has_chat_template,
            model_name=self.model_name,
        )

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answers a prompt.

        Args:
            prompt: The text.
            formatted: Whether the text is ready for the models. If it is not and all members have chat
                templates, it is a user's message.
            kwargs: Options of this call.

        Raises:
            DeepenError: If an option is wrong or the engine fails.
        """
        params, ensemble = self.sampling(kwargs), self.ensemble
        return self._whole(ensemble.generate(self._read_prompt(prompt, formatted), params), _completion)

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """As `complete`; the event loop goes on meanwhile, and a cancelled task ends the work."""
        params, ensemble = self.sampling(kwargs), await self.aensemble()
        return self._whole(await ensemble.agenerate(self._read_prompt(prompt, formatted), params), _completion)

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """Answers a prompt piece by piece. Arguments and errors are those of `complete`."""
        params, ensemble = self.sampling(kwargs), self.ensemble
        pieces = self._pieces(ensemble, self._read_prompt(prompt, formatted), params, _completion)
        return _observed(llm_completion_callback(), self, prompt, pieces, kwargs)

    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """As `stream_complete`, for an event loop."""
        params, ensemble = self.sampling(kwargs), await self.aensemble()
        pieces = self._apieces(ensemble, self._read_prompt(prompt, formatted), params, _completion)
        return await _aobserved(llm_completion_callback(), self, prompt, pieces, kwargs)

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answers a conversation.

        Args:
            messages: The conversation. Only text can be read.
            kwargs: Options of this call.

        Raises:
            DeepenError: If an option is wrong or the engine fails.
        """
        params, ensemble = self.sampling(kwargs), self.ensemble
        return self._whole(ensemble.generate(self._read_messages(messages), params), _chat)

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """As `chat`; the event loop goes on meanwhile, and a cancelled task ends the work."""
        params, ensemble = self.sampling(kwargs), await self.aensemble()
        return self._whole(await ensemble.agenerate(self._read_messages(messages), params), _chat)

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Answers a conversation piece by piece. Arguments and errors are those of `chat`."""
        params, ensemble = self.sampling(kwargs), self.ensemble
        pieces = self._pieces(ensemble, self._read_messages(messages), params, _chat)
        return _observed(llm_chat_callback(), self, messages, pieces, kwargs)

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """As `stream_chat`, for an event loop."""
        params, ensemble = self.sampling(kwargs), await self.aensemble()
        pieces = self._apieces(ensemble, self._read_messages(messages), params, _chat)
        return await _aobserved(llm_chat_callback(), self, messages, pieces, kwargs)

    def _read_prompt(self, prompt: str, formatted: bool) -> _Prompt:
        if formatted:
            return prompt
        if self.has_chat_template and self.completion_to_prompt is default_completion_to_prompt:
            return _conversation(self._extend_messages([ChatMessage(role=MessageRole.USER, content=prompt)]))
        wrap = self.completion_to_prompt or default_completion_to_prompt
        return self._extend_prompt(wrap(prompt))

    def _read_messages(self, messages: Sequence[ChatMessage]) -> _Prompt:
        conversation = _conversation(messages)
        render = self.messages_to_prompt or messages_to_prompt
        if self.has_chat_template and render is messages_to_prompt:
            return conversation
        return render(messages)

    def _whole(self, answer: Generation, form: _Form[Response]) -> Response:
        return form(answer.text, None, self._raw(answer))

    def _pieces(
        self, ensemble: Ensemble, prompt: _Prompt, params: SamplingParams, form: _Form[Response]
    ) -> Generator[Response, None, None]:
        text = ""
        with closing(ensemble.stream(prompt, params)) as pieces:
            for piece in pieces:
                text += piece.text
                yield self._piece(text, piece, form)

    async def _apieces(
        self, ensemble: Ensemble, prompt: _Prompt, params: SamplingParams, form: _Form[Response]
    ) -> AsyncGenerator[Response, None]:
        text = ""
        async with aclosing(ensemble.astream(prompt, params)) as pieces:
            async for piece in pieces:
                text += piece.text
                yield self._piece(text, piece, form)

    def _piece(self, text: str, piece: Chunk, form: _Form[Response]) -> Response:
        return form(text, piece.text, None if piece.generation is None else self._raw(piece.generation))

    def _raw(self, answer: Generation) -> dict[str, Any]:
        """Plain data: LlamaIndex's token counter reads `usage` from it, and exporters write it as JSON."""
        return {**report(answer), "model": self.model_name}


def _completion(text: str, delta: str | None, raw: dict[str, Any] | None) -> CompletionResponse:
    return CompletionResponse(text=text, delta=delta, raw=raw, logprobs=_logprobs(raw))


def _chat(text: str, delta: str | None, raw: dict[str, Any] | None) -> ChatResponse:
    # Chat engines write into the message they get, so each response has its own.
    message = ChatMessage(role=MessageRole.ASSISTANT, content=text)
    return ChatResponse(message=message, delta=delta, raw=raw, logprobs=_logprobs(raw))


def _logprobs(raw: dict[str, Any] | None) -> list[list[LogProb]] | None:
    """For each token the chosen one, then its alternatives."""
    if raw is None or "logprobs" not in raw:
        return None
    positions = []
    for chosen in raw["logprobs"]["content"]:
        others = [other for other in chosen["top_logprobs"] if other["bytes"] != chosen["bytes"]]
        pieces = [{key: piece[key] for key in ("token", "logprob", "bytes")} for piece in (chosen, *others)]
        positions.append([LogProb(**piece) for piece in pieces])
    return positions


def _conversation(messages: Sequence[ChatMessage]) -> list[dict[str, str]]:
    """Messages as chat templates take them.

    Raises:
        PromptError: If a message holds anything but text.
    """
    for message in messages:
        for block in message.blocks:
            if not isinstance(block, TextBlock):
                kind = type(block).__name__
                raise PromptError(f"A {message.role.value} message holds a {kind}: only text can be read.")
    return [{"role": _ROLES.get(m.role, m.role.value), "content": m.content or ""} for m in messages]


def _observed(
    callback: Callable[[Callable[..., Any]], Callable[..., Any]],
    llm: DeepenLLM,
    request: str | Sequence[ChatMessage],
    pieces: Generator[Response, None, None],
    options: Mapping[str, Any],
) -> Generator[Response, None, None]:
    """Tells LlamaIndex's handlers about a stream, and closes it when its reader goes away.

    The decorator alone leaves that to the garbage collector, and a handler that keeps the exception of an
    abandoned stream, as LlamaDebugHandler does, would keep the stream open for good.
    """
    observed = callback(lambda _llm, _request, **_options: pieces)(llm, request, **options)

    def read() -> Generator[Response, None, None]:
        try:
            yield from observed
        finally:
            pieces.close()

    return read()


async def _aobserved(
    callback: Callable[[Callable[..., Any]], Callable[..., Any]],
    llm: DeepenLLM,
    request: str | Sequence[ChatMessage],
    pieces: AsyncGenerator[Response, None],
    options: Mapping[str, Any],
) -> AsyncGenerator[Response, None]:
    """As `_observed`, for a stream of an event loop."""

    async def given(_llm: DeepenLLM, _request: object, **_options: Any) -> AsyncGenerator[Response, None]:
        return pieces

    observed = await callback(given)(llm, request, **options)

    async def read() -> AsyncGenerator[Response, None]:
        async with aclosing(pieces):
            async for response in observed:
                yield response

    return read()
