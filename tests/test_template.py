"""Every conversation fits every chat template, whole and in order, and what a template takes is left as it is."""

from pathlib import Path

import chat_templates
import pytest
import tiny
from amounts import examples
from chat_templates import read
from hypothesis import given, settings
from hypothesis import strategies as st
from random_conversations import conversations
from transformers import AutoTokenizer

from deepen_core.errors import ChatTemplateError
from deepen_core.members.tokenizer import MemberTokenizer

REAL = Path(__file__).parents[1] / "shared" / "tokenizers"
NAMES = list(chat_templates.TEMPLATES)


def said(role, content, **fields):
    return {"role": role, "content": content, **fields}


def call(name, arguments, number=1):
    return {"id": f"call0000{number}", "type": "function", "function": {"name": name, "arguments": arguments}}


def result(content, number=1):
    return said("tool", content, tool_call_id=f"call0000{number}")


def part(text):
    return {"type": "text", "text": text}


KINDS = {
    "plain": [said("user", "one"), said("assistant", "two"), said("user", "three")],
    "system": [said("system", "one"), said("user", "two")],
    "systems": [said("system", "one"), said("system", "two"), said("user", "three")],
    "late system": [
        said("system", "one"),
        said("user", "two"),
        said("assistant", "three"),
        said("system", "four"),
        said("user", "five"),
    ],
    "last system": [said("user", "one"), said("assistant", "two"), said("system", "three")],
    "only system": [said("system", "one")],
    "repeated": [
        said("user", "one"),
        said("user", "two"),
        said("assistant", "three"),
        said("assistant", "four"),
        said("user", "five"),
    ],
    "assistant first": [said("assistant", "one"), said("user", "two")],
    "system, assistant": [said("system", "one"), said("assistant", "two"), said("user", "three")],
    "strings": [said("user", ["one ", "two"]), said("assistant", ["three"]), said("user", ["four"])],
    "parts": [said("user", [part("one "), part("two")])],
    "system in parts": [said("system", [part("one "), part("two")]), said("user", [part("three")])],
    "mixed": [said("user", ["one ", part("two"), " three"])],
    "empty": [said("user", ""), said("assistant", "one"), said("user", "two"), said("assistant", ""), said("user", [])],
    "nothing": [said("user", "one"), said("assistant", None), said("user", "two")],
    "no calls": [said("user", "one"), said("assistant", "two", tool_calls=[]), said("user", "three")],
    "tools": [
        said("user", "one"),
        said("assistant", "", tool_calls=[call("two", {"a": "three"})]),
        result("four"),
    ],
    "tools, OpenAI": [
        said("system", "one"),
        said("user", "two"),
        said("assistant", None, tool_calls=[call("three", '{"a": "four"}')]),
        result("five"),
        said("assistant", "six"),
        said("user", "seven"),
    ],
    "two calls": [
        said("user", "one"),
        said("assistant", "two", tool_calls=[call("three", {"a": "four"}), call("five", {"a": "six"}, 2)]),
        result([part("seven")]),
        result("eight", 2),
    ],
    "empties": [
        said("system", "one"),
        said("user", ""),
        said("user", "two"),
        said("assistant", ""),
        said("assistant", ""),
        said("user", "three"),
    ],
    "call, repeated": [
        said("user", "one"),
        said("assistant", "", tool_calls=[call("two", {"a": "three"})]),
        said("assistant", "four"),
        said("assistant", "five"),
    ],
    "orphan": [said("user", "one"), result("two")],
}
WORDS = "one two three four five six seven eight".split()

NATIVE = {
    "mistral tools": "plain|strings|empty|tools|orphan",
    "qwen": "plain|system|systems|late system|last system|only system|repeated|assistant first|system, assistant|"
    "strings|empty|empties|call, repeated|nothing|no calls|tools|tools, OpenAI|orphan",
    "llama3": "plain|system|systems|late system|last system|only system|repeated|assistant first|system, assistant|"
    "strings|tools|empty|nothing|orphan",
    "mistral": "plain|system|only system|strings",
    "gemma": "plain|strings|empty|nothing|no calls",
    "silent": "plain|repeated|assistant first|strings|empty|no calls",
    "parts": "parts|system in parts|mixed",
    "chatml": "plain|system|systems|late system|last system|only system|repeated|assistant first|system, assistant|"
    "strings|empty|nothing|no calls|orphan",
}
NATIVE["qwen3"] = NATIVE["qwen"]


def joined(messages):
    """No None, and lists of strings as one: all that is done to what a template takes; parts where there are any."""
    for message in messages:
        message = {name: value for name, value in message.items() if value is not None}  # noqa: PLW2901
        content = message.get("content")
        if isinstance(content, list) and all(isinstance(piece, str) for piece in content):
            yield {**message, "content": "".join(content)}
        elif isinstance(content, list):
            yield {**message, "content": [part(p) if isinstance(p, str) else p for p in content]}
        else:
            yield message


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_every_conversation_fits_every_template(name, kind):
    text, _ = read(name, KINDS[kind])
    words = [w for w in WORDS if w in str(KINDS[kind])]
    assert [text.count(w) for w in words] == [1] * len(words)
    assert sorted(words, key=text.index) == words
    assert not {"'text'", '"text"', "None", "zq"} & {w for w in ("'text'", '"text"', "None", "zq") if w in text}


@pytest.mark.parametrize(("name", "kind"), [(n, k) for n in NAMES for k in NATIVE[n].split("|")])
def test_what_a_template_takes_is_rendered_as_it_is(name, kind):
    tokenizer = chat_templates.tokenizer_with(name)
    usual = tokenizer.apply_chat_template(list(joined(KINDS[kind])), tokenize=False, add_generation_prompt=True)
    assert read(name, KINDS[kind])[0] == usual


@pytest.mark.parametrize(
    ("name", "kind", "rendered"),
    [
        ("gemma", "system", "<start_of_turn>user\none\n\ntwo<end_of_turn>\n<start_of_turn>model\n"),
        ("gemma", "systems", "<start_of_turn>user\none\n\ntwo\n\nthree<end_of_turn>\n<start_of_turn>model\n"),
        ("gemma", "only system", "<start_of_turn>user\none<end_of_turn>\n<start_of_turn>model\n"),
        (
            "gemma",
            "assistant first",
            (
                "<start_of_turn>user\n<end_of_turn>\n<start_of_turn>model\none<end_of_turn>\n"
                "<start_of_turn>user\ntwo<end_of_turn>\n<start_of_turn>model\n"
            ),
        ),
        (
            "gemma",
            "tools",
            (
                "<start_of_turn>user\none<end_of_turn>\n<start_of_turn>model\n"
                '<tool_call>\n{"name": "two", "arguments": {"a": "three"}}\n</tool_call><end_of_turn>\n'
                "<start_of_turn>user\n<tool_response>\nfour\n</tool_response><end_of_turn>\n<start_of_turn>model\n"
            ),
        ),
        ("mistral", "systems", "[SYSTEM_PROMPT]one\n\ntwo[/SYSTEM_PROMPT][INST] three[/INST]"),
        (
            "mistral",
            "late system",
            "[SYSTEM_PROMPT]one[/SYSTEM_PROMPT][INST] two[/INST] three<|eos|>[INST] four\n\nfive[/INST]",
        ),
        ("mistral", "repeated", "[INST] one\n\ntwo[/INST] three\n\nfour<|eos|>[INST] five[/INST]"),
        ("mistral", "nothing", "[INST] one[/INST] ...<|eos|>[INST] two[/INST]"),
        (
            "mistral",
            "empties",
            "[SYSTEM_PROMPT]one[/SYSTEM_PROMPT][INST] two[/INST] ...<|eos|>[INST] three[/INST]",
        ),
        (
            "mistral",
            "two calls",
            (
                '[INST] one[/INST] two\n<tool_call>\n{"name": "three", "arguments": {"a": "four"}}\n</tool_call>\n'
                '<tool_call>\n{"name": "five", "arguments": {"a": "six"}}\n</tool_call><|eos|>'
                "[INST] <tool_response>\nseven\n</tool_response>\n\n<tool_response>\neight\n</tool_response>[/INST]"
            ),
        ),
        (
            "mistral tools",
            "call, repeated",
            (
                '[INST] one[/INST][TOOL_CALLS] [{"id": "call00001", "type": "function", "function": '
                '{"name": "two", "arguments": {"a": "three"}}}]<|eos|> four\n\nfive<|eos|>'
            ),
        ),
        (
            "silent",
            "late system",
            (
                "<|user|>\none\n\ntwo<|end|>\n<|assistant|>\nthree<|end|>\n<|user|>\nfour<|end|>\n"
                "<|user|>\nfive<|end|>\n<|assistant|>\n"
            ),
        ),
        (
            "parts",
            "repeated",
            (
                "<|im_start|>User:one<end_of_utterance>\n<|im_start|>User:two<end_of_utterance>\n"
                "<|im_start|>Assistant:three<end_of_utterance>\n<|im_start|>Assistant:four<end_of_utterance>\n"
                "<|im_start|>User:five<end_of_utterance>\nAssistant:"
            ),
        ),
        ("qwen3", "mixed", "<|im_start|>user\none two three<|im_end|>\n<|im_start|>assistant\n"),
    ],
)
def test_adapted(name, kind, rendered):
    assert read(name, KINDS[kind])[0].removeprefix("<|bos|>") == rendered


def test_calls_stay_calls_where_only_the_form_of_arguments_is_not_taken():
    """Llama 3 has `tojson` behind arguments, which makes a quotation of JSON."""
    text, _ = read("llama3", KINDS["tools, OpenAI"])
    assert '{"name": "three", "parameters": {"a": "four"}}<|eot_id|><|start_header_id|>ipython' in text


def test_what_is_taken_stays_beside_what_is_not():
    """Llama 3 takes one call at a time, and none of no calls; a system message it takes."""
    system = said("system", "zero")
    text, _ = read("llama3", [system, *KINDS["two calls"]])
    assert "Monday.\n\nzero<|eot_id|>" in text
    assert text.count("</tool_call>") == text.count("</tool_response>") == 2
    text, _ = read("llama3", [system, *KINDS["no calls"], *KINDS["tools"][1:]])
    assert '"parameters": {"a": "three"}' in text
    assert "<tool_call>" not in text


def test_arguments_as_a_template_joins_them():
    """DeepSeek's put them behind a text, so they must be one."""
    tokenizer = tiny.byte_level()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}"
        "{{ c.function.name + ':' + c.function.arguments }}{% endfor %}<|end|>{% endfor %}"
    )
    assert read(tokenizer, KINDS["tools"])[0] == 'one<|end|>two:{"a": "three"}<|end|>four<|end|>'


def test_a_call_without_content():
    """Where a template joins the content of a message that has none, it gets an empty one."""
    tokenizer = tiny.byte_level()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '[' + m.content + ']' }}"
        "{% for c in m.tool_calls or [] %}{{ c | tojson }}{% endfor %}{% endfor %}"
    )
    chat = [said("user", "one"), said("assistant", None, tool_calls=[call("two", {})]), result("three")]
    text, _ = read(tokenizer, chat)
    assert text.startswith("[one][]{")
    assert text.endswith("[three]")


@pytest.mark.parametrize(
    ("name", "words"), [("mistral", "Only user and assistant|must alternate"), ("silent", "critic")]
)
def test_unknown_roles_are_not_dropped(name, words):
    chat = [said("user", "one"), said("critic", "two")]
    with pytest.raises(ChatTemplateError, match=f"member 'm' .*({words})"):
        read(name, chat)


def test_a_template_that_reads_only_the_last_message():
    """By design, as in translators: nothing to complain of."""
    tokenizer = tiny.byte_level()
    tokenizer.chat_template = "{{ messages[-1]['content'] }}<|end|>"
    assert read(tokenizer, KINDS["plain"])[0] == "three<|end|>"


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ {'type': 'text', 'text': m.content} | tojson }}{% endfor %}",
        "{% for m in messages %}{{ ({'message': m.content} | tojson) | tojson }}{% endfor %}",
    ],
)
def test_a_template_that_renders_json(template):
    tokenizer = tiny.byte_level()
    tokenizer.chat_template = template
    chat = KINDS["plain"]
    assert read(tokenizer, chat)[0] == tokenizer.apply_chat_template(chat, tokenize=False)


def test_thoughts_that_a_template_drops_are_no_loss():
    chat = [said("user", "one"), said("assistant", "<think>\nhm\n</think>\n\ntwo"), said("user", "three")]
    tokenizer = chat_templates.tokenizer_with("qwen")
    usual = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert "hm" not in usual
    assert read(tokenizer, chat)[0] == usual


def test_parts_that_are_not_text():
    chat = [said("user", [part("one"), {"type": "image", "url": "x"}])]
    tokenizer = chat_templates.tokenizer_with("parts")
    usual = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert "<image>" in usual
    assert read(tokenizer, chat)[0] == usual
    for name in set(NAMES) - {"parts"}:
        with pytest.raises(ChatTemplateError, match="member 'm' cannot render content of type 'image'"):
            read(name, chat)
    with pytest.raises(ChatTemplateError, match="type 'sound'"):
        read(tokenizer, [said("user", [{"type": "sound"}])])
    # It stays in its place where the conversation is adapted.
    text, _ = read(tokenizer, [said("system", "zero"), *chat])
    assert text.startswith("<|im_start|>System:zero<end_of_utterance>\n<|im_start|>User:one<image><end_of")


@pytest.mark.parametrize(
    ("template", "thinking"),
    [
        (chat_templates.QWEN, "optional"),
        (chat_templates.QWEN + "{{ '<think>\\n' }}", "opened"),
        (chat_templates.QWEN + "{{ '<think>\\n\\n</think>\\n\\n' }}", "optional"),
        ("{{ messages[0].content[0].text + '' }}<think>", "opened"),
        (chat_templates.GEMMA, "never"),
        ("{{ raise_exception('no') }}", "never"),
        (None, "never"),
    ],
)
def test_whether_an_answer_begins_with_thoughts(template, thinking):
    tokenizer = tiny.byte_level()
    tokenizer.chat_template = template
    assert MemberTokenizer(tokenizer, "m").reader.thoughts().mode == thinking


def test_the_ensemble_thinks_as_main_does(load):
    with load("gamma", "alpha") as ensemble:  # main has no template
        assert ensemble.thinking == "never"
    with load("gamma", "alpha", main=1) as ensemble:
        chat = ensemble._engine.members[1].tokenizer.reader._chat
        chat._template += "{# </think> #}<think>"
        assert ensemble.thinking == "opened"


@pytest.mark.skipif(not REAL.is_dir(), reason="no real tokenizers here")
@pytest.mark.parametrize("folder", sorted(REAL.iterdir()) if REAL.is_dir() else [], ids=lambda f: f.name)
def test_real_templates(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.chat_template is None:
        pytest.skip(f"{folder.name} has no chat template")
    for kind, chat in KINDS.items():
        text, _ = read(tokenizer, chat)
        assert all(text.count(w) == 1 for w in WORDS if w in str(chat)), kind


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(deadline=None, max_examples=examples(60))
def test_random_conversations(name, data):
    _, special, added = chat_templates.TEMPLATES[name]
    special = {*special, "<|end|>", "<|bos|>"}
    chat, harmless, texts = data.draw(conversations(special, special | set(added)))
    text, control = read(name, chat)
    place = 0
    for wanted in texts:
        found = text.find(wanted, place)
        assert found >= 0, f"{wanted!r} is not in {text!r} from {place}"
        place = found + len(wanted)
    assert control == read(name, harmless)[1]
