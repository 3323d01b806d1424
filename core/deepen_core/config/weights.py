"""Names of the policies that weigh members."""

from __future__ import annotations

POLICIES: dict[str, str] = {
    "static": "deepen_core.fusion.policies:StaticWeights",
    "adaptive": "deepen_core.fusion.adaptive_weights:AdaptiveWeights",
    "confidence": "deepen_core.fusion.policies:ConfidenceWeights",
    "consistency": "deepen_core.fusion.policies:ConsistencyWeights",
    "perplexity": "deepen_core.fusion.policies:PerplexityWeights",
    "context": "deepen_core.fusion.context_weights:ContextWeights",
}
"""`module:class` of each policy that takes the members' shares; imported when an ensemble needs it."""
