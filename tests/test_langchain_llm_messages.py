"""What DeepenLLM makes of messages, and how it counts tokens."""

import asyncio

import pytest
import tiny
from langchain_core.caches import InMemoryCache
from langchain_core.messages import (
    AIMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    get_buffer_string,
)
from langchain_core.prompt_values import ChatPromptValue
from langchain_core.prompts import ChatPromptTemplate
from langchain_parts import Recorder, submissions
from scheduler_parts import hook
from transformers import AutoTokenizer

from deepen_core import Ensemble
from deepen_core.errors import ChatTemplateError, PromptError
from deepen_integrations.langchain import DeepenLLM
from deepen_integrations.langchain.messages import plain_messages

MESSAGES = [
    SystemMessage("Be brief."),
    HumanMessage("Where is the fox?"),
    AIMessage("Here."),
    HumanMessage("And the dog?"),
]
PLAIN = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where is the fox?"},
    {"role": "assistant", "content": "Here."},
    {"role": "user", "content": "And the dog?"},
]
OPTIONS = {"max_new_tokens": 6, "ignore_eos": True}
OTHER_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] | upper }}] {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[ASSISTANT] {% endif %}"
)


@pytest.fixture(scope="module")
def talkers(made_once, folders):
    """Two members whose templates have nothing in common."""

    def make(root):
        other = tiny.save_llama(root / "beta", tiny.sentencepiece_bpe())
        tokenizer = AutoTokenizer.from_pretrained(other)
        tokenizer.chat_template = OTHER_TEMPLATE
        tokenizer.save_pretrained(other)

    return [folders["alpha"], made_once("talker", make) / "beta"]


@pytest.fixture
def ensemble(talkers):
    with Ensemble.load(talkers, device="cpu", progress=False) as ensemble:
        yield ensemble


@pytest.fixture
def llm(ensemble):
    return DeepenLLM.from_ensemble(ensemble, **OPTIONS)


@pytest.fixture
def prompts_seen(ensemble):
    """The ids that each member starts from, a list for each request."""
    seen = [[], []]
    for number, ids in enumerate(seen):

        def note(rows, ids=ids):
            ids.extend(row.ids[: row.prompt_tokens] for row in rows if not row.started)

        hook(ensemble, number).fail = note
    return seen


def template_ids(folder, messages):
    rendered = AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, add_generation_prompt=True)
    return list(rendered["input_ids"])


WAYS = {
    "invoke": lambda llm, messages: llm.invoke(messages),
    "ainvoke": lambda llm, messages: asyncio.run(llm.ainvoke(messages)),
    "stream": lambda llm, messages: "".join(llm.stream(messages)),
    "batch": lambda llm, messages: llm.batch([messages, messages])[0],
    "abatch": lambda llm, messages: asyncio.run(llm.abatch([messages, messages], return_exceptions=True))[1],
    "prompt value": lambda llm, messages: llm.invoke(ChatPromptValue(messages=messages)),
    "generate_prompt": lambda llm, messages: (
        llm.generate_prompt([ChatPromptValue(messages=messages)]).generations[0][0].text
    ),
    "chain": lambda llm, messages: (ChatPromptTemplate.from_messages(messages) | llm).invoke({}),
    "bound": lambda llm, messages: llm.bind(max_tokens=6).invoke(messages),
    "tuples": lambda llm, messages: llm.invoke([(m.type, m.content) for m in messages]),
}


@pytest.mark.parametrize("way", WAYS)
def test_each_member_reads_its_own_template(llm, talkers, prompts_seen, way):
    assert WAYS[way](llm, MESSAGES)
    for folder, seen in zip(talkers, prompts_seen, strict=True):
        expected = template_ids(folder, PLAIN)
        assert seen
        assert all(ids == expected for ids in seen)
        assert expected.count(expected[0]) == 1  # BOS, once


def test_strings_stay_as_they_are(llm, ensemble, prompts_seen):
    text = get_buffer_string(MESSAGES)
    assert llm.invoke(text) != llm.invoke(MESSAGES)
    assert llm.invoke(text) == ensemble.generate(text, **OPTIONS).text
    bos, *rest = prompts_seen[0][0]
    assert bos == ensemble._engine.members[0].tokenizer.reader.read_text("").ids[0]
    assert ensemble._engine.members[0].tokenizer.backend.encode(text) == rest


def test_messages_reach_members_without_templates_as_text(load):
    with load("alpha", "gamma") as ensemble:
        llm = DeepenLLM.from_ensemble(ensemble, **OPTIONS)
        joined = llm.invoke(get_buffer_string(MESSAGES))
        assert llm.invoke(MESSAGES) == joined
        assert asyncio.run(llm.ainvoke(MESSAGES)) == joined
        with pytest.raises(ChatTemplateError, match="gamma"):
            DeepenLLM.from_ensemble(ensemble, apply_chat_template=True).invoke(MESSAGES)


def test_templates_can_be_left_alone(llm, ensemble):
    plain = DeepenLLM.from_ensemble(ensemble, apply_chat_template=False, **OPTIONS)
    assert plain.invoke(MESSAGES) == llm.invoke(get_buffer_string(MESSAGES))
    always = DeepenLLM.from_ensemble(ensemble, apply_chat_template=True, **OPTIONS)
    assert always.invoke(MESSAGES) == llm.invoke(MESSAGES)


def test_the_cache_takes_no_conversation_for_another(llm, ensemble):
    """All three are `Human: hi\nAI: yes` where LangChain writes them as text."""
    llm.cache = InMemoryCache()
    alike = [
        [HumanMessage("hi"), AIMessage("yes")],
        [HumanMessage("hi\nAI: yes")],
        get_buffer_string([HumanMessage("hi"), AIMessage("yes")]),
    ]
    with submissions(ensemble) as sizes:
        texts = [llm.invoke(one) for one in alike]
        assert [llm.invoke(one) for one in alike] == texts
    assert sizes == [1, 1, 1]


def test_traces_show_the_conversation(llm):
    recorder = Recorder()
    llm.invoke([HumanMessage("Où ?")], {"callbacks": [recorder]})
    assert recorder.prompts == ['[{"role": "user", "content": "Où ?"}]']


def test_messages_become_roles_and_text():
    blocks = HumanMessage(["a ", {"type": "text", "text": "b"}])
    others = [
        blocks,
        ToolMessage("4", tool_call_id="1"),
        ChatMessage("c", role="critic"),
        ChatMessage("d", role="human"),
    ]
    assert plain_messages([*MESSAGES, *others]) == [
        *PLAIN,
        {"role": "user", "content": "a b"},
        {"role": "tool", "content": "4"},
        {"role": "critic", "content": "c"},
        {"role": "user", "content": "d"},
    ]


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (HumanMessage([{"type": "image_url", "image_url": {"url": "u"}}]), "HumanMessage holds a block .*'image_url'"),
        (AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": "1"}]), "calls tools.* use a chat model"),
        (FunctionMessage("x", name="f"), "A FunctionMessage has no role"),
    ],
)
def test_what_cannot_be_read_is_refused_before_any_callback(llm, message, told):
    recorder = Recorder()
    for ask in (llm.invoke, lambda m, c: list(llm.stream(m, c)), lambda m, c: llm.batch([m], c)):
        with pytest.raises(PromptError, match=told):
            ask([message], {"callbacks": [recorder]})
    assert not recorder.starts


def test_token_ids_are_mains(llm, talkers):
    tokenizer = AutoTokenizer.from_pretrained(talkers[0])
    for text in ("The quick fox", " 你好\n", "", "<|end|>"):
        expected = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert llm.get_token_ids(text) == expected
        assert llm.get_num_tokens(text) >= len(expected)


def test_messages_are_counted_as_they_are_rendered(llm, talkers, ensemble):
    """By the member to which they are longest; usage counts main's tokens."""
    counts = [len(template_ids(talker, PLAIN)) for talker in talkers]
    assert counts[1] > counts[0]
    assert llm.get_num_tokens_from_messages(MESSAGES) == counts[1]
    usage = llm.generate_prompt([ChatPromptValue(messages=MESSAGES)]).llm_output["token_usage"]
    assert usage["prompt_tokens"] == counts[0]
    joined = DeepenLLM.from_ensemble(ensemble, apply_chat_template=False)
    assert joined.get_num_tokens_from_messages(MESSAGES) == joined.get_num_tokens(get_buffer_string(MESSAGES))


def test_tools_are_counted_as_their_schemas(llm):
    def weather(city: str) -> str:
        """Tells the weather."""
        return city

    schema = (
        '{"type": "function", "function": {"name": "weather", "description": "Tells the weather.", "parameters": '
        '{"properties": {"city": {"type": "string"}}, "required": ["city"], "type": "object"}}}'
    )
    without = llm.get_num_tokens_from_messages(MESSAGES)
    assert llm.get_num_tokens_from_messages(MESSAGES, tools=[weather]) == without + llm.get_num_tokens(schema)


def test_a_counter_of_ones_own(ensemble):
    llm = DeepenLLM.from_ensemble(ensemble, custom_get_token_ids=lambda text: [0] * len(text.split()))
    assert llm.get_num_tokens_from_messages([HumanMessage("two words")]) == 3
