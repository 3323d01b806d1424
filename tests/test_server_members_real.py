"""Members behind llama.cpp's own server, of a tiny GGUF file."""

import pytest
import torch

from deepen_core import Ensemble, MemberConfig
from deepen_core.config import ServerConfig

pytest.importorskip("xllamacpp", reason="llama.cpp's server is not installed: pip install xllamacpp")
pytest.importorskip("gguf", reason="GGUF files cannot be written: pip install gguf")
tiny_gguf = pytest.importorskip("tiny_gguf", reason="the tests have no tiny GGUF files")

from benchmarks.server_members import served  # noqa: E402 (after what it needs)

pytestmark = [pytest.mark.slow, pytest.mark.allow_hosts(["127.0.0.1"])]

ALL = 10_000
PROMPTS = ["The quick brown fox", "def mean(values):\n    total", "Der Hund schläft"]


@pytest.fixture(scope="module")
def url(folders, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "beta.gguf"
    tiny_gguf.save_gguf(folders["beta"], path)
    with served(path, window=256) as address:
        yield address


def test_it_answers_as_the_model_in_this_process(url, folders, load):
    member = MemberConfig(model=str(folders["beta"]), server=ServerConfig(url=url, top_k=ALL))
    for fusion, weights in (("union", "static"), ("bytes", "adaptive")):  # by default, others without a server
        given = {"fusion": fusion, "weights": weights}
        with (
            Ensemble.load([folders["alpha"], member], **given, device="cpu", progress=False) as remote,
            load("alpha", "beta", **given) as local,
        ):
            own, its = (ens.generate(PROMPTS, max_new_tokens=16, logprobs=1) for ens in (local, remote))
            for one, other in zip(own, its, strict=True):
                assert other.token_ids == one.token_ids
                both = (torch.tensor([token.logprob for token in answer.logprobs]) for answer in (other, one))
                torch.testing.assert_close(*both, atol=1e-4, rtol=0)
            work = remote._engine.members[1].work
            assert work.ids_rerun < 10
