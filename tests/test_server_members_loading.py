"""A member's server is tried before anything heavy is loaded; its errors say what to do, and never its key."""

import gc
import logging
import pickle
import shutil
import socket
import threading
import time

import pytest
import yaml
from cli_parts import run
from fake_model_server import KEY, Model, serving

import deepen_integrations.langchain as langchain
import deepen_integrations.llama_index as llama_index
from deepen_core import Ensemble, MemberConfig
from deepen_core.config import ServerConfig
from deepen_core.errors import CompatibilityWarning, ConfigurationError, ModelFilesError, TokenizerError
from deepen_core.members.loading import describe_member, member_configs

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

PROMPT = "The quick brown fox"


@pytest.fixture(scope="module")
def model(folders):
    return Model(folders["beta"])


@pytest.fixture(params=["llama.cpp", "vllm"])
def server(request, model):
    with serving(request.param, model, key=KEY, max_logprobs=1000) as running:
        yield running


@pytest.fixture(scope="module")
def open_server(model):
    """A server without a key."""
    with serving("llama.cpp", model) as running:
        yield running


@pytest.fixture
def text_folder(tmp_path, folders):
    """The folder of a model without its weights."""
    return shutil.copytree(folders["beta"], tmp_path / "beta", ignore=shutil.ignore_patterns("*.safetensors"))


@pytest.fixture
def member(text_folder):
    def configured(server, **options):
        url = server if isinstance(server, str) else server.url
        return MemberConfig(model=str(text_folder), server={"url": url, "api_key": KEY, **options})

    return configured


def test_no_weights_are_asked_for(server, member):
    with Ensemble.load([member(server)], fusion="union", progress=False) as ensemble:
        assert ensemble.generate(PROMPT, max_new_tokens=2).usage.completion_tokens
        info = ensemble.info.members[0]
        assert ensemble.has_chat_template
    assert server.url in info.elsewhere.place
    assert server.url not in info.architecture
    assert info.elsewhere.top_k == 512
    assert info.elsewhere.bytes_sent > 0 < info.elsewhere.bytes_received
    assert info.context_window == 255  # of 256: a server needs room for one more token
    assert info.stop_tokens


def test_the_key_is_sent_and_shown_nowhere(server, member, caplog):
    config = member(server)
    with caplog.at_level(logging.DEBUG), Ensemble.load([config], fusion="union", progress=False) as ensemble:
        info = ensemble.info
    assert server.headers_seen["authorization"] == f"Bearer {KEY}"
    wrong = member_configs([config.model_copy(update={"server": ServerConfig(url=server.url, api_key="sk-other-2")})])
    with pytest.raises(ConfigurationError) as caught:
        describe_member(wrong[0], None, None, progress=False)
    shown = [repr(config), config.model_dump_json(), repr(info), caplog.text, str(caught.value)]
    assert all(KEY not in text and "sk-other" not in text for text in shown)
    assert "It needs another key" in str(caught.value)


def test_the_key_may_be_in_the_environment(server, text_folder, monkeypatch):
    config = member_configs([{"model": str(text_folder), "server": server.url}])[0]
    with pytest.raises(ConfigurationError, match="It needs another key"):
        describe_member(config, None, None, progress=False)
    monkeypatch.setenv("DEEPEN_SERVER_KEY", KEY)
    describe_member(config, None, None, progress=False)
    monkeypatch.setenv("DEEPEN_SERVER_KEY", "sk-secret\n1")
    with pytest.raises(ConfigurationError, match="letters, digits and signs") as caught:
        describe_member(config, None, None, progress=False)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://mira:sk-secret@localhost:8080", "http://sk-secret@localhost", "https://:sk-secret@h/v1"]
)
def test_a_password_in_an_address_is_not_shown(url):
    with pytest.raises(ConfigurationError, match="give api_key instead") as caught:
        member_configs([{"model": "a", "server": url}])
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigurationError) as caught:
        member_configs([{"model": "a", "server": {"url": "http://h", "api_key": "sk-secret ü"}}])
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"server": "localhost:8080"}, "give an address such as"),
        ({"server": "ftp://localhost"}, "give an address such as"),
        ({"server": "http://localhost:80800"}, "it is not an address"),
        ({"server": "http://localhost/?a=b"}, "no \\? and no #"),
        ({"server": {"url": "http://h", "top_k": 0}}, "greater than or equal to 1"),
        ({"server": {"url": "http://h", "timeout": 0}}, "greater than 0"),
        ({"server": {"url": "http://h", "topk": 4}}, "Unknown option 'server.topk'"),
        ({"server": {"url": "http://h", "api": "tgi"}}, "'llama.cpp' or 'vllm'"),
        ({"server": "http://h", "device": "cpu"}, "Device cannot be set with server"),
        ({"server": "http://h", "dtype": "float32", "adapter": "x"}, "Dtype and adapter cannot be set with server"),
        ({"kind": "server"}, "server is not given"),
        ({"server": "http://h", "kind": "transformers"}, "server is given"),
    ],
)
def test_wrong_options(options, said):
    with pytest.raises(ConfigurationError, match=said):
        member_configs([{"model": "a", **options}])


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://localhost:8000/v1", "http://localhost:8000"),
        ("https://h/models/a/", "https://h/models/a"),
        (" http://[::1]:8080 ", "http://[::1]:8080"),
    ],
)
def test_addresses(given, url):
    config = member_configs([{"model": "a", "server": given}])[0]
    assert (config.loaded_as, config.server.url) == ("server", url)
    assert pickle.loads(pickle.dumps(config)) == config
    assert len({config, config.model_copy()}) == 1


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def test_a_server_that_is_not_there(member, refused):
    error = refused(member(f"http://127.0.0.1:{free_port()}"), ConfigurationError)
    assert "no reply from http://127.0.0.1:" in str(error)
    assert "Start it, or correct its address" in str(error)


@pytest.mark.parametrize("api", ["llama.cpp", "vllm"])
def test_a_server_that_is_loading(model, member, refused, api):
    with serving(api, model, key=KEY, status=503) as server:
        error = refused(member(server), ConfigurationError)
    assert "wait until its /health is ok" in str(error)


def test_a_server_that_needs_a_key(server, text_folder, refused):
    error = refused(MemberConfig(model=str(text_folder), server=server.url), ConfigurationError)
    assert "status 401" in str(error)
    assert "give its api_key" in str(error)


@pytest.mark.parametrize(("api", "other"), [("llama.cpp", "vllm"), ("vllm", "llama.cpp")])
def test_a_server_of_another_kind_than_is_said(model, member, refused, api, other):
    with serving(api, model, key=KEY) as server:
        error = refused(member(server, api=other), ConfigurationError)
    assert f"{server.url}" in str(error)


def test_a_server_that_is_none_of_the_known(model, member, refused, monkeypatch):
    monkeypatch.setattr("fake_model_server.LlamaCpp.routes", {})
    with serving("llama.cpp", model, key=KEY) as server:
        error = refused(member(server), ConfigurationError)
    assert "status 404" in str(error)
    assert "of a llama.cpp or vLLM server" in str(error)


def test_a_model_that_a_vllm_server_does_not_have(model, member, refused):
    with serving("vllm", model, key=KEY, max_logprobs=1000) as server:
        error = refused(member(server, model="other"), ConfigurationError)
        assert "it has no model 'other', but tiny, lora" in str(error)
        assert describe_member(member_configs([member(server, model="tiny")])[0], None, None, progress=False)


@pytest.mark.parametrize("name", ["gamma", "alpha", "wordpiece"])
def test_another_tokenizer_is_refused_with_the_first_text_and_both_ids(open_server, folders, refused, name):
    error = refused(MemberConfig(model=str(folders[name]), server=open_server.url), TokenizerError)
    assert str(folders[name]) in str(error)
    assert f"is not that of {open_server.url} (tiny): 'a' is [" in str(error)
    assert " here and [" in str(error)


def test_a_tokenizer_with_more_tokens_than_the_model_has(folders, text_folder, model, refused):
    with serving("llama.cpp", model) as server:
        server.model.size, size = 100, server.model.size
        try:
            error = refused(MemberConfig(model=str(text_folder), server=server.url), TokenizerError)
        finally:
            server.model.size = size
    assert "gives probabilities of 100" in str(error)


def test_a_server_with_few_probabilities_is_warned_about(model, member):
    with serving("vllm", model, key=KEY, max_logprobs=20) as server:
        with pytest.warns(CompatibilityWarning, match="20 tokens at most, and 512 were asked for.*--max-logprobs 512"):
            described = describe_member(member_configs([member(server)])[0], None, None, progress=False)
        assert described.top_k == 20
        assert described.load(progress=False).describe().elsewhere.top_k == 20


def test_strategies_that_need_embeddings_refuse_it_before_weights_are_read(
    open_server, folders, text_folder, weights_read
):
    models = [folders["alpha"], MemberConfig(model=str(text_folder), server=open_server.url)]
    with pytest.raises(ConfigurationError, match=r"'beta' has no embeddings.*fusion='bytes', fusion='union'"):
        Ensemble.load(models, fusion="deepen-paper", device="cpu", progress=False)
    assert weights_read == []


@pytest.mark.parametrize(("missing", "said"), [("config.json", "config.json"), ("tokenizer.json", "no tokenizer")])
def test_a_folder_without_a_tokenizer_or_a_configuration(open_server, text_folder, missing, said):
    (text_folder / missing).unlink()
    config = member_configs([{"model": str(text_folder), "server": open_server.url}])[0]
    with pytest.raises(ModelFilesError, match=said):
        describe_member(config, None, None, progress=False)


def test_a_model_that_transformers_does_not_know(open_server, text_folder):
    (text_folder / "config.json").write_text('{"model_type": "of-tomorrow", "architectures": ["Tomorrow"]}')
    config = member_configs([{"model": str(text_folder), "server": open_server.url}])[0]
    described = describe_member(config, None, None, progress=False)
    assert described.architecture == "Tomorrow"
    assert described.load(progress=False).describe().elsewhere.place == f"llama.cpp at {open_server.url}"
    assert described.context_window == open_server.model.window - 1


def test_an_encoder_decoder_model_has_no_server(seq2seq_folders):
    folder = next(iter(seq2seq_folders.values()))
    config = member_configs([{"model": str(folder), "server": "http://127.0.0.1:9"}])[0]
    with pytest.raises(ConfigurationError, match=r"is an encoder-decoder model .* which no server runs"):
        describe_member(config, None, None, progress=False)


def test_a_yaml_file_names_it(open_server, folders, text_folder, tmp_path):
    member = {"model": str(text_folder), "server": {"url": open_server.url, "top_k": 100}}
    path = tmp_path / "pair.yaml"
    path.write_text(yaml.safe_dump({"models": [str(folders["alpha"]), member], "fusion": "union"}))
    with Ensemble.from_config(path, progress=False) as ensemble:
        assert ensemble.info.members[1].elsewhere.top_k == 100
    plain = {"models": [{**member, "server": open_server.url}], "fusion": "union"}
    with Ensemble.from_config(plain, progress=False) as ensemble:
        assert ensemble.info.members[0].elsewhere.top_k == 512


def test_the_command_line_names_it(open_server, folders, text_folder):
    members = ["-m", str(folders["alpha"]), "-m", str(text_folder)]
    answer = run(
        "generate",
        PROMPT,
        *members,
        "--server",
        f"beta={open_server.url}",
        "--fusion",
        "union",
        "--max-new-tokens",
        "2",
    )
    assert answer.exit_code == 0, answer.output
    wrong = run("generate", PROMPT, *members, "--server", f"gamma={open_server.url}")
    assert wrong.exit_code == 2
    assert "MEMBER=URL" in wrong.output


def test_doctor_says_where_it_is(open_server, text_folder, tmp_path):
    path = tmp_path / "one.yaml"
    path.write_text(yaml.safe_dump({"models": [{"model": str(text_folder), "server": open_server.url}]}))
    result = run("doctor", "-e", str(path), "--try")
    said = " ".join(result.output.split())
    assert f"on the server at {open_server.url}" in said
    assert "on its server, 4 sequences at a time" in said


@pytest.mark.parametrize("adapter", [langchain.DeepenLLM, llama_index.DeepenLLM])
def test_the_adapters_take_it_and_are_pickled(open_server, folders, text_folder, adapter):
    member = MemberConfig(model=str(text_folder), server={"url": open_server.url, "api_key": "sk-any"})
    llm = adapter(models=[str(folders["alpha"]), member], fusion="union", device="cpu", max_new_tokens=2)
    assert "sk-any" not in repr(llm)
    again = pickle.loads(pickle.dumps(llm))
    ask = "invoke" if adapter is langchain.DeepenLLM else "complete"
    assert str(getattr(again, ask)(PROMPT)) == str(getattr(llm, ask)(PROMPT))
    assert open_server.headers_seen["authorization"] == "Bearer sk-any"


def test_its_thread_and_connections_end_with_the_ensemble(model, text_folder):
    def threads(server):
        return [thread for thread in threading.enumerate() if thread.name == f"deepen-server-{server.url}"]

    with serving("llama.cpp", model) as server:
        config = MemberConfig(model=str(text_folder), server=server.url)
        with Ensemble.load([config], fusion="union", progress=False) as ensemble:
            ensemble.generate(PROMPT, max_new_tokens=2)
            assert len(threads(server)) == 1
        del ensemble
        gc.collect()
        until = time.monotonic() + 10
        while threads(server):
            assert time.monotonic() < until
            time.sleep(0.01)
