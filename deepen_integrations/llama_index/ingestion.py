"""Ingestion in which a chunk that cannot be answered for costs no other chunk its metadata."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from typing import Any

from llama_index.core.async_utils import asyncio_run
from llama_index.core.schema import BaseNode, TransformComponent
from pydantic import Field, SerializeAsAny

from deepen_core.errors import ContextWindowError, PromptError, TimedOutError, UnusableAnswerError

_LOG = logging.getLogger("deepen_integrations")
_OF_ONE_NODE = (ContextWindowError, PromptError, TimedOutError, UnusableAnswerError)


class NodeByNode(TransformComponent):
    """Applies a transformation, such as an extractor, to each node by itself, several at a time.

    LlamaIndex's extractors ask for all nodes at once: one that fails ends the ingestion, or with `raise_on_error=False`
    leaves all of them without metadata. Here, a node whose text is empty or too long, or whose answer is cut off,
    passes as it is, with a warning to the logger `deepen_integrations`. All other errors are raised.

    Not for transformations that read neighbouring nodes, such as `TitleExtractor` or a `SummaryExtractor` of the
    previous section.

    Examples:
        ```python
        keywords = KeywordExtractor(llm=llm, show_progress=False)
        pipeline = IngestionPipeline(transformations=[SentenceSplitter(), NodeByNode(transformation=keywords)])
        ```
    """

    transformation: SerializeAsAny[TransformComponent]
    """What is applied."""
    num_workers: int = Field(default=32, ge=1)
    """Maximum number of nodes at a time; the ensemble decodes them together, up to its `max_batch_size`."""

    @classmethod
    def class_name(cls) -> str:
        """The name in serialized form."""
        return "NodeByNode"

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Applies the transformation to each node.

        Raises:
            DeepenError: If the ensemble fails for reasons other than one node's text or answer.
        """
        found: Sequence[BaseNode] = asyncio_run(self.acall(nodes, **kwargs))
        return found

    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Like calling it, for an event loop."""
        kwargs.pop("show_progress", None)  # a bar for each node says nothing
        waiting, found = deque(enumerate(nodes)), [list[BaseNode]() for _ in nodes]

        async def work() -> None:
            while waiting:
                place, node = waiting.popleft()
                try:
                    found[place] = await self._transformed(node, kwargs)
                except BaseException:
                    waiting.clear()
                    raise

        workers = (work() for _ in range(min(self.num_workers, len(nodes))))
        for problem in await asyncio.gather(*workers, return_exceptions=True):  # what runs is not left behind
            if problem is not None:
                raise problem
        return [node for of_one in found for node in of_one]

    async def _transformed(self, node: BaseNode, options: dict[str, Any]) -> list[BaseNode]:
        try:
            return [*await self.transformation.acall([node], **options)]
        except _OF_ONE_NODE as problem:
            name = type(self.transformation).__name__
            _LOG.warning("Node %s passes without %s: %s", node.node_id, name, problem)
            return [node]
