"""Members of all kinds in one ensemble answer as the same models do in this process."""

import pytest
import torch
from fake_model_server import Fault, Model, serving

from deepen_core import Ensemble, MemberConfig
from deepen_core.config import member_config
from deepen_core.config.named_ensembles import ensemble_options
from deepen_core.errors import ConfigurationError

pytest.importorskip("xllamacpp", reason="members that are GGUF files need the extra gguf")

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

PROMPTS = ["The quick brown fox", "def mean(values):\n    total", "Der Hund"]


@pytest.fixture(scope="module")
def server(folders):
    with serving("llama.cpp", Model(folders["gamma"])) as running:
        yield running


@pytest.fixture
def mixed(gguf_files, folders, server):
    """A GGUF file, a folder, and a server, as an entry of each form."""
    far = {"url": server.url, "top_k": 10_000}  # more tokens than it has
    gamma = {"model": str(folders["gamma"]), "server": far}
    return [str(gguf_files["beta"]), MemberConfig(model=str(folders["alpha"])), gamma]


def close(one, other):
    found, wanted = ([token.logprob for token in answer.logprobs] for answer in (one, other))
    torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), atol=1e-4, rtol=0)


@pytest.mark.parametrize("fusion", ["deepen", "product", "union", "bytes"])
@pytest.mark.parametrize("main", [0, 1, 2])
def test_answers_are_those_of_folders(mixed, load, fusion, main):
    options = {"fusion": fusion, "main": main, "weights": "static" if fusion == "union" else "adaptive"}
    asked = {"max_new_tokens": 12, "logprobs": 2}
    with (
        Ensemble.load(mixed, device="cpu", progress=False, **options) as anywhere,
        load("beta", "alpha", "gamma", **options) as here,
    ):
        for own, its in zip(here.generate(PROMPTS, **asked), anywhere.generate(PROMPTS, **asked), strict=True):
            assert its.token_ids == own.token_ids
            close(its, own)


def test_a_server_that_is_gone_is_dropped_and_the_others_go_on(mixed, server, load):
    with Ensemble.load(mixed, device="cpu", progress=False, fusion="product", on_member_error="drop") as anywhere:
        assert anywhere.info.weight_policy == "adaptive", "a prompt takes a request for each token"
        server.fault = Fault("close", on=True)
        answer = anywhere.generate(PROMPTS[0], max_new_tokens=8, logprobs=1)
        server.fault = None
        assert any("was dropped from token 1" in warning for warning in answer.warnings)
    with load("beta", "alpha", fusion="product", weights="adaptive") as here:
        own = here.generate(PROMPTS[0], max_new_tokens=8, logprobs=1)
    assert answer.token_ids == own.token_ids
    close(answer, own)


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"model": "a/b"}, "transformers"),
        ({"model": "a/b.gguf"}, "gguf"),
        ({"model": "a/b.GGUF"}, "gguf"),
        ({"model": "a/b", "kind": "gguf"}, "gguf"),
        ({"model": "a/b.gguf", "kind": "transformers"}, "transformers"),
        ({"model": "a/b", "server": "http://localhost:1"}, "server"),
        ({"model": "a/b.gguf", "server": "http://localhost:1"}, "server"),
    ],
)
def test_the_kind_of_a_member(given, kind):
    config = MemberConfig(**given)
    assert config.loaded_as == kind
    assert MemberConfig(**config.model_dump()) == config


@pytest.mark.parametrize("kind", ["transformers", "gguf"])
def test_a_server_is_no_other_kind(kind):
    with pytest.raises(ConfigurationError, match=f"Kind is '{kind}', and server is given"):
        MemberConfig.parse({"model": "a", "kind": kind, "server": "http://localhost:1"}, ConfigurationError)


def test_the_file_of_the_page_is_one_ensemble(request, tmp_path):
    page = (request.config.rootpath / "docs" / "anywhere.md").read_text()
    file = tmp_path / "members.yaml"
    file.write_text(page.split("```yaml")[1].split("```")[0])
    options = ensemble_options(file)
    members = [member_config(entry) for entry in options["models"]]
    assert [member.loaded_as for member in members] == ["gguf", "transformers", "transformers", "server"]
    assert [member.ray is not None for member in members] == [False, False, True, False]
    assert options["on_member_error"] == "drop"
