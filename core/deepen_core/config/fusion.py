"""The fusion strategies by name, and the options of each.

To add a strategy, define its options here, add a line to `PRESETS`, and put its code into `deepen_core.fusion`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from deepen_core.config.base import Options
from deepen_core.errors import ConfigurationError

SearchName = Literal["em", "adamw"]


class StrategyOptions(Options):
    """The options of a strategy."""

    strategy: str
    """The strategy's name."""

    @property
    @abstractmethod
    def implementation(self) -> str:
        """`module:class` of the strategy, a `deepen_core.fusion.base.Fusion`; imported when an ensemble needs it."""
        ...

    @property
    def label(self) -> str:
        """The name of the preset with exactly these options, or "custom (...)"."""
        known = (name for name, preset in PRESETS.items() if preset == self)
        return next(known, f"custom ({self.strategy})")


class FusionConfig(StrategyOptions):
    """How `"deepen"` and `"deepen-paper"` average distributions in the relative space, and find the way back.

    By default rows are sharp: a shared token is represented by itself alone, so the average and the way back have a
    closed form. Options of soft rows, from `search` on, make rows soft when they are given.
    """

    strategy: Literal["deepen"] = "deepen"
    rows: Literal["sharp", "soft"] = "sharp"
    """Rows of the relative space: "sharp", each shared token by itself, or "soft", by its similarity to all shared
    tokens as the paper has it, which needs embeddings, a calibration and a search in every step."""
    power: float = Field(default=0.5, gt=0.0, le=1.0)
    """With sharp rows, the exponent `r` of the mean `(sum_i w_i c_i^r)^(1/r)`: 1 is the weighted average; the nearer to
    0, the more must members agree, as in "product"."""
    healing: bool = True
    """Token healing: where main's tokens are shorter than a member's, the probability of its longer tokens goes to what
    remains of them; and a member cannot lead main into a text that main's own tokens have ruled out."""
    search: SearchName = "em"
    """Search for the way back from the relative space: "em", or the paper's "adamw"."""
    temperature: float | Literal["auto"] = "auto"
    """Sharpness of the relative rows; "auto" calibrates it per member to `target_self_mass`."""
    target_self_mass: float = Field(default=0.9, gt=0.0, lt=1.0)
    """With `temperature="auto"`: the median share of an anchor's row that stays on the anchor."""
    unshared: Literal["prefix", "embedding"] = "prefix"
    """The anchors of a token that is not an anchor itself: the longest one that it begins with, or, as in the paper,
    those that its embedding is near to."""
    steps: int = Field(default=5, ge=1, le=1000)
    """Iterations of the search."""
    trust_radius: float = Field(default=0.15, gt=0.0, allow_inf_nan=False)
    """The paper's learning rate, for "adamw": a logit moves at most about 4.5 times this in 5 steps."""
    candidates: int = Field(default=512, ge=8)
    """Maximum number of a member's tokens with a row of their own in a step; all others go with their column."""
    images: int = Field(default=64, ge=0)
    """Number of another member's most probable tokens whose counterparts in main's vocabulary become candidates too."""
    row_entries: int = Field(default=16, ge=1)
    """Entries kept of a relative row; the mass below them is spread as in the mean row."""
    row_floor: float | None = Field(default=None, ge=0.0, le=1.0)
    """Less probable tokens are not candidates by themselves. By default 1e-3, or 1e-4 where other tokens could not
    follow the average: with "adamw", or with tokens that go by their embedding."""
    exact: bool = False
    """Use whole matrices (vocabulary x anchors, held in memory) instead of candidates and sparse rows."""

    @property
    def implementation(self) -> str:
        """See `StrategyOptions.implementation`; the code of soft rows is loaded only for them."""
        sharp = "deepen_core.fusion.deepen.sharp_fusion:SharpFusion"
        return sharp if self.rows == "sharp" else "deepen_core.fusion.deepen.strategy:DeepenStrategy"

    @property
    def floor(self) -> float:
        """`row_floor`, or its default for this search."""
        if self.row_floor is not None:
            return self.row_floor
        return 1e-3 if (self.search, self.unshared) == ("em", "prefix") else 1e-4

    @field_validator("temperature")
    @classmethod
    def _positive(cls, value: float | str) -> float | str:
        if isinstance(value, float) and not 0.0 < value < float("inf"):
            raise ValueError('must be a positive number or "auto"')
        return value

    @model_validator(mode="before")
    @classmethod
    def _soft_if_asked_for(cls, values: Any) -> Any:
        """Rows are soft where options of soft rows are given."""
        asks = isinstance(values, Mapping) and "rows" not in values and not _OF_SOFT_ROWS.isdisjoint(values)
        return {**values, "rows": "soft"} if asks else values

    @model_validator(mode="after")
    def _only_what_counts(self) -> Self:
        """Rejects options that these rows do not have, unless they are at their defaults, as in a dump."""
        of_others = _OF_SOFT_ROWS if self.rows == "sharp" else {"power"}
        wrong = [n for n in of_others if getattr(self, n) != type(self).model_fields[n].default]
        if wrong:
            none, other = " and no ".join(sorted(wrong)), "soft" if self.rows == "sharp" else "sharp"
            raise ValueError(f"with {self.rows} rows there is no {none}: leave it out, or set rows={other!r}")
        return self


_NAMES = list(FusionConfig.model_fields)
_OF_SOFT_ROWS = set(_NAMES[_NAMES.index("search") :])


class ProductConfig(StrategyOptions):
    """How `"product"` multiplies distributions: a weighted geometric mean over shared tokens."""

    strategy: Literal["product"] = "product"
    floor: float = Field(default=0.02, ge=0.0, lt=1.0)
    """Share of main's distribution mixed into every other member's, so that none of them can rule out a token."""
    healing: bool = True
    """See `FusionConfig.healing`."""

    @property
    def implementation(self) -> str:
        """See `StrategyOptions.implementation`."""
        return "deepen_core.fusion.product:ProductFusion"


class UnionConfig(StrategyOptions):
    """How `"union"` averages the members' most probable tokens."""

    strategy: Literal["union"] = "union"
    top_k: int = Field(default=10, ge=1, le=1000)
    """Number of most probable tokens of each member that are averaged; all other tokens keep main's probability."""

    @property
    def implementation(self) -> str:
        """See `StrategyOptions.implementation`."""
        return "deepen_core.fusion.union:UnionFusion"


class TranslateConfig(StrategyOptions):
    """How `"translate"` averages distributions that are translated to main's tokens."""

    strategy: Literal["translate"] = "translate"
    by_uncertainty: bool = True
    """Whether members that are sure of the next token count for more, `w_i ~ s_i exp(-H_i)`: s_i is the member's given
    weight, and H_i the entropy of its translated distribution in nats."""

    @property
    def implementation(self) -> str:
        """See `StrategyOptions.implementation`."""
        return "deepen_core.fusion.translate:TranslateFusion"


class BytesConfig(StrategyOptions):
    """How `"bytes"` fuses what members say of the bytes that follow, whatever their tokens."""

    strategy: Literal["bytes"] = "bytes"
    mode: Literal["product", "mixture"] = "product"
    """The mean of the members' distributions: "product", the weighted geometric mean, or "mixture", the weighted
    average."""
    floor: float = Field(default=0.02, ge=0.0, lt=1.0)
    """With "product": see `ProductConfig.floor`."""
    healing: bool = True
    """Whether a member counts with what it would have said instead of its last tokens, see `FusionConfig.healing`."""

    @property
    def implementation(self) -> str:
        """See `StrategyOptions.implementation`."""
        return "deepen_core.fusion.bytes.strategy:BytesFusion"


class AutoConfig(StrategyOptions):
    """`"auto"`: the strategy for the members at hand, by the lengths of their tokens, see `deepen_core.fusion.auto`."""

    strategy: Literal["auto"] = "auto"

    @property
    def implementation(self) -> str:
        """See `StrategyOptions.implementation`."""
        return "deepen_core.fusion.auto:AutoFusion"


PRESETS: dict[str, StrategyOptions] = {
    "deepen": FusionConfig(),
    "deepen-paper": FusionConfig(
        rows="soft",
        search="adamw",
        temperature=100.0,
        unshared="embedding",
        healing=False,
        trust_radius=0.15,
        steps=5,
        row_entries=64,  # its rows are less sharp, and the search amplifies small differences
    ),
    "product": ProductConfig(),
    "union": UnionConfig(),
    "translate": TranslateConfig(),
    "bytes": BytesConfig(),
    "auto": AutoConfig(),
}
"""The options that each name given as `fusion=` stands for."""


def resolve_fusion(fusion: str | StrategyOptions | Mapping[str, Any]) -> StrategyOptions:
    """Resolves the name of a preset, options, or their fields.

    Args:
        fusion: Given as fields, `strategy` names the preset whose options they replace; "deepen" by default.

    Raises:
        ConfigurationError: For an unknown name or field.
    """
    if isinstance(fusion, StrategyOptions):
        return fusion
    if isinstance(fusion, str):
        return _preset(fusion)
    if not isinstance(fusion, Mapping):
        raise ConfigurationError(
            f"fusion is a {type(fusion).__name__}: pass a name, a FusionConfig (or ProductConfig, ...) or its fields."
        )
    fields = dict(fusion)
    preset = _preset(fields.pop("strategy", "deepen"))
    values = {**preset.model_dump(exclude_unset=True), **fields}
    config: StrategyOptions = type(preset).parse(values, ConfigurationError)
    return config


def _preset(name: Any) -> StrategyOptions:
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigurationError(
            f"Unknown fusion {name!r}: choose {' or '.join(map(repr, PRESETS))}, or pass a FusionConfig."
        )
    return PRESETS[name]
