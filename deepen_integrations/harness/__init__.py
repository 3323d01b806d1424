"""DeePEn ensembles as a model of lm-evaluation-harness; importing this registers it there as `deepen`."""

from deepen_integrations.extras import require

require("lm_eval", extra="eval")

from deepen_integrations.harness.model import DeepenHarnessLM  # noqa: E402 (the error for a missing extra comes first)

__all__ = ["DeepenHarnessLM"]
