"""Objects of a pydantic class instead of text: LlamaIndex's structured prediction by constrained decoding."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Generator, Sequence
from typing import Any, Generic

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, MessageRole
from llama_index.core.instrumentation.events.llm import LLMStructuredPredictEndEvent, LLMStructuredPredictStartEvent
from llama_index.core.llms import LLM
from llama_index.core.program.utils import process_streaming_objects
from llama_index.core.prompts import PromptTemplate
from llama_index.core.types import Model
from llama_index_instrumentation import get_dispatcher
from pydantic import ValidationError

from deepen_core.config.constraints import check_can_constrain
from deepen_core.errors import StructuredAnswerError

_dispatcher = get_dispatcher(__name__)

Response = ChatResponse | CompletionResponse


class StructuredCall(Generic[Model]):
    """One call that is answered with an object. The answer follows the JSON schema of the object's class.

    LlamaIndex's own implementation only asks for JSON in the prompt.

    Args:
        llm: The model.
        output_cls: The pydantic class. Its schema is also part of the prompt.
        prompt: The request.
        llm_kwargs: Options of this call; with `strict=True`, a schema that decoding cannot follow in full is refused.
        prompt_args: Values of the prompt's variables.
    """

    def __init__(
        self,
        llm: LLM,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None,
        prompt_args: dict[str, Any],
    ) -> None:
        self._llm = llm
        self._class = output_cls
        self._prompt = prompt
        self._values = prompt_args
        options = dict(llm_kwargs or {})
        strict = options.pop("strict", getattr(llm, "strict", False))
        name, self._schema = output_cls.__name__, output_cls.model_json_schema()
        check_can_constrain(f"An answer as an object of class {name}")
        from deepen_core.constraints.grammar import followed_schema  # noqa: PLC0415  needs an extra

        self._followed = followed_schema(self._schema, f"object {name!r}", strict=strict)
        self._options = {**options, "json_schema": self._followed.schema}

    def predict(self) -> Model:
        """Returns the object.

        Raises:
            SamplingError: If decoding cannot follow the schema.
            StructuredAnswerError: If the answer was cut off, or the class rejects it for reasons beyond its schema.
        """
        self._started()
        if self._llm.metadata.is_chat_model:
            found: Response = self._llm.chat(self._messages(), **self._options)
        else:
            found = self._llm.complete(self._text(), formatted=True, **self._options)
        return self._ended(found)

    async def apredict(self) -> Model:
        """Like `predict`, for an event loop."""
        self._started()
        if self._llm.metadata.is_chat_model:
            found: Response = await self._llm.achat(self._messages(), **self._options)
        else:
            found = await self._llm.acomplete(self._text(), formatted=True, **self._options)
        return self._ended(found)

    def stream(self) -> Generator[Any, None, None]:
        """Yields objects with the fields so far, and finally the validated object."""
        if self._llm.metadata.is_chat_model:
            pieces: Any = self._llm.stream_chat(self._messages(), **self._options)
        else:
            pieces = self._llm.stream_complete(self._text(), formatted=True, **self._options)
        previous: Sequence[Any] | None = None
        for piece in pieces:
            found, previous = self._growing(piece, previous)
            yield found

    async def astream(self) -> AsyncGenerator[Any, None]:
        """Returns a stream like `stream`, for an event loop."""
        if self._llm.metadata.is_chat_model:
            pieces: Any = await self._llm.astream_chat(self._messages(), **self._options)
        else:
            pieces = await self._llm.astream_complete(self._text(), formatted=True, **self._options)

        async def read() -> AsyncGenerator[Any, None]:
            previous: Sequence[Any] | None = None
            async for piece in pieces:
                found, previous = self._growing(piece, previous)
                yield found

        return read()

    def _messages(self) -> list[ChatMessage]:
        """The prompt's messages, with the schema at the start of the last user message."""
        messages = self._llm._extend_messages(list(self._prompt.format_messages(llm=self._llm, **self._values)))  # noqa: SLF001
        places = [place for place, message in enumerate(messages) if message.role == MessageRole.USER]
        if not places:
            return [*messages, ChatMessage(role=MessageRole.USER, content=self._instruction())]
        asked = messages[places[-1]]
        instructed = ChatMessage(role=asked.role, content=f"{self._instruction()}\n\n{asked.content or ''}")
        return [*messages[: places[-1]], instructed, *messages[places[-1] + 1 :]]

    def _text(self) -> str:
        """The prompt as a text to continue, with the schema at its start."""
        prompt = self._prompt.format(llm=self._llm, **self._values)
        return self._llm._extend_prompt(f"{self._instruction()}\n\n{prompt}")  # noqa: SLF001

    def _instruction(self) -> str:
        schema = json.dumps(self._schema, ensure_ascii=False)
        return f"Answer with JSON that follows this schema: {schema}"

    def _growing(self, piece: Response, previous: Sequence[Any] | None) -> tuple[Any, Sequence[Any] | None]:
        """Returns the object of an answer so far, and the objects for the next call."""
        if piece.raw is not None:
            return self._parsed(piece), previous
        if isinstance(piece, CompletionResponse):  # LlamaIndex before 0.14.22 takes answers to chats only
            piece = ChatResponse(message=ChatMessage(content=piece.text, role=MessageRole.ASSISTANT))
        found = process_streaming_objects(piece, self._class, cur_objects=previous, flexible_mode=True)
        return found, found if isinstance(found, list) else [found]

    def _parsed(self, found: Response) -> Model:
        text = found.text if isinstance(found, CompletionResponse) else found.message.content or ""
        try:
            parsed = self._class.model_validate_json(text)
        except ValidationError as problem:
            reason = found.raw["finish_reason"] if isinstance(found.raw, dict) else "unknown"
            raise StructuredAnswerError.from_answer(self._class.__name__, text, reason, problem) from problem
        check = self._followed.check
        if check and (broken := check.problem(json.loads(text))):
            raise StructuredAnswerError.from_broken_schema(self._class.__name__, broken)
        return parsed

    def _started(self) -> None:
        event = LLMStructuredPredictStartEvent(
            output_cls=self._class, template=self._prompt, template_args=self._values
        )
        _dispatcher.event(event)

    def _ended(self, found: Response) -> Model:
        parsed = self._parsed(found)
        _dispatcher.event(LLMStructuredPredictEndEvent(output=parsed))
        return parsed
