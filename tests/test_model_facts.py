"""What the adapters know of models before these are loaded."""

import json

import pytest
from fixtures_adapters import ask

from deepen_core.config import MemberConfig
from deepen_core.errors import ModelFilesError


def member(folder, config, **tokenizer):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return folder


def test_mains_window_and_templates_are_read_from_files(adapter, loads, tmp_path):
    small = member(tmp_path / "small", {"n_positions": 300}, chat_template="{{ messages }}")
    large = member(tmp_path / "large", {"text_config": {"max_position_embeddings": 4096}}, model_max_length=99)
    llm = adapter(models=[large, small])
    facts = llm.facts
    assert (facts.main_window, facts.has_chat_template, facts.without_template) == (4096, False, ("large",))
    assert adapter(models=[large, small], max_context_window=500).facts.main_window == 500
    capped = [MemberConfig(model=str(large), name="one", weight=0, context_window=700), MemberConfig(model=str(small))]
    assert adapter(models=capped, main="one").facts.main_window == 700
    talking = adapter(models=capped, main=-1).facts  # the other does not take part
    assert (talking.main_window, talking.has_chat_template, talking.without_template) == (300, True, ())
    (large / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    assert adapter(models=[small, large], main=1).facts.has_chat_template
    assert llm.model_name == "large+small"
    assert not loads
    assert ask(llm)
    assert (llm.facts.main_window, llm.facts.has_chat_template) == (512, False)


@pytest.mark.parametrize(
    ("config", "window"),
    [({"model_type": "gpt2"}, 1024), ({"model_type": "mamba"}, 77), ({"model_type": "nonsense"}, 77)],
)
def test_a_window_that_config_json_does_not_declare(adapter, tmp_path, config, window):
    folder = member(tmp_path / "one", config, model_max_length=77)
    assert adapter(models=[folder]).facts.main_window == window


@pytest.mark.parametrize("model", ["nobody/never-downloaded", "/no/such/folder", "not a hub id!"])
def test_unknown_members_have_no_facts(adapter, model):
    facts = adapter(models=[model]).facts
    assert (facts.main_window, facts.has_chat_template, facts.without_template) == (None, False, ())


def test_a_missing_folder_has_no_budget(adapter):
    with pytest.raises(ModelFilesError, match="There is no folder /no/such/folder"):
        _ = adapter(models=["/no/such/folder"]).budget


def test_damaged_files_have_no_facts(adapter, tmp_path):
    folder = member(tmp_path / "broken", [1, 2])
    (folder / "tokenizer_config.json").write_text("{", encoding="utf-8")
    facts = adapter(models=[folder]).facts
    assert (facts.main_window, facts.without_template) == (None, ())
