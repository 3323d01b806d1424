"""One switch for thoughts, whatever a template calls it; and thoughts given back to templates that read them."""

import pytest
import tiny
from table_member import TableMember
from thinking_templates import GPT_OSS, TEMPLATES, reader, rendered, templated
from tiny import CORPUS

from deepen_core import Ensemble
from deepen_core.config import SamplingParams, resolve_sampling
from deepen_core.errors import SamplingError
from deepen_core.members.tokenizer import MemberTokenizer
from deepen_core.replies import ReplyForm, instructed

HI = [{"role": "user", "content": "Where is Mira?"}]
# Variables for True and for False; None where the template cannot do it.
SWITCHES = {
    "qwen3": ({"enable_thinking": True}, {"enable_thinking": False}),
    "deepseek r1": ({}, None),
    "deepseek v3": ({"thinking": True}, {"thinking": False}),
    "glm": ({"enable_thinking": True}, {"enable_thinking": False}),
    "granite": ({"thinking": True}, {"thinking": False}),
    "smollm3": ({"enable_thinking": True}, {"enable_thinking": False}),
    "gpt-oss": ({}, None),
    "mistral": ({"reasoning_effort": "high"}, {"reasoning_effort": "none"}),
    "seed": ({"thinking_budget": -1}, {"thinking_budget": 0}),
    "plain": (None, {}),
}


def variables(name, **options):
    return reader(name).variables(SamplingParams(**options))


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("wanted", [True, False])
def test_thoughts_are_switched_through_the_variable_of_the_template(name, wanted):
    expected = SWITCHES[name][0 if wanted else 1]
    if expected is not None:
        assert variables(name, reasoning=wanted) == expected
        return
    with pytest.raises(SamplingError, match=f"reasoning={wanted}: the chat template of member 'main' .*leave|choose"):
        variables(name, reasoning=wanted)
    assert reader(name).variables(SamplingParams(reasoning=wanted), strict=False) == {}


@pytest.mark.parametrize("name", TEMPLATES)
def test_without_a_wish_the_template_decides(name):
    assert variables(name) == {}
    assert variables(name, chat_template_kwargs={"enable_thinking": False}) == {"enable_thinking": False}


def test_an_effort_is_given_to_templates_that_take_one():
    assert variables("gpt-oss", reasoning="low") == {"reasoning_effort": "low"}
    assert "Reasoning: low" in rendered("gpt-oss", HI, variables("gpt-oss", reasoning="low"))
    assert variables("mistral", reasoning="high") == {"reasoning_effort": "high"}
    assert variables("mistral", reasoning="none") == variables("mistral", reasoning=False)
    assert variables("qwen3", reasoning="none") == {"enable_thinking": False}


@pytest.mark.parametrize(
    ("name", "effort", "said"),
    [
        ("mistral", "low", "does not know this effort: choose 'high'"),
        ("qwen3", "low", "no levels of effort: give True or False"),
        ("deepseek r1", "low", "no levels of effort: leave reasoning out"),
        ("plain", "low", "no levels of effort: leave reasoning out"),
    ],
)
def test_an_effort_that_a_template_does_not_take_is_an_error(name, effort, said):
    with pytest.raises(SamplingError, match=said):
        variables(name, reasoning=effort)


def test_an_effort_with_a_switch_beside_it_turns_thoughts_on():
    template = GPT_OSS + "{%- if thinking %}{{- ' ' }}{%- else %}{{- '<|channel|>final<|message|>' }}{%- endif %}"
    tokenizer = tiny.byte_level()
    tokenizer.chat_template = template
    side = MemberTokenizer(tokenizer, "main").reader
    assert side.variables(SamplingParams(reasoning="high")) == {"reasoning_effort": "high", "thinking": True}
    assert side.variables(SamplingParams(reasoning=False)) == {"thinking": False}


def test_an_effort_cannot_become_a_control_token():
    tokenizer = templated("gpt-oss")
    tokenizer.add_tokens(["<|end|>", "<|start|>", "<|message|>"], special_tokens=True)
    side = MemberTokenizer(tokenizer, "main").reader
    ends = [side.read_messages(HI, side.variables(SamplingParams(reasoning=said))).ids for said in ("low", "<|end|>")]
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert ends[0].count(end) == ends[1].count(end)


def test_two_wishes_that_contradict_each_other_are_an_error_and_a_call_replaces_those_of_the_model():
    with pytest.raises(SamplingError, match="reasoning=False sets enable_thinking to False, and chat_template_kwargs"):
        variables("qwen3", reasoning=False, chat_template_kwargs={"enable_thinking": True})
    own = SamplingParams(chat_template_kwargs={"enable_thinking": True, "documents": 1})
    assert resolve_sampling(own, {"reasoning": False}).chat_template_kwargs == {"documents": 1}
    assert resolve_sampling(SamplingParams(reasoning=False), {"enable_thinking": True}).reasoning is None
    kept = resolve_sampling(SamplingParams(reasoning=False), {"chat_template_kwargs": {"documents": 1}})
    assert (kept.reasoning, kept.chat_template_kwargs) == (False, {"documents": 1})
    with pytest.raises(SamplingError, match="an effort such as 'low'"):
        resolve_sampling(None, {"reasoning": ""})


def spoken(name, template):
    """A member with a template, which says nothing of interest."""
    return TableMember(name, templated(template), CORPUS[:1])


def test_members_follow_each_through_its_own_template_as_far_as_they_can():
    main, other = spoken("main", "qwen3"), spoken("other", "deepseek r1")
    heard = {}
    for member in (main, other):
        read = member.tokenizer.reader.read_messages
        member.tokenizer.reader.read_messages = lambda m, o, *w, n=member.name, r=read: (
            heard.update({n: o}) or r(m, o, *w)
        )
    with Ensemble.from_members([main, other]) as ensemble:
        ensemble.generate(HI, max_new_tokens=1, reasoning=False)
        assert heard == {"main": {"enable_thinking": False}, "other": {}}
        assert ensemble.generate("Mira", max_new_tokens=1, reasoning=True).token_ids  # a text has no template
    with (
        Ensemble.from_members([other, spoken("main", "qwen3")]) as ensemble,
        pytest.raises(SamplingError, match="member 'other' cannot turn thoughts off"),
    ):
        ensemble.generate(HI, reasoning=False)


@pytest.mark.parametrize(
    ("name", "options", "limit"),
    [
        ("plain", {}, 256),
        ("qwen3", {}, 4096),
        ("qwen3", {"reasoning": False}, 256),
        ("qwen3", {"enable_thinking": False}, 256),
        ("deepseek r1", {}, 4096),
        ("deepseek v3", {}, 256),  # its template ends the thoughts
        ("deepseek v3", {"reasoning": True}, 4096),
        ("qwen3", {"max_new_tokens": 7}, 7),
        ("qwen3", {"choices": ["yes", "no"]}, 256),
        ("qwen3", {"grammar": 'start: "yes"'}, 4096),
    ],
)
def test_an_answer_after_thoughts_may_be_longer_by_default(name, options, limit):
    params = SamplingParams(**options)
    assert reader(name).most_tokens(params, to_text=False) == limit
    assert reader(name).most_tokens(params, to_text=True) == (7 if limit == 7 else 256)


def test_the_default_is_what_the_engine_decodes_to_and_no_reason_for_a_warning():
    main = spoken("main", "qwen3")
    main.context_window = 400
    with Ensemble.from_members([main]) as ensemble:
        answer = ensemble.generate(HI, ignore_eos=True)
        assert (answer.finish_reason, answer.warnings) == ("length", [])
        assert answer.usage.total_tokens == 400
        assert ensemble.generate("Mira", ignore_eos=True).usage.completion_tokens == 256


CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": {"name": "Mira"}}}
TURN = [
    {"role": "user", "content": "Hello."},
    {"role": "assistant", "content": "Hi.", "reasoning_content": "Greet."},
    {"role": "user", "content": "Where is Mira?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning_content": "Look her up."},
    {"role": "tool", "content": "Oslo", "tool_call_id": "1"},
]
# What each template makes of the thoughts before the first and before the second question.
READ = {"qwen3": (False, True), "glm": (True, True), "mistral": (True, True)}


@pytest.mark.parametrize("name", TEMPLATES)
def test_thoughts_are_given_back_to_templates_that_read_them(name):
    said = rendered(name, instructed(TURN, ReplyForm()))
    assert ("Greet." in said, "Look her up." in said) == READ.get(name, (False, False))
    assert said.index("Mira") < said.index("Oslo")
    without = [{k: v for k, v in message.items() if k != "reasoning_content"} for message in TURN]
    if name not in READ:
        hint = "\nAnswer my question in plain words if you can."
        assert said == rendered(name, instructed(without, ReplyForm())).replace(hint, "")


def test_thoughts_are_given_back_under_the_name_that_the_template_has_for_them():
    said = rendered("gpt-oss", TURN)
    assert "<|channel|>analysis<|message|>Look her up.<|start|>assistant to=functions.look" in said
    assert "Greet." not in said


def test_messages_whose_thoughts_a_template_refuses_go_without():
    both = {**TURN[3], "content": "I look."}
    said = rendered("gpt-oss", [*TURN[:3], both, TURN[4]])
    assert "to=functions.look" in said
    assert "Look her up." not in said


def test_templates_that_print_every_field_get_no_thoughts():
    tokenizer = tiny.byte_level()
    tokenizer.chat_template = "{% for m in messages %}{{ m | tojson }}{% endfor %}"
    said = rendered(MemberTokenizer(tokenizer, "main"), TURN[:2])
    assert "Hi." in said
    assert "Greet." not in said


def test_merged_turns_keep_the_thoughts_of_both():
    tokenizer = tiny.byte_level()
    begin = "{%- for message in messages %}"
    repeated = "{%- if not loop.first and messages[loop.index0 - 1].role == message.role %}"
    refuses = begin + repeated + "{{- raise_exception('roles must alternate') }}{%- endif %}"
    tokenizer.chat_template = TEMPLATES["mistral"].replace(begin, refuses)
    again = {"role": "assistant", "content": "There.", "reasoning_content": "Once more."}
    said = rendered(MemberTokenizer(tokenizer, "main"), [*TURN[:2], again, TURN[2]])
    assert "[THINK]Greet.\n\nOnce more.[/THINK]Hi.\n\nThere." in said
