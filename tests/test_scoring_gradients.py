"""Scoring runs models without recording what gradients would need: it would hold every layer's states."""

import pytest
import torch

from deepen_core.members.transformers.causal import CausalMember


@pytest.mark.parametrize("prompt", ["The quick brown fox", [{"role": "user", "content": "Where does the fox live?"}]])
@pytest.mark.parametrize("stepwise", [False, True])
def test_scoring_records_no_gradients(load, monkeypatch, prompt, stepwise):
    recorded = []

    def watched(work):
        def run(*given):
            recorded.append(torch.is_grad_enabled())
            return work(*given)

        return run

    for name in ("prefill", "next_logits", "tree_run", "token_logprobs", "prompt_logprobs", "read_ahead"):
        monkeypatch.setattr(CausalMember, name, watched(getattr(CausalMember, name)))
    with load("alpha", "beta") as ensemble:
        if stepwise:
            for member in ensemble._engine.members:
                monkeypatch.setattr(member, "tree_run", lambda _: None)
        ensemble.score(prompt, " jumps over the lazy dog")
    assert recorded
    assert not any(recorded)
