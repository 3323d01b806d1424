"""What an engine consists of, and how well its members fit together."""

from __future__ import annotations

from collections.abc import Sequence

from deepen_core.engine.engine import Engine
from deepen_core.fusion.diagnostics import length_warnings
from deepen_core.members.base import Member, batching_warnings, source_window
from deepen_core.results import EnsembleInfo, MemberInfo, SpaceInfo


def engine_warnings(engine: Engine) -> list[str]:
    """Returns measured reasons why its members may not fuse or batch well."""
    with_weight = [number for number, weight in enumerate(engine.weights) if weight > 0]
    return [
        *engine.fusion.warnings(with_weight),
        *length_warnings([engine.members[number] for number in with_weight]),
        *batching_warnings(engine.members_counted),
    ]


def engine_info(engine: Engine, warnings: Sequence[str]) -> EnsembleInfo:
    """Returns what `Ensemble.info` reports.

    Args:
        engine: The engine.
        warnings: The result of `engine_warnings` when the engine was built.
    """
    fusion = engine.fusion.describe(engine.counted)
    spaces: Sequence[SpaceInfo | None] = fusion.spaces or [None] * len(engine.members)
    members = [
        _member_info(member, engine.weights[number], spaces[number], is_run=number in engine.counted)
        for number, member in enumerate(engine.members)
    ]
    return EnsembleInfo(
        members=members,
        main=engine.main_member.name,
        fusion=engine.fusion_name,
        anchors=fusion.anchors,
        context_window=engine.budget.context_window,
        bytes_held=fusion.bytes_held,
        warnings=list(warnings),
        limits=list(fusion.limits),
        weight_policy=engine.policy_name,
        gate=None if engine.gate is None else engine.gate.describe(),
        chosen=fusion.chosen,
    )


def _member_info(member: Member, weight: float, space: SpaceInfo | None, *, is_run: bool) -> MemberInfo:
    tokenizer, described = member.tokenizer, member.describe()
    return MemberInfo(
        name=member.name,
        architecture=described.architecture,
        parameters=described.parameters,
        vocabulary_size=member.vocabulary_size,
        context_window=member.context_window,
        weight=weight,
        device=str(member.device),
        dtype=str(member.dtype).removeprefix("torch."),
        stop_tokens=tokenizer.backend.spellings(sorted(tokenizer.vocabulary.stop_ids)),
        has_chat_template=tokenizer.reader.has_chat_template,
        temperature=None if space is None else space.temperature,
        self_mass=None if space is None else space.self_mass,
        effective_support=None if space is None else space.effective_support,
        rows_built=0 if space is None else space.rows_built,
        bytes_per_token=tokenizer.bytes_per_token,
        space_bytes=0 if space is None else space.bytes_held,
        batching=member.batching if is_run else "never run: its weight is 0",
        source_window=source_window(member),
        elsewhere=described.elsewhere,
    )
