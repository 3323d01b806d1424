"""An ensemble as a LlamaIndex model."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

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
    MessageRole,
)
from llama_index.core.constants import DEFAULT_CONTEXT_WINDOW
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.llm import default_completion_to_prompt
from pydantic import Field

from deepen_core.chat.messages import Prompt
from deepen_core.replies import ReplyForm
from deepen_integrations.chat import ChatRequest
from deepen_integrations.llama_index.messages import chat_messages, text_messages
from deepen_integrations.llama_index.react import ReActModel
from deepen_integrations.llama_index.responses import ChatReplies, Completions, Response
from deepen_integrations.llama_index.structured import StructuredPrediction

if TYPE_CHECKING:
    from deepen_core import Ensemble
    from deepen_core.chat.template import Thinking


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
        window = self.context_window or facts.planning_window or DEFAULT_CONTEXT_WINDOW
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
        return self._completions().whole(ensemble.generate(self._read_prompt(prompt, formatted), params))

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """As `complete`; the event loop goes on meanwhile, and a cancelled task ends the work."""
        params, ensemble = self.sampling(kwargs), await self.aensemble()
        return self._completions().whole(await ensemble.agenerate(self._read_prompt(prompt, formatted), params))

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """Answers a prompt piece by piece. Arguments and errors are those of `complete`."""
        params, ensemble = self.sampling(kwargs), self.ensemble
        pieces = self._completions().each(ensemble.stream(self._read_prompt(prompt, formatted), params))
        return _observed(llm_completion_callback(), self, prompt, pieces, kwargs)

    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """As `stream_complete`, for an event loop."""
        params, ensemble = self.sampling(kwargs), await self.aensemble()
        pieces = self._completions().aeach(ensemble.astream(self._read_prompt(prompt, formatted), params))
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
        request, ensemble = self._request(messages, kwargs), self.ensemble
        prompt, thinking = self._read_messages(messages, request, ensemble)
        answer = ensemble.generate(prompt, request.params(thinking))
        return self._replies(request, thinking).whole(answer)

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """As `chat`; the event loop goes on meanwhile, and a cancelled task ends the work."""
        request, ensemble = self._request(messages, kwargs), await self.aensemble()
        prompt, thinking = self._read_messages(messages, request, ensemble)
        answer = await ensemble.agenerate(prompt, request.params(thinking))
        return self._replies(request, thinking).whole(answer)

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Answers a conversation piece by piece. Arguments and errors are those of `chat`."""
        request, ensemble = self._request(messages, kwargs), self.ensemble
        prompt, thinking = self._read_messages(messages, request, ensemble)
        pieces = ensemble.stream(prompt, request.params(thinking))
        responses = self._replies(request, thinking).each(pieces)
        return _observed(llm_chat_callback(), self, messages, responses, kwargs)

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """As `stream_chat`, for an event loop."""
        request, ensemble = self._request(messages, kwargs), await self.aensemble()
        prompt, thinking = self._read_messages(messages, request, ensemble)
        pieces = ensemble.astream(prompt, request.params(thinking))
        responses = self._replies(request, thinking).aeach(pieces)
        return await _aobserved(llm_chat_callback(), self, messages, responses, kwargs)

    def _request(self, messages: Sequence[ChatMessage], options: Mapping[str, Any]) -> ChatRequest:
        """What is asked, checked before anything is loaded."""
        return ChatRequest(chat_messages(messages), ReplyForm(), self.sampling(options))

    def _read_prompt(self, prompt: str, formatted: bool) -> Prompt:
        if formatted:
            return prompt
        if self.has_chat_template and self.completion_to_prompt is default_completion_to_prompt:
            return chat_messages(self._extend_messages([ChatMessage(role=MessageRole.USER, content=prompt)]))
        wrap = self.completion_to_prompt or default_completion_to_prompt
        return self._extend_prompt(wrap(prompt))

    def _read_messages(
        self, messages: Sequence[ChatMessage], request: ChatRequest, ensemble: Ensemble
    ) -> tuple[Prompt, Thinking]:
        """The prompt, and whether its answer begins with thoughts."""
        render = self.messages_to_prompt or messages_to_prompt
        conversation = request.prompt()
        if ensemble.has_chat_template and render is messages_to_prompt:
            return conversation, ensemble.thinking
        text = render(messages if conversation == request.messages else text_messages(conversation))
        return text, "never" if ensemble.thinking == "never" else "optional"

    def _completions(self) -> Completions:
        return Completions(self.model_name)

    def _replies(self, request: ChatRequest, thinking: Thinking) -> ChatReplies:
        return ChatReplies(self.model_name, request.parser(thinking), self.ensemble.count_tokens)


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
