"""Thoughts in LangChain: given back from wherever a message has them, switched, and told of in the profile."""

import json

import pytest
from langchain_core.messages import AIMessage, ChatMessage, HumanMessage
from thinking_templates import TEMPLATES

from deepen_core import MemberConfig
from deepen_integrations.langchain import ChatDeepen, DeepenLLM
from deepen_integrations.langchain.messages import chat_messages, plain_messages

ASK = HumanMessage("Where?")
TEXT = {"type": "text", "text": "In Lisbon."}
THOUGHTS = {
    "beside the content": AIMessage("In Lisbon.", additional_kwargs={"reasoning_content": "Lisbon?"}),
    "LangChain": AIMessage([{"type": "reasoning", "reasoning": "Lisbon?"}, TEXT]),
    "in both places": AIMessage(
        [{"type": "reasoning", "reasoning": "Lisbon?"}, TEXT], additional_kwargs={"reasoning_content": "Lisbon?"}
    ),
    "Anthropic": AIMessage([{"type": "thinking", "thinking": "Lisbon?", "signature": "x"}, TEXT]),
    "OpenAI": AIMessage(
        [{"type": "reasoning", "summary": [{"text": "Lis", "type": "summary_text"}, {"text": "bon?"}]}, TEXT]
    ),
    "other class": ChatMessage("In Lisbon.", role="ai", additional_kwargs={"reasoning_content": "Lisbon?"}),
}


@pytest.mark.parametrize("where", THOUGHTS)
@pytest.mark.parametrize("read", [chat_messages, plain_messages])
def test_thoughts_are_given_back_from_wherever_they_are(where, read):
    told = {"role": "assistant", "content": "In Lisbon.", "reasoning_content": "Lisbon?"}
    assert read([ASK, THOUGHTS[where]]) == [{"role": "user", "content": "Where?"}, told]


def test_only_assistants_think():
    for message in (
        HumanMessage("Hi.", additional_kwargs={"reasoning_content": "Hm."}),
        AIMessage("Hi.", additional_kwargs={"reasoning_content": {"text": "Hm."}}),
        AIMessage([{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "Hi."}]),
    ):
        (told,) = chat_messages([message])
        assert told.keys() == {"role", "content"}


def test_the_answer_of_one_call_is_the_history_of_the_next(ensemble):
    ensemble.has_chat_template, ensemble.thinking = True, "opened"
    ensemble.answers["Where?"] = "Lisbon?\n</think>\n\nIn Lisbon."
    for chat in (ChatDeepen.from_ensemble(ensemble), ChatDeepen.from_ensemble(ensemble, output_version="v1")):
        chat.invoke([ASK, chat.invoke([ASK]), ASK])
        told = ensemble.requests[-1][0][1]
        assert told == {"role": "assistant", "content": "In Lisbon.", "reasoning_content": "Lisbon?"}


@pytest.mark.parametrize("model", [ChatDeepen, DeepenLLM])
def test_the_switch_is_an_option_of_models_and_calls(model, ensemble):
    llm = model.from_ensemble(ensemble, reasoning=False)
    llm.invoke("Where?")
    assert ensemble.requests[-1][1].reasoning is False
    llm.bind(reasoning="low").invoke("Where?")
    assert ensemble.requests[-1][1].reasoning == "low"


@pytest.mark.parametrize("place", ["chat_template.jinja", "tokenizer_config.json"])
@pytest.mark.parametrize("name", ["qwen3", "deepseek r1", "gpt-oss", "plain"])
def test_the_profile_says_whether_main_thinks_before_anything_is_loaded(tmp_path, name, place):
    for folder, template in ((tmp_path / "main", TEMPLATES[name]), (tmp_path / "other", TEMPLATES["plain"])):
        folder.mkdir()
        text = template if place == "chat_template.jinja" else json.dumps({"chat_template": template})
        (folder / place).write_text(text)
        (folder / "config.json").write_text('{"max_position_embeddings": 8192}')
    folders = [tmp_path / "main", tmp_path / "other"]
    thinks = name != "plain"
    chat = ChatDeepen(models=folders)
    assert chat.profile["reasoning_output"] == thinks
    assert chat.profile["max_output_tokens"] == (4096 if thinks else 256)
    assert ChatDeepen(models=folders[::-1], main=1).profile["reasoning_output"] == thinks
    assert ChatDeepen(models=folders, main="main", reasoning=False).profile["max_output_tokens"] == 256
    assert not ChatDeepen(models=folders, main="other").profile["reasoning_output"]


def test_the_profile_after_loading_is_that_of_the_ensemble(ensemble):
    assert not ChatDeepen.from_ensemble(ensemble).profile["reasoning_output"]
    ensemble.thinking = "optional"
    assert ChatDeepen.from_ensemble(ensemble).profile["reasoning_output"]


@pytest.mark.parametrize("reasoning", [None, True, False])
def test_prompts_are_counted_as_the_switch_writes_them(folders, reasoning):
    member = MemberConfig(model=str(folders["alpha"]), chat_template=TEMPLATES["smollm3"])
    with ChatDeepen(models=[member], progress=False, device="cpu", max_tokens=1, reasoning=reasoning) as chat:
        counted = chat.get_num_tokens_from_messages([ASK])
        assert counted == chat.invoke([ASK]).usage_metadata["input_tokens"]
        other = chat.model_copy(update={"reasoning": reasoning is False}).get_num_tokens_from_messages([ASK])
        assert counted != other
