"""Objects of a pydantic class instead of text: LlamaIndex's structured prediction on constrained decoding."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Generator, Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, MessageRole
from llama_index.core.instrumentation.events.llm import LLMStructuredPredictEndEvent, LLMStructuredPredictStartEvent
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.program.utils import process_streaming_objects
from llama_index.core.prompts import PromptTemplate
from llama_index.core.types import Model, PydanticProgramMode
from llama_index_instrumentation import get_dispatcher
from pydantic import ValidationError

from deepen_core.errors import StructuredAnswerError

_dispatcher = get_dispatcher(__name__)

Response = ChatResponse | CompletionResponse


class StructuredPrediction(CustomLLM):
    """The four `structured_predict` methods: the answer is valid by the class's JSON schema, whatever the models say.

    LlamaIndex's own way asks for JSON in the prompt and hopes. It is still taken for a `pydantic_program_mode` other
    than the default.
    """

    def structured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """Answers with an object.

        Args:
            output_cls: Its pydantic class. The answer follows its JSON schema, which is told in the prompt too.
            prompt: What is asked.
            llm_kwargs: Options of this call.
            prompt_args: Values of the prompt's variables.

        Raises:
            SamplingError: If the schema has parts that decoding cannot follow.
            StructuredAnswerError: If the answer was cut off, or the class refuses it for reasons beyond its schema.
        """
        if not self._constrains:
            usual: Model = super().structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
            return usual
        _started(output_cls, prompt, prompt_args)
        options = _options(output_cls, llm_kwargs)
        if self.metadata.is_chat_model:
            found: Response = self.chat(self._messages(output_cls, prompt, prompt_args), **options)
        else:
            found = self.complete(self._text(output_cls, prompt, prompt_args), formatted=True, **options)
        return _ended(_parsed(output_cls, found))

    async def astructured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """As `structured_predict`, for an event loop."""
        if not self._constrains:
            usual: Model = await super().astructured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
            return usual
        _started(output_cls, prompt, prompt_args)
        options = _options(output_cls, llm_kwargs)
        if self.metadata.is_chat_model:
            found: Response = await self.achat(self._messages(output_cls, prompt, prompt_args), **options)
        else:
            found = await self.acomplete(self._text(output_cls, prompt, prompt_args), formatted=True, **options)
        return _ended(_parsed(output_cls, found))

    def _structured_stream_call(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Any, None, None]:
        """What `stream_structured_predict` of LlamaIndex reads: objects with the fields so far, and then the whole."""
        if not self._constrains:
            yield from super()._structured_stream_call(output_cls, prompt, llm_kwargs, **prompt_args)
            return
        options, growing = _options(output_cls, llm_kwargs), _Growing(output_cls)
        if self.metadata.is_chat_model:
            pieces: Any = self.stream_chat(self._messages(output_cls, prompt, prompt_args), **options)
        else:
            pieces = self.stream_complete(self._text(output_cls, prompt, prompt_args), formatted=True, **options)
        for piece in pieces:
            yield growing.take(piece)

    async def _structured_astream_call(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Any, None]:
        """What `astream_structured_predict` of LlamaIndex reads."""
        if not self._constrains:
            return await super()._structured_astream_call(output_cls, prompt, llm_kwargs, **prompt_args)
        options = _options(output_cls, llm_kwargs)
        if self.metadata.is_chat_model:
            pieces: Any = await self.astream_chat(self._messages(output_cls, prompt, prompt_args), **options)
        else:
            text = self._text(output_cls, prompt, prompt_args)
            pieces = await self.astream_complete(text, formatted=True, **options)

        async def read() -> AsyncGenerator[Any, None]:
            growing = _Growing(output_cls)
            async for piece in pieces:
                yield growing.take(piece)

        return read()

    @property
    def _constrains(self) -> bool:
        return self.pydantic_program_mode == PydanticProgramMode.DEFAULT

    def _messages(self, output_cls: type[Model], prompt: PromptTemplate, values: dict[str, Any]) -> list[ChatMessage]:
        """The prompt's messages, the last of the user's with the schema in front."""
        messages = self._extend_messages(list(prompt.format_messages(llm=self, **values)))
        places = [place for place, message in enumerate(messages) if message.role == MessageRole.USER]
        if not places:
            return [*messages, ChatMessage(role=MessageRole.USER, content=_instruction(output_cls))]
        asked = messages[places[-1]]
        told = ChatMessage(role=asked.role, content=f"{_instruction(output_cls)}\n\n{asked.content or ''}")
        return [*messages[: places[-1]], told, *messages[places[-1] + 1 :]]

    def _text(self, output_cls: type[Model], prompt: PromptTemplate, values: dict[str, Any]) -> str:
        """The prompt as a text to be continued, with the schema in front."""
        return self._extend_prompt(f"{_instruction(output_cls)}\n\n{prompt.format(llm=self, **values)}")


class _Growing:
    """Makes objects of an answer that grows."""

    def __init__(self, output_cls: type[Model]) -> None:
        self._class = output_cls
        self._before: Sequence[Any] | None = None

    def take(self, piece: Response) -> Any:
        """The fields so far; the whole object, validated, at the end."""
        if piece.raw is not None:
            return _parsed(self._class, piece)
        found = process_streaming_objects(piece, self._class, cur_objects=self._before, flexible_mode=True)
        self._before = found if isinstance(found, list) else [found]
        return found


def _instruction(output_cls: type[Model]) -> str:
    schema = json.dumps(output_cls.model_json_schema(), ensure_ascii=False)
    return f"Answer with JSON that follows this schema: {schema}"


def _options(output_cls: type[Model], given: dict[str, Any] | None) -> dict[str, Any]:
    return {**(given or {}), "json_schema": output_cls.model_json_schema()}


def _parsed(output_cls: type[Model], found: Response) -> Model:
    text = found.text if isinstance(found, CompletionResponse) else found.message.content or ""
    try:
        return output_cls.model_validate_json(text)
    except ValidationError as problem:
        reason = found.raw["finish_reason"] if isinstance(found.raw, dict) else "unknown"
        raise StructuredAnswerError.from_answer(output_cls.__name__, text, reason, problem) from problem


def _started(output_cls: type[Model], prompt: PromptTemplate, values: dict[str, Any]) -> None:
    _dispatcher.event(LLMStructuredPredictStartEvent(output_cls=output_cls, template=prompt, template_args=values))


def _ended(found: Model) -> Model:
    _dispatcher.event(LLMStructuredPredictEndEvent(output=found))
    return found
