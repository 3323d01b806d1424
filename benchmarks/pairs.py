"""Which real models go well together: what `Ensemble.info` reports of each pair of model folders.

Run with `python -m benchmarks.pairs --models FOLDER`; every folder in it with a config.json is a model. Nothing is
generated, so it takes seconds a pair. Then `python -m benchmarks.page` writes the tables of `docs/models.md`.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

from benchmarks.given_text import MODELS, opened
from benchmarks.report import publish
from deepen_core import Ensemble
from deepen_core.fusion.anchors.shared_tokens import common_tokens
from deepen_core.fusion.diagnostics import unshared_share
from deepen_core.results import MemberInfo

_MIB = 2**20


def of_model(member: MemberInfo) -> dict[str, Any]:
    """One line of the table of models."""
    return {
        "model": MODELS.get(member.name, member.name),
        "architecture": member.architecture,
        "parameters": member.parameters,
        "bfloat16 MiB": member.parameters * 2 / _MIB,
        "float32 MiB": member.parameters * 4 / _MIB,
        "vocabulary": member.vocabulary_size,
        "bytes per token": member.bytes_per_token,
        "context window": member.context_window,
        "chat template": "yes" if member.has_chat_template else "no",
        "batches": member.batching,
    }


def of_pair(ensemble: Ensemble) -> dict[str, Any]:
    """One line of the table of pairs: tokens that both have, and how much of a sample text is in them."""
    info = ensemble.info
    first, second = info.members
    members = ensemble._engine.members
    shared = set(common_tokens([member.tokenizer.vocabulary for member in members]))
    lengths = first.bytes_per_token, second.bytes_per_token
    sizes = first.parameters, second.parameters
    return {
        "pair": f"{first.name} + {second.name}",
        "shared tokens": info.anchors,
        **{
            f"{place} not shared": unshared_share(member, shared)
            for place, member in zip(("first", "second"), members, strict=True)
        },
        "length ratio": max(lengths) / min(lengths),
        "size ratio": max(sizes) / min(sizes),
        "fusion MiB": info.bytes_held / _MIB,
        "warnings": len(info.warnings),
    }


def measured(folder: Path, dtype: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The table of models and the table of pairs, from the folders of models in a folder."""
    names = sorted(path.parent.name for path in folder.glob("*/config.json"))
    models: dict[str, Mapping[str, Any]] = {}
    pairs = []
    for pair in combinations(names, 2):
        with opened(folder, pair, dtype) as ensemble:
            pairs.append(of_pair(ensemble))
            models |= {member.name: of_model(member) for member in ensemble.info.members}
    return [dict(models[name]) for name in names], pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--models", type=Path, required=True, help="a folder of model folders, two or more")
    parser.add_argument("--dtype", default="bfloat16", help="of all members")
    options = parser.parse_args()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        models, pairs = measured(options.models, options.dtype)
    publish("pairs", "Pairs of real models", pairs, models=models)


if __name__ == "__main__":
    main()
