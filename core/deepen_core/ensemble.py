"""Several local language models as one: load, generate, stream, score, close."""

from __future__ import annotations

import contextlib
import threading
import warnings as python_warnings
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from typing_extensions import Self

from deepen_core.chat.messages import Prompt, check_messages
from deepen_core.chat.template import Thinking
from deepen_core.config import (
    FusionConfig,
    MemberConfig,
    MemberErrorPolicy,
    SamplingParams,
    ServingConfig,
    resolve_fusion,
)
from deepen_core.demo import member_paths
from deepen_core.engine.decoder import Decoder
from deepen_core.engine.frontend import GenerationAPI
from deepen_core.engine.member_runner import PREFILL_CHUNK
from deepen_core.engine.scoring import check_texts, continuation_ids, member_score
from deepen_core.engine.worker import Worker, closed_error
from deepen_core.errors import ClosedError, CompatibilityWarning, ConfigurationError, ModelFilesError
from deepen_core.fusion import make_fusion
from deepen_core.fusion.anchors.shared_tokens import Anchors
from deepen_core.fusion.anchors.token_healing import Healer
from deepen_core.fusion.deepen.diagnostics import batching_warnings, compatibility_warnings, fusion_limits
from deepen_core.fusion.deepen.exact_fusion import check_room
from deepen_core.fusion.deepen.relative_space import RelativeSpace
from deepen_core.fusion.deepen.store.keeper import RowKeeper
from deepen_core.fusion.weights import normalised_weights
from deepen_core.members.base import MemberSequence
from deepen_core.members.context_budget import planning_window
from deepen_core.members.transformers.causal import CausalMember
from deepen_core.members.transformers.loader import describe, load_members, main_index, member_configs, try_member
from deepen_core.progress import Steps
from deepen_core.results import EnsembleInfo, MemberInfo, Score

# Of loading: of each member (its trial, if it is run, comes on top), and of all together.
_STEPS_OF_MEMBER, _STEPS = 4, 2


class Ensemble(GenerationAPI):
    r"""Local language models with different tokenizers and architectures that answer as one.

    Make one with `Ensemble.load` or `Ensemble.demo`. It may be used from any number of threads and event loops, whose
    requests are decoded together.

    Example:
        >>> with Ensemble.demo() as ens:
        ...     print(ens.generate("Question: Where does Felix live?\nAnswer:").text)
    """

    def __init__(
        self,
        members: Sequence[CausalMember],
        main: int,
        weights: Sequence[float],
        config: FusionConfig,
        fusion_name: str,
        anchors: Anchors,
        steps: Steps,
        cache_dir: Path | None,
        serving: ServingConfig,
    ) -> None:
        self._members = list(members)
        self._main = main
        self._weights = list(weights)
        self._fusion_name = fusion_name
        self._closing = threading.Lock()  # taken by whoever closes, for good
        self._closed = False
        self._anchors = anchors
        for member in members:
            _check_matrix(member)
        run = self._counted()
        for member in run:
            with steps.doing(f"{member.name}: trying how it runs several sequences"):
                try_member(member)
        spaces = []
        for place, member in enumerate(members):
            with steps.doing(f"{member.name}: calibrating"):
                spaces.append(_space(member, anchors, place, config))
        self._keeper = RowKeeper(cache_dir, spaces)
        self._keeper.load(members, anchors, steps)
        with steps.doing("preparing the fusion"):
            self._fusion = make_fusion(spaces, main, config)
            healers = [
                _healer(m, members[main], anchors) if config.healing and m is not members[main] else None
                for m in members
            ]
        self._decoder = Decoder(members, main, weights, self._fusion, fusion_name, healers, serving.on_member_error)
        self._worker = Worker(self._decoder, serving.max_batch_size)
        # The worker knows nothing of the ensemble; one that is dropped ends its worker.
        weakref.finalize(self, self._worker.stop, wait=False)
        self._warnings = compatibility_warnings(
            [m.name for m in members],
            self_mass=[s.self_mass for s in spaces],
            calibrated=config.temperature == "auto",
            bytes_per_token=[m.tokenizer.bytes_per_token for m in members],
            weights=self._weights,
        )
        self._warnings += batching_warnings({m.name: m.batching for m in run})

    @classmethod
    def load(
        cls,
        models: Sequence[str | Path | MemberConfig | Mapping[str, Any]],
        *,
        main: int | str = 0,
        weights: Sequence[float] | None = None,
        fusion: str | FusionConfig | Mapping[str, Any] = "deepen",
        device: str | None = None,
        dtype: str = "auto",
        cache_dir: str | Path | None = None,
        max_batch_size: int = 32,
        on_member_error: MemberErrorPolicy = "raise",
        progress: bool = True,
    ) -> Ensemble:
        """Loads the members; all options, files and tokenizers are checked before any weights are read.

        What it is doing goes to the logger "deepen_core" at level INFO as well, with the seconds each step took.

        Args:
            models: Model folders in transformers format, hub ids, or `MemberConfig`s.
            main: Index or name of the member whose vocabulary is spoken.
            weights: One number per member; each `MemberConfig.weight` (by default equal) if not given.
            fusion: "deepen", "deepen-paper", or a `FusionConfig`.
            device: For members without one of their own; a GPU if there is one, else the CPU.
            dtype: For members without one of their own; "auto" takes the checkpoint's.
            cache_dir: Where rows of large vocabularies are kept for the next process; `DEEPEN_CACHE_DIR`, or a folder
                in the user's cache, if not given.
            max_batch_size: So many requests are decoded together at most; the others wait, first come first served.
            on_member_error: What a member that fails (out of memory, no finite logits) does to a request: "raise" ends
                it with a `MemberError`, "drop" goes on without the member and says so in `Generation.warnings`. The
                main member cannot be dropped.
            progress: Show on the error stream what is being done and how much of it is left.

        Raises:
            ConfigurationError: For options that contradict each other or the members, and if a device has no room.
            MemberError: If a member fails when it is tried.
            ModelFilesError: If a model's files are missing or damaged.
            TokenizerError: If a tokenizer cannot be used.
            NoCommonTokensError: If the members share no token.
        """
        configs = member_configs(models)
        names = [str(c.name) for c in configs]
        spoken = main_index(main, configs)
        shares = normalised_weights([c.weight for c in configs] if weights is None else weights, names)
        config = resolve_fusion(fusion)
        serving = ServingConfig.parse(
            {"max_batch_size": max_batch_size, "on_member_error": on_member_error}, ConfigurationError
        )
        folder = None if cache_dir is None else Path(cache_dir).expanduser()
        label = fusion if isinstance(fusion, str) else f"custom ({config.search})"
        run = sum(_is_run(place, spoken, shares) for place in range(len(names)))
        with Steps(
            "Loading", " and ".join(names), _STEPS + _STEPS_OF_MEMBER * len(names) + run, shown=progress
        ) as steps:
            described = []
            for c in configs:
                with steps.doing(f"{c.name}: reading its tokenizer"):
                    described.append(describe(c, device, dtype, progress=progress))
            vocabularies = [d.tokenizer.vocabulary for d in described]
            with steps.doing("comparing vocabularies"):
                anchors = Anchors.shared_by(vocabularies, names)
            if config.exact:
                check_room([v.size for v in vocabularies], [d.device for d in described], len(anchors))
            members = load_members(described, steps)
            ensemble = cls(members, spoken, shares, config, label, anchors, steps, folder, serving)
        for warning in ensemble._warnings:
            python_warnings.warn(warning, CompatibilityWarning, stacklevel=2)
        return ensemble

    @classmethod
    def demo(cls, **options: Any) -> Ensemble:
        """Loads the embedded demo: two small models that each know a part of an invented world. No network, no bars.

        Args:
            options: Any option of `Ensemble.load` but `models`.
        """
        return cls.load(member_paths(), **{"progress": False, "device": "cpu", **options})

    def score(self, prompt: str, continuation: str) -> Score:
        """Log-probabilities of a given continuation, fused and under each member alone.

        Args:
            prompt: The text before it; may be empty where every member has a BOS token.
            continuation: The text to score, not empty.

        Raises:
            PromptError: If the continuation is empty.
            ContextWindowError: If the two together are longer than a member's window.
            MemberError: If a member fails.
        """
        counted, main = self._counted(), self._open_members()[self._main]
        check_texts(prompt, continuation, counted)
        worker, decoder = self._serving()
        ids = continuation_ids(main.tokenizer, prompt, continuation)
        sequence = decoder.start(prompt, SamplingParams())
        logprobs: list[float] = []
        try:
            # In small pieces: the worker decodes for others in between.
            while worker.call(partial(decoder.prefill, sequence, PREFILL_CHUNK)).result():
                pass
            for token_id in ids:
                logprobs += worker.call(partial(decoder.force, sequence, [token_id])).result()
            whole = prompt + continuation
            tasks = [partial(member_score, m, prompt, whole, is_main=m is main) for m in counted]
            scores = [worker.call(task).result() for task in tasks]
        finally:
            with contextlib.suppress(ClosedError):  # then nothing is held any more
                worker.call(sequence.release)
        return Score(ids, logprobs, len(continuation.encode()), scores)

    def tokenize(self, text: str) -> list[int]:
        """Main's ids of a text, without BOS; control tokens in it are plain text."""
        return self._open_members()[self._main].tokenizer.encode(text)

    def count_tokens(self, prompt: Prompt) -> int:
        """How many of main's tokens a text has, without BOS; or a conversation, as main's template renders it.

        Args:
            prompt: A text, or messages; the opening of the assistant's answer is counted with them.

        Raises:
            ChatTemplateError: If messages are given, and main has no chat template or it refuses them.
            PromptError: If they are no conversation.
        """
        if isinstance(prompt, str):
            return len(self.tokenize(prompt))
        tokenizer = self._open_members()[self._main].tokenizer
        read = tokenizer.reader.read_messages(check_messages(prompt))
        return MemberSequence(read, tokenizer, is_main=True).prompt_tokens

    @property
    def main_name(self) -> str:
        """The name of the main member."""
        return self._open_members()[self._main].name

    @property
    def has_chat_template(self) -> bool:
        """Whether every member that counts can read a conversation."""
        return all(m.tokenizer.reader.has_chat_template for m in self._counted())

    @property
    def thinking(self) -> Thinking:
        """Whether an answer to a conversation begins with thoughts before `</think>`, by main's chat template.

        "opened": it does, and the template has written the `<think>`. "optional": the model may think, and then begins
        with `<think>` itself. "never": it is no model that thinks, or has no chat template.
        """
        return self._open_members()[self._main].tokenizer.reader.thinking

    @property
    def context_window(self) -> int:
        """Tokens of the smallest window of the members that count."""
        return min(m.context_window for m in self._counted())

    @property
    def planning_window(self) -> int:
        """Main's tokens that the text of a prompt and its answer may have together, so that they fit every member.

        Less than `context_window`: chat templates add tokens of their own, and a member may need more tokens than main
        for the same text. Both are measured, the latter on prose in Latin letters, code and tables.
        """
        members = self._counted()
        main = members.index(self._open_members()[self._main])
        return planning_window(members, main, conversations=self.has_chat_template)

    @property
    def info(self) -> EnsembleInfo:
        """What the members are and how well they fit together."""
        fusion = self._fusion
        present = zip(self._open_members(), self._weights, fusion.spaces, strict=True)
        counted = self._counted()
        members = [_member_info(m, weight, space, is_run=m in counted) for m, weight, space in present]
        return EnsembleInfo(
            members=members,
            main=members[self._main].name,
            fusion=self._fusion_name,
            anchors=len(self._anchors),
            context_window=min(m.context_window for m in members if m.weight > 0 or m is members[self._main]),
            bytes_held=sum(m.space_bytes for m in members),
            warnings=list(self._warnings),
            limits=fusion_limits(self.main_name, {m.name: _unshared(m, self._anchors) for m in self._counted()}),
        )

    def _counted(self) -> list[CausalMember]:
        """The members that take part: main, and those whose weight is not zero."""
        members = self._open_members()
        return [m for place, m in enumerate(members) if _is_run(place, self._main, self._weights)]

    def _open_members(self) -> list[CausalMember]:
        members = list(self._members)
        if self._closed:  # asked last, since closing lets go of things after it has set this
            raise closed_error()
        return members

    def _serving(self) -> tuple[Worker, Decoder]:
        serving = self._worker, self._decoder
        if self._closed:  # as above
            raise closed_error()
        return serving

    def prepare(self, progress: bool = True) -> None:
        """Builds every row of the relative spaces now and keeps them, rather than the first time each is needed.

        Worth it for large vocabularies, once; later processes find them in the cache folder.

        Args:
            progress: Show progress bars.
        """
        worker, _ = self._serving()
        for stretch in self._keeper.stretches(progress):
            worker.call(stretch).result()

    def close(self) -> None:
        """Releases the models and keeps new rows. Requests under way end with `ClosedError`."""
        first = self._closing.acquire(blocking=False)
        self._closed = True
        self._worker.stop()
        if not first:
            return
        try:
            self._keeper.save()
        finally:  # whatever becomes of the rows, the models go
            self._members.clear()
            self._decoder = None  # type: ignore[assignment]
            self._fusion = None  # type: ignore[assignment]
            self._keeper = None  # type: ignore[assignment]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _space(member: CausalMember, anchors: Anchors, place: int, config: FusionConfig) -> RelativeSpace:
    by_prefix = config.unshared == "prefix"
    return RelativeSpace(
        member.embeddings,
        anchors.ids[place],
        fixed=anchors.fixed_columns(member.tokenizer.vocabulary, len(member.embeddings), by_prefix=by_prefix),
        temperature=config.temperature,
        target_self_mass=config.target_self_mass,
        entries=config.row_entries,
    )


def _unshared(member: CausalMember, anchors: Anchors) -> float:
    """The share of a member's tokens on a sample text that not all members have."""
    ids, shared = member.tokenizer.sample_ids, set(anchors.tokens)
    return sum(member.tokenizer.vocabulary.token_bytes(i) not in shared for i in ids) / max(1, len(ids))


def _healer(member: CausalMember, main: CausalMember, anchors: Anchors) -> Healer:
    spoken = main.tokenizer
    return Healer(member.tokenizer.vocabulary, spoken.vocabulary, spoken.backend, anchors, len(member.embeddings))


def _is_run(place: int, main: int, weights: Sequence[float]) -> bool:
    """Whether a member takes part: main, and those whose weight is not zero."""
    return place == main or weights[place] > 0


def _member_info(member: CausalMember, weight: float, space: RelativeSpace, *, is_run: bool) -> MemberInfo:
    tokenizer = member.tokenizer
    return MemberInfo(
        name=member.name,
        architecture=type(member.model).__name__,
        parameters=member.model.num_parameters(),
        vocabulary_size=len(member.embeddings),
        context_window=member.context_window,
        weight=weight,
        device=str(member.device),
        dtype=str(member.dtype).removeprefix("torch."),
        stop_tokens=tokenizer.backend.spellings(sorted(tokenizer.vocabulary.stop_ids)),
        has_chat_template=tokenizer.reader.has_chat_template,
        temperature=space.temperature,
        self_mass=space.self_mass,
        effective_support=space.effective_support,
        rows_built=space.rows_built,
        bytes_per_token=tokenizer.bytes_per_token,
        space_bytes=space.bytes_held,
        batching=member.batching if is_run else "never run: its weight is 0",
    )


def _check_matrix(member: CausalMember) -> None:
    """Refuses a tokenizer whose plain tokens do not fit the model's matrix."""
    rows, tokens = len(member.embeddings), member.tokenizer.vocabulary.tokens
    beyond = [i for i in tokens.values() if i >= rows]
    if beyond:
        raise ModelFilesError(
            f"The tokenizer of member {member.name!r} has {len(beyond)} tokens with ids up to {max(beyond)}, but the "
            f"model has {rows} embeddings: save it again after model.resize_token_embeddings({max(beyond) + 1})."
        )
