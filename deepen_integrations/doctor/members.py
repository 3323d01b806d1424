"""What each member is and can do. Weights are read only where it has to be tried."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from deepen_core.config import MemberConfig
from deepen_core.errors import DeepenError, brief
from deepen_core.members.base import Member, source_window, tree_run_of
from deepen_core.members.loading import DescribedMember, describe_member, member_configs, try_member
from deepen_core.members.model_path import model_path
from deepen_integrations.doctor.findings import Finding, Section, size
from deepen_integrations.doctor.machine import free_memory

_NOT_TRIED = "not tried, because that loads its weights: add --try"
_THOUGHTS = {"never": "no", "optional": "the model may think first", "opened": "the template begins them"}


def examine_members(options: Mapping[str, Any], *, try_them: bool) -> list[Section]:
    """Examines every member alone, then whether all fit into memory together.

    Args:
        options: Arguments of `Ensemble.load`.
        try_them: Load each, one after the other, and try what it can do.

    Raises:
        ConfigurationError: If the list of members is wrong.
    """
    configs = member_configs(options["models"])
    sections, described = [], []
    for config in configs:
        found: list[Finding] = []
        try:
            member = describe_member(
                config,
                options.get("device"),
                options.get("dtype", "auto"),
                options.get("max_context_window"),
                progress=False,
            )
        except DeepenError as problem:
            found.append(Finding("files", str(problem), "wrong"))
        else:
            if config.server is None:
                described.append(member)
            found += _facts(config, member)
            found += _abilities(member, try_it=try_them and all(one.state != "wrong" for one in found))
        sections.append(Section(str(config.name), found))
    return [*sections, Section("Together", list(_memory(described)))]


def _facts(config: MemberConfig, member: DescribedMember) -> Iterator[Finding]:
    """Says what a member's small files hold."""
    yield Finding("architecture", member.architecture)
    try:
        member.check_files()
        weights = member.weight_bytes()
    except DeepenError as problem:
        yield Finding("weights", str(problem), "wrong")
    else:
        if config.server is not None:
            yield Finding("weights", f"on the server at {config.server.url}, which answers")
        elif weights is None:
            yield Finding("weights", f"of {config.model}: loading fetches those that are not in the cache", "note")
        else:
            yield Finding(
                "weights",
                f"{weights.parameters:,} parameters, {size(weights.files)} in {model_path(config.model)}; as "
                f"{weights.dtype} {size(weights.memory)} on {member.device}",
            )
    source = source_window(member)
    yield Finding(
        "context window",
        f"{member.context_window:,} tokens" + ("" if source is None else f", and {source:,} for the prompt"),
    )
    vocabulary, reader = member.tokenizer.vocabulary, member.tokenizer.reader
    ends = " ".join(member.tokenizer.backend.spellings(sorted(vocabulary.stop_ids)))
    yield Finding("tokenizer", f"{len(vocabulary.tokens):,} tokens; a text ends with {ends or 'nothing'}")
    if reader.has_chat_template:
        yield Finding("chat template", "yes")
        yield Finding("thoughts", _THOUGHTS[reader.thoughts().mode])
    else:
        yield Finding(
            "chat template",
            "none, so it reads no conversation: add chat_template.jinja to its folder, or set chat_template",
            "note",
        )
        yield Finding("thoughts", "no, without a chat template", "note")


def _abilities(member: DescribedMember, *, try_it: bool) -> list[Finding]:
    """Says how a member runs sequences and given texts."""
    if not try_it:
        return [Finding("batch and cache", _NOT_TRIED, "note"), Finding("given texts", _NOT_TRIED, "note")]
    try:
        loaded = member.load(progress=False)  # the command has a line of its own
        try_member(loaded)
    except DeepenError as problem:
        return [Finding("batch and cache", str(problem), "wrong")]
    found = [_batching(loaded), _reading(loaded)]
    del loaded
    gc.collect()  # the next member needs its room
    return found


def _batching(member: Member) -> Finding:
    if not member.batching.startswith("ragged"):
        return Finding("batch and cache", member.batching, "note")
    whole = "ragged: sequences of any length share a forward, and each continues from its cache"
    return Finding("batch and cache", whole + member.batching.removeprefix("ragged"))


@torch.inference_mode()
def _reading(member: Member) -> Finding:
    """Says whether all states of a given text, as scoring needs them, are read at once."""
    if tree_run_of(member, member.context_window) is not None:
        return Finding("given texts", "all positions are read in one forward")
    why = "its sequences do not share a forward" if member.batching != "ragged" else "it goes by places in its cache"
    return Finding("given texts", f"read step by step, which is slower: {why}", "note")


def _memory(members: Sequence[DescribedMember]) -> Iterator[Finding]:
    """Compares what the weights need on each device with what is free there."""
    for device in dict.fromkeys(str(member.device) for member in members):
        placed = [member for member in members if str(member.device) == device]
        try:
            weights = [weights for member in placed if (weights := member.weight_bytes()) is not None]
        except DeepenError as problem:
            yield Finding(f"memory of {device}", f"unknown: {brief(problem)}", "note")
            continue
        needed, free = sum(one.memory for one in weights), free_memory(placed[0].device)
        said = f"the weights need {size(needed)}" + ("" if len(weights) == len(placed) else ", without those to fetch")
        if free is None:
            yield Finding(f"memory of {device}", f"{said}; how much is free cannot be told", "note")
        elif needed > free:
            way_out = "use a smaller dtype, such as --dtype bfloat16, another device, or smaller models"
            yield Finding(f"memory of {device}", f"{said}, but {size(free)} are free: {way_out}", "wrong")
        else:
            yield Finding(f"memory of {device}", f"{said}, and {size(free)} are free (caches of answers come on top)")
