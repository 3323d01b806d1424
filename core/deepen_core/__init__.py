"""The engine: runs several local language models as one.

Importing this package imports neither torch nor transformers; the first use of `Ensemble` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deepen_core.config import FusionConfig, MemberConfig, SamplingParams
from deepen_core.errors import DeepenError
from deepen_core.results import Chunk, EnsembleInfo, Generation, Score

if TYPE_CHECKING:
    from deepen_core.engine.handle import Handle
    from deepen_core.ensemble import Ensemble

    __version__: str

__all__ = [
    "Chunk",
    "DeepenError",
    "Ensemble",
    "EnsembleInfo",
    "FusionConfig",
    "Generation",
    "Handle",
    "MemberConfig",
    "SamplingParams",
    "Score",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name == "Ensemble":
        from deepen_core.ensemble import Ensemble  # noqa: PLC0415  torch is loaded here, not before

        return Ensemble
    if name == "Handle":
        from deepen_core.engine.handle import Handle  # noqa: PLC0415  as above

        return Handle
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415  only an installed distribution has a version

        return version("deepen-integrations")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
