"""What a member is given in place of its own: a tokenizer, a chat template, arguments of `transformers`' loader."""

import shutil

import pytest

from deepen_core import Ensemble, MemberConfig
from deepen_core.errors import ChatTemplateError, ConfigurationError, ModelFilesError
from deepen_integrations.langchain import ChatDeepen
from deepen_integrations.load_options import LoadOptions
from deepen_integrations.model_facts import facts_from_files

TEMPLATE = "{{ bos_token }}{% for message in messages %}Q: {{ message.content }}\n{% endfor %}A:"
THINKING = TEMPLATE + "{% if enable_thinking is false %}<think></think>{% endif %}"
ASKED = [{"role": "user", "content": "one two"}]


def opened(**fields):
    return Ensemble.load([MemberConfig(**fields)], device="cpu", progress=False)


@pytest.mark.parametrize("as_file", [False, True])
def test_a_chat_template_replaces_the_models(folders, tmp_path, as_file):
    file = tmp_path / "mine.jinja"
    file.write_text(TEMPLATE, encoding="utf-8")
    given = str(file) if as_file else TEMPLATE
    plain, chat = folders["gamma"], folders["alpha"]  # one has no template of its own
    for folder in (plain, chat):
        with opened(model=str(folder), chat_template=given) as ensemble:
            expected = ensemble.generate("Q: one two\nA:", max_new_tokens=6, ignore_eos=True)
            assert ensemble.generate(ASKED, max_new_tokens=6, ignore_eos=True).token_ids == expected.token_ids
            assert ensemble.has_chat_template


def test_facts_are_those_of_the_template_that_is_given(folders):
    def facts(**fields):
        return facts_from_files(LoadOptions(models=[MemberConfig(model=str(folders["gamma"]), **fields)]))

    assert facts().without_template == ("gamma",)
    assert facts(chat_template=TEMPLATE).has_chat_template
    assert not facts(chat_template=TEMPLATE).thinks
    assert facts(chat_template=THINKING).thinks
    assert facts(tokenizer=str(folders["alpha"])).has_chat_template
    with pytest.raises(ChatTemplateError, match=r"or MemberConfig\(chat_template=\.\.\.\)"):
        ChatDeepen(models=[str(folders["gamma"])])


def test_a_template_file_that_is_not_there_is_told_before_anything_is_loaded(folders):
    with pytest.raises(ModelFilesError, match=r"The chat template ./no/such\.jinja. cannot be read"):
        opened(model=str(folders["alpha"]), chat_template="/no/such.jinja")
    options = LoadOptions(models=[MemberConfig(model=str(folders["alpha"]), chat_template="/no/such.jinja")])
    assert facts_from_files(options).main_window == 256


def test_a_tokenizer_of_another_folder(folders, tmp_path):
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        if (folders["alpha"] / name).is_file():
            shutil.copy(folders["alpha"] / name, tokenizer)
    bare = tmp_path / "bare"
    shutil.copytree(folders["alpha"], bare)
    (bare / "chat_template.jinja").unlink(missing_ok=True)
    for file in bare.glob("*token*"):
        file.unlink()
    with opened(model=str(folders["alpha"])) as own, opened(model=str(bare), tokenizer=str(tokenizer)) as other:
        assert other.has_chat_template
        answers = [one.generate(ASKED, max_new_tokens=6, ignore_eos=True).token_ids for one in (own, other)]
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("tokenizer", "problem"),
    [("/no/folder", "There is no folder /no/folder"), ("empty", "has no tokenizer"), ("beta", "embeddings")],
)
def test_a_tokenizer_that_does_not_fit_is_told_before_weights_are_loaded(folders, tmp_path, tokenizer, problem):
    (tmp_path / "empty").mkdir()
    given = {"empty": str(tmp_path / "empty"), "beta": str(folders["beta"])}.get(tokenizer, tokenizer)
    with pytest.raises(ModelFilesError, match=problem):
        opened(model=str(folders["wordpiece"]), tokenizer=given)


def test_arguments_reach_the_loader(folders):
    with opened(model=str(folders["beta"]), model_kwargs={"attn_implementation": "eager"}) as ensemble:
        model = ensemble._engine.members[0].model
        assert model.config._attn_implementation == "eager"
        eager = ensemble.generate("one two", max_new_tokens=8, ignore_eos=True).token_ids
    with opened(model=str(folders["beta"])) as ensemble:
        assert ensemble.generate("one two", max_new_tokens=8, ignore_eos=True).token_ids == eager


@pytest.mark.parametrize("given", [{"typo": 1}, {"attn_implementation": "nonsense"}])
def test_wrong_arguments_are_named(folders, given):
    (name,) = given
    with pytest.raises(ConfigurationError, match=rf"beta cannot be loaded with model_kwargs \({name}\): .*{name}"):
        opened(model=str(folders["beta"]), model_kwargs=given)


@pytest.mark.parametrize("name", ["max_position_embeddings", "num_hidden_layers", "rope_parameters"])
def test_what_is_of_the_configuration_is_refused_before_weights_are_loaded(folders, name):
    """The window, the facts and the budget are read from config.json."""
    with pytest.raises(ConfigurationError, match=f"model_kwargs cannot set {name} of .*beta: .* its config.json"):
        Ensemble.read_budget([MemberConfig(model=str(folders["beta"]), model_kwargs={name: 32})])


@pytest.mark.parametrize("name", ["dtype", "torch_dtype", "token", "variant", "use_safetensors"])
def test_arguments_that_have_another_place_are_refused(name):
    with pytest.raises(ConfigurationError, match=f"model_kwargs.*{name} (has a field|cannot be chosen|is always)"):
        LoadOptions(models=[{"model": "a", "model_kwargs": {name: "auto"}}])


def test_equal_overrides_share_an_ensemble():
    def adapter(**fields):
        return ChatDeepen(models=[MemberConfig(model="/nowhere", **fields)])

    given = {"chat_template": TEMPLATE, "model_kwargs": {"attn_implementation": "eager"}}
    assert adapter(**given)._shared is adapter(**given)._shared
    one, other = ({"a": 1, "b": {"c": 2}}, {"b": {"c": 2}, "a": 1})
    assert hash(MemberConfig(model="a", model_kwargs=one)) == hash(MemberConfig(model="a", model_kwargs=other))
    assert adapter(model_kwargs=one)._shared is adapter(model_kwargs=other)._shared
    assert adapter(**given)._shared is not adapter(**{**given, "model_kwargs": {}})._shared
