"""Members behind model servers answer as the same model in this process does."""

import pytest
import torch
from fake_model_server import Model, serving

from deepen_core import Ensemble, MemberConfig

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

ALL = 10_000  # more tokens than a tiny model has
PROMPT = "The quick brown fox"


@pytest.fixture(scope="module", params=["llama.cpp", "vllm"])
def server(request, folders):
    """A server of `beta`."""
    with serving(request.param, Model(folders["beta"]), max_logprobs=ALL) as running:
        yield running


@pytest.fixture
def joined(folders):
    """Loads `alpha` from its folder and `beta` from a server."""

    def load(server, **options):
        given = {"fusion": "union", "device": "cpu", "progress": False, **options}
        top_k = given.pop("top_k", ALL)
        member = MemberConfig(model=str(folders["beta"]), server={"url": server.url, "top_k": top_k})
        return Ensemble.load([folders["alpha"], member], **given)

    return load


@pytest.mark.parametrize("fusion", ["union", "product", "bytes"])
@pytest.mark.parametrize("main", [0, 1])
def test_answers_are_those_of_the_model_in_this_process(server, joined, load, fusion, main):
    options = {"fusion": fusion, "main": main}
    with joined(server, **options) as remote, load("alpha", "beta", **options) as local:
        for prompt in (PROMPT, "def mean(values):\n    total", [{"role": "user", "content": "Hallo, wie geht's?"}]):
            own, its = (ens.generate(prompt, max_new_tokens=24, logprobs=3) for ens in (local, remote))
            assert its.token_ids == own.token_ids
            torch.testing.assert_close(
                torch.tensor([token.logprob for token in its.logprobs]),
                torch.tensor([token.logprob for token in own.logprobs]),
                atol=1e-4,
                rtol=0,
            )
