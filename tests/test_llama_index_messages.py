"""LlamaIndex's messages on members whose chat templates are strict."""

import copy

import pytest
import tiny
from chat_templates import TEMPLATES, tokenizer_with
from llama_index.core.agent.workflow import ReActAgent
from llama_index.core.base.llms.types import (
    AudioBlock,
    ChatMessage,
    DocumentBlock,
    ImageBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.tools import FunctionTool
from transformers import AutoTokenizer

from deepen_core import SamplingParams
from deepen_core.errors import PromptError
from deepen_integrations.llama_index import DeepenLLM

STRICT = ["mistral", "gemma", "qwen"]


@pytest.fixture(scope="module")
def folders(made_once):
    """Members that differ in their templates: strict alternation, no system role, ChatML with tools."""

    def make(root):
        for seed, name in enumerate(STRICT):
            folder = tiny.save_gpt2(root / name, copy.deepcopy(tokenizer_with(name)), seed=seed, window=4096)
            (folder / "chat_template.jinja").write_text(TEMPLATES[name][0], encoding="utf-8")

    root = made_once("strict", make)
    return {name: root / name for name in STRICT}


@pytest.fixture(scope="module")
def llm(folders):
    with DeepenLLM(models=list(folders.values()), max_new_tokens=8, ignore_eos=True, progress=False) as model:
        yield model


def say(role, content):
    return ChatMessage(role=role, content=content)


def prompts(llm, messages):
    """What each member reads, as text."""
    seen, generate = [], llm.ensemble.generate
    llm.ensemble.generate = lambda prompt, params: seen.append(prompt) or generate(prompt, params)
    try:
        llm.chat(messages)
    finally:
        del llm.ensemble.generate
    sides = llm.ensemble._engine.decoder.start(seen[0], SamplingParams()).member_sequences
    return [
        AutoTokenizer.from_pretrained(member.model).decode(side.ids)
        for member, side in zip(llm.models, sides, strict=True)
    ]


CONVERSATIONS = {
    "repeated user": [say("user", "one"), say("user", "two")],
    "system": [say("system", "one"), say("user", "two")],
    "trailing system": [say("user", "one"), say("assistant", "two"), say("system", "three")],
    "system in the middle": [say("user", "one"), say("system", "two"), say("user", "three")],
    "assistant first": [say("assistant", "one"), say("user", "two")],
    "retry of an agent": [
        say("system", "one"),
        say("user", "two"),
        say("user", "three"),
        say("assistant", "four"),
        say("user", "five"),
    ],
    "tool": [say("user", "one"), say("assistant", "two"), say("tool", "three")],
    "empty": [say("user", "one"), say("assistant", ""), say("user", "two")],
}


@pytest.mark.parametrize("kind", CONVERSATIONS)
def test_every_member_reads_every_conversation(llm, kind):
    for text in prompts(llm, CONVERSATIONS[kind]):
        words = [message.content for message in CONVERSATIONS[kind] if message.content]
        places = [text.index(word) for word in words]
        assert places == sorted(places)
        assert all(text.count(word) == 1 for word in words)


@pytest.mark.parametrize(
    ("role", "meant"),
    [
        (MessageRole.DEVELOPER, MessageRole.SYSTEM),
        (MessageRole.CHATBOT, MessageRole.ASSISTANT),
        (MessageRole.MODEL, MessageRole.ASSISTANT),
        (MessageRole.FUNCTION, MessageRole.TOOL),
    ],
)
def test_roles_are_what_templates_call_them(llm, role, meant):
    def conversation(role):
        first = [say(role, "one")] if meant == MessageRole.SYSTEM else [say("user", "zero"), say(role, "one")]
        return [*first, say("user", "two")]

    assert prompts(llm, conversation(role)) == prompts(llm, conversation(meant))


def test_blocks_of_text_and_thoughts(llm):
    blocks = [
        ThinkingBlock(content="hidden"),
        TextBlock(text="one"),
        TextBlock(text="two"),
        ToolCallBlock(tool_name="look", tool_kwargs={"at": "it"}),
    ]
    for text in prompts(llm, [say("user", "zero"), ChatMessage(role="assistant", blocks=blocks), say("user", "three")]):
        assert "one" in text
        assert "two" in text
        assert '<tool_call>\n{"name": "look", "arguments": {"at": "it"}}\n</tool_call>' in text
        assert "hidden" not in text
    assert llm.chat([ChatMessage(role="user", blocks=[])]).message.content


@pytest.mark.parametrize("block", [ImageBlock(url="file:a.png"), AudioBlock(url="file:a.wav"), DocumentBlock(url="a")])
def test_what_no_text_model_can_read_is_refused(llm, block):
    message = ChatMessage(role="user", blocks=[TextBlock(text="Look:"), block])
    with pytest.raises(PromptError, match=f"holds a {type(block).__name__}: only text"):
        llm.chat([message])


def test_each_member_reads_its_own_template(llm, folders):
    mistral, gemma, qwen = prompts(llm, [say("system", "one"), say("user", "two")])
    assert "[SYSTEM_PROMPT]one[/SYSTEM_PROMPT]" in mistral.replace(" ", "")
    assert "<start_of_turn>user\none\n\ntwo<end_of_turn>" in gemma
    assert "<|im_start|>system\none<|im_end|>\n<|im_start|>user\ntwo<|im_end|>" in qwen


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_a_react_agent_retries_and_stops_early_on_strict_templates(llm):
    """Nothing that random members say is ReAct; a `Thought:` without an action makes the agent ask again."""
    thinking = llm.with_options(regex="Thought: [a-z]{1,8}", max_new_tokens=24)
    tool = FunctionTool.from_defaults(lambda place: "sunny", name="weather", description="Tells the weather.")
    for streaming in (True, False):
        agent = ReActAgent(tools=[tool], llm=thinking, streaming=streaming, early_stopping_method="generate")
        answer = await agent.run("How is the weather?", max_iterations=3)
        assert answer.response.content.startswith("Thought:")
