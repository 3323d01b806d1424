"""The endpoints: requests are checked and taken on, asked of the engine, and answered whole or in pieces."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from deepen_core.chat.messages import check_messages
from deepen_core.config import SamplingParams
from deepen_core.errors import ClosedError, CrashedError
from deepen_integrations.chat import ChatRequest
from deepen_integrations.serve.admission import Admission
from deepen_integrations.serve.bodies import Body, ChatBody, CompletionBody, each_answer, parsed, sampling_of
from deepen_integrations.serve.chat_answers import ChatWire
from deepen_integrations.serve.errors import ApiError
from deepen_integrations.serve.metrics import CONTENT_TYPE, Metrics
from deepen_integrations.serve.options import ANSWERS_AT_FULL_PACE, ServeOptions
from deepen_integrations.serve.reading import read_body
from deepen_integrations.serve.served import Catalogue, ServedEnsemble
from deepen_integrations.serve.streams import EventStream, json_response, while_connected
from deepen_integrations.serve.text_answers import TextWire
from deepen_integrations.serve.wire import Wire

if TYPE_CHECKING:
    from deepen_core import Ensemble
    from deepen_core.chat.messages import Prompt
    from deepen_core.engine.handle import Handle
    from deepen_core.results import Chunk, Generation

_OWNER = "deepen"
_SMALL = 8 * 1024  # bytes of a body that is read on the event loop, as a thread would take longer than that
_B = TypeVar("_B", bound=Body)


@dataclass(frozen=True)
class Work:
    """Everything that a request comes to."""

    served: ServedEnsemble
    ensemble: Ensemble
    """What answers: that of `served`, or one of its members alone."""
    prompts: Sequence[Prompt]
    """One for each answer."""
    params: Sequence[SamplingParams]
    """One for each answer."""
    wire: Wire
    stream: bool
    include_usage: bool


class Endpoints:
    """Answers requests.

    Args:
        catalogue: The ensembles.
        options: Limits.
        admission: Counts the answers.
        metrics: Counts everything else.
    """

    def __init__(self, catalogue: Catalogue, options: ServeOptions, admission: Admission, metrics: Metrics) -> None:
        self._catalogue = catalogue
        self._options = options
        self._admission = admission
        self._metrics = metrics

    async def chat(self, request: Request) -> Response:
        """Answers `POST /v1/chat/completions`."""
        return await self._answer(request, ChatBody, self._chat_work)

    async def completions(self, request: Request) -> Response:
        """Answers `POST /v1/completions`."""
        return await self._answer(request, CompletionBody, self._text_work)

    async def models(self, _request: Request) -> Response:
        """Answers `GET /v1/models`."""
        return json_response({"object": "list", "data": [_described(served) for served in self._catalogue]})

    async def model(self, request: Request) -> Response:
        """Answers `GET /v1/models/NAME`."""
        return json_response(_described(self._catalogue.named(request.path_params["name"])))

    async def health(self, _request: Request) -> Response:
        """Answers `GET /health`: that the server runs."""
        return json_response({"status": "ok"})

    async def ready(self, _request: Request) -> Response:
        """Answers `GET /ready`: 200 once every ensemble is loaded, and 503 before, with how far each is."""
        ready = self._catalogue.ready
        models = {served.name: served.report() for served in self._catalogue}
        return json_response({"status": "ready" if ready else "loading", "models": models}, 200 if ready else 503)

    async def metrics(self, _request: Request) -> Response:
        """Answers `GET /metrics`."""
        return Response(self._metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def _answer(self, request: Request, kind: type[_B], read: Callable[[_B], Work]) -> Response:
        started = time.perf_counter()
        raw = await read_body(request, self._options)
        small = len(raw) <= _SMALL
        body = parsed(raw, kind) if small else await asyncio.to_thread(parsed, raw, kind)
        small = small and not body.is_constrained  # grammars take long to compile
        work = read(body) if small else await asyncio.to_thread(read, body)
        facts, model = request.state.facts, work.served.name
        facts.update(model=model, answers=len(work.prompts), stream=work.stream)
        self._admission.enter(len(work.prompts))

        def over(answers: Sequence[Generation], gone: bool = False) -> None:
            self._admission.leave(len(work.prompts))
            if gone:
                facts["gone"] = True
            self._metrics.answered(model, answers)
            facts.update(_told(answers))

        def seen(_chunk: Chunk) -> None:
            if "first_token_s" not in facts:
                facts["first_token_s"] = round(time.perf_counter() - started, 4)
                self._metrics.first_token.labels(model).observe(facts["first_token_s"])

        answers: list[Generation] = []
        streaming = False
        try:
            handles = _asked_now(work) if small else await while_connected(request, _asked(work))
            if work.stream:
                streaming = True
                return EventStream(
                    work.wire,
                    handles,
                    include_usage=work.include_usage,
                    interval_s=self._stream_interval,
                    seen=seen,
                    over=over,
                )
            answers = await while_connected(request, _collected(handles))
            return json_response(work.wire.whole(answers))
        except ClosedError as problem:
            if not isinstance(problem, CrashedError) or problem.for_good:
                work.served.fail(problem)
            raise
        finally:
            if not streaming:
                over(answers)

    def _stream_interval(self) -> float:
        return self._options.stream_interval_s * max(1.0, self._admission.running / ANSWERS_AT_FULL_PACE)

    def _chat_work(self, body: ChatBody) -> Work:
        served = self._catalogue.named(body.model)
        messages = check_messages(body.messages)
        request = ChatRequest.from_options(messages, body.options, lambda given: sampling_of(served.sampling, given))
        params = each_answer(request.sampling, 1, body.answers)
        ensemble = served.asked(body.member)
        if not ensemble.has_chat_template:
            raise ApiError(400, f"A member of {body.model!r} has no chat template: ask for /v1/completions instead.")
        calls = [request.prepare(ensemble) for _ in params]
        constrained = each_answer(calls[0].params, 1, body.answers)
        wire = ChatWire(body.model, [call.parser for call in calls], ensemble.count_tokens)
        return _work(served, ensemble, [call.prompt for call in calls], constrained, wire, body)

    def _text_work(self, body: CompletionBody) -> Work:
        served = self._catalogue.named(body.model)
        texts = body.prompts
        params = each_answer(sampling_of(served.sampling, body.options), len(texts), body.answers)
        prompts = [text for text in texts for _ in range(body.answers)]
        wire = TextWire(body.model, len(texts), body.answers)
        return _work(served, served.asked(body.member), prompts, params, wire, body)


def _work(
    served: ServedEnsemble,
    ensemble: Ensemble,
    prompts: Sequence[Prompt],
    params: Sequence[SamplingParams],
    wire: Wire,
    body: Body,
) -> Work:
    return Work(served, ensemble, prompts, params, wire, bool(body.stream), body.include_usage)


def _asked_now(work: Work) -> list[Handle]:
    ensemble = work.ensemble
    return [ensemble.submit(prompt, params) for prompt, params in zip(work.prompts, work.params, strict=True)]


async def _asked(work: Work) -> list[Handle]:
    ensemble = work.ensemble
    return [await ensemble.asubmit(prompt, params) for prompt, params in zip(work.prompts, work.params, strict=True)]


async def _collected(handles: Sequence[Handle]) -> list[Generation]:
    try:
        return [await handle.aresult() for handle in handles]
    finally:
        for handle in handles:
            handle.cancel()


def _described(served: ServedEnsemble) -> dict[str, Any]:
    return {"id": served.name, "object": "model", "created": served.created, "owned_by": _OWNER, **served.facts}


def _told(answers: Sequence[Generation]) -> dict[str, Any]:
    """Returns what the log says about complete answers."""
    if not answers:
        return {}
    return {
        "prompt_tokens": sum(answer.usage.prompt_tokens for answer in answers),
        "completion_tokens": sum(answer.usage.completion_tokens for answer in answers),
        "finish_reasons": sorted({answer.finish_reason for answer in answers}),
        "queue_s": round(max(answer.timings.queue_s for answer in answers), 4),
    }
