"""Thoughts between the marks of every family of models, whether these are text or control tokens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from table_member import TableMember
from tiny import CHAT_TEMPLATE, CORPUS, byte_level, sentencepiece_bpe

from deepen_core import Ensemble
from deepen_core.chat.thoughts import KNOWN_MARKS, THINK, MarkListener, Thoughts, marks_of
from deepen_core.config import SamplingParams
from deepen_core.members.sequence import KEPT_TAIL
from deepen_core.members.tokenizer import MemberTokenizer
from deepen_core.replies import Call, Reply, ReplyForm, ReplyParser, parse_reply

HARMONY, GEMMA = KNOWN_MARKS[-1], KNOWN_MARKS[-2]
TOKENS = {HARMONY: ["<|channel|>", "<|message|>", "<|start|>", "<|end|>"], GEMMA: ["<|channel>", "<channel|>"]}
FAMILIES = [(marks, special) for marks in KNOWN_MARKS for special in (True, False)]
HI = [{"role": "user", "content": "Where is Mira?"}]
THOUGHTS, ANSWER = "Lisbon or Oslo? I say", "In Lisbon."
SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Lisbon"]}}, "required": ["city"]}
OBJECT = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
TOOLS = [{"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}]


class Speaker(TableMember):
    """Says a text, token by token, whatever it is asked."""

    def __init__(self, tokenizer):
        super().__init__("main", tokenizer, CORPUS[:1])
        self.script = []

    def next_logits(self, sequences):
        found = []
        for sequence in sequences:
            sequence.take_pending()
            told = len(sequence.ids) - sequence.prompt_tokens
            logits = torch.zeros(KEPT_TAIL, self.vocabulary_size)
            stop = min(self.tokenizer.vocabulary.stop_ids)
            logits[-1, self.script[told] if told < len(self.script) else stop] = 30.0
            sequence.keep_logits(logits)
            found.append(logits[-1])
        return torch.stack(found)


class Listener(TableMember):
    """Knows little, and remembers the texts that it was asked to go on with."""

    def __init__(self):
        super().__init__("other", sentencepiece_bpe(), CORPUS[:1])
        self.tokenizer.reader._chat = MemberTokenizer(templated(sentencepiece_bpe()), "other").reader._chat
        self.heard = []

    def next_logits(self, sequences):
        for sequence in sequences:
            said = self.tokenizer.vocabulary.join(sequence.ids[sequence.prompt_tokens :]).decode(errors="replace")
            self.heard.append(said)
        return super().next_logits(sequences)


def templated(tokenizer, also="", end=""):
    turns = CHAT_TEMPLATE.replace("<|end|>", "<|turn_end|>")
    tokenizer.chat_template = turns + "{%- if false %}" + also + "{%- endif %}" + end
    return tokenizer


def ensemble_of(marks, special, end=""):
    tokenizer = byte_level()
    tokenizer.add_tokens(["<|return|>"], special_tokens=True)
    tokenizer.eos_token = "<|return|>"
    tokens = TOKENS.get(marks, [marks.begin, marks.end])
    tokenizer.add_tokens(tokens, special_tokens=special)
    main, other = Speaker(templated(tokenizer, "".join(marks.parts()), end)), Listener()
    ensemble = Ensemble.from_members([main, other], weights=[0.7, 0.3])
    return ensemble, main, other


def speaks(main, text):
    read = main.tokenizer.reader.read_text(text, control_tokens=True)
    main.script = read.ids[1:] + main.tokenizer.encode(read.text)  # without BOS


def whole(marks, answer=ANSWER, blank="\n\n"):
    return f"{marks.begin}{THOUGHTS}{marks.end}{marks.turn}{marks.answer}{'' if marks.answer else blank}{answer}"


@pytest.mark.parametrize(("marks", "special"), FAMILIES)
def test_thoughts_are_told_from_the_answer(marks, special):
    ensemble, main, other = ensemble_of(marks, special)
    with ensemble:
        speaks(main, whole(marks))
        thoughts = ensemble.thoughts()
        assert (thoughts.mode, thoughts.marks) == ("optional", marks)
        assert set(thoughts.control) == (set(TOKENS.get(marks, [marks.begin, marks.end])) if special else set())
        answer = ensemble.generate(HI, max_new_tokens=200)
        streamed = "".join(chunk.text for chunk in ensemble.stream(HI, max_new_tokens=200))
    assert answer.text == streamed == whole(marks)
    assert parse_reply(answer.text, ReplyParser((), thoughts)) == Reply(ANSWER, THOUGHTS, ())
    # Control tokens are main's own affair; the others hear the thoughts and the answer.
    between = "" if marks.answer else "\n\n"
    assert max(other.heard, key=len).strip() == (f"{THOUGHTS}{between}{ANSWER}" if special else whole(marks))


@pytest.mark.parametrize(("marks", "special"), FAMILIES)
@pytest.mark.parametrize("calls", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_constrained_answers_may_come_after_thoughts(marks, special, calls):
    said = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>' if calls else '{"city": "Lisbon"}'
    form = ReplyForm.from_openai(TOOLS, "any") if calls else ReplyForm.from_openai(response_format=OBJECT)
    ensemble, main, _ = ensemble_of(marks, special)
    with ensemble:
        thoughts = ensemble.thoughts()
        for text in (whole(marks, said, blank=""), said, marks.answer + said):
            speaks(main, text)
            answer = ensemble.generate(HI, form.params(SamplingParams(max_new_tokens=200), thoughts))
            assert (answer.text, answer.finish_reason) == (text, "stop")
            reply = parse_reply(answer.text, form.parser(thoughts))
            assert reply.thoughts == (THOUGHTS if THOUGHTS in text else "")
            assert (reply.text, reply.calls) == (("", (Call("now", {}),)) if calls else (said, ()))


@pytest.mark.parametrize("marks", KNOWN_MARKS[:-1])
@pytest.mark.parametrize("special", [True, False])
def test_thoughts_that_the_template_begins(marks, special):
    ensemble, main, _ = ensemble_of(marks, special, end=marks.begin)
    with ensemble:
        assert ensemble.thinking == "opened"
        speaks(main, f"{THOUGHTS}{marks.end}{ANSWER}")
        answer = ensemble.generate(HI, max_new_tokens=200)
        assert parse_reply(answer.text, ReplyParser((), ensemble.thoughts())) == Reply(ANSWER, THOUGHTS, ())


def test_the_options_of_a_request_decide_whether_the_template_begins_them():
    end = "{%- if enable_thinking is defined and enable_thinking %}<think>{%- endif %}"
    ensemble, _, _ = ensemble_of(THINK, True, end=end)
    with ensemble:
        assert ensemble.thinking == "optional"
        assert ensemble.thoughts(SamplingParams(enable_thinking=True)).mode == "opened"
        assert ensemble.thoughts(SamplingParams(enable_thinking=False)).mode == "optional"


def test_gpt_oss_may_think_several_times_and_then_answers():
    thoughts = "".join(f"{HARMONY.begin}{said}{HARMONY.end}{HARMONY.turn}" for said in ("One.", "Two."))
    parser = ReplyParser((), Thoughts("optional", HARMONY))
    assert parse_reply(f"{thoughts}{HARMONY.answer}Three.", parser) == Reply("Three.", "One.Two.", ())


@pytest.mark.parametrize(
    ("template", "marks"),
    [
        ("{{ content.split('</think>')[-1] }}", THINK),
        ("<|im_start|>{{ content }}<|im_end|>", None),
        ("<|user|>{{ content }}<|end|>", None),  # Phi, whose turns end as gpt-oss's thoughts do
        ("{{ '<|start|>assistant<|channel|>analysis<|message|>' + thinking + '<|end|>' }}", HARMONY),
        ("{{ '<|channel>thought\n' + thinking + '<channel|>' }}", GEMMA),
    ],
)
def test_the_marks_of_a_template(template, marks):
    assert marks_of(template) == marks


@settings(max_examples=300)
@given(st.data())
def test_what_the_others_hear_does_not_depend_on_how_marks_are_cut(data):
    """Marks that begin with a control token are left out, everything else is heard."""
    control = {"<|channel|>": 1, "<|message|>": 2, "<|start|>": 3, "<|end|>": 4}
    listener = MarkListener(Thoughts("optional", HARMONY, control))
    texts = st.sampled_from(["Lisbon", "analysis", "final", "assistant", " of", "", "ana"])
    parts = data.draw(st.lists(st.one_of(st.sampled_from(list(HARMONY.parts())), texts), max_size=8))
    heard, expected = "", ""
    for part in parts:
        if part not in HARMONY.parts():
            expected += part
        for term in Thoughts("optional", HARMONY, control).terms(part):
            if isinstance(term, int):
                listener.control(next(token for token, i in control.items() if i == term))
                continue
            cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(term) - 1)), max_size=3)))
            for start, end in zip([0, *cuts], [*cuts, len(term)], strict=True):
                heard += listener.text(term[start:end])
        assert not listener.inside
    assert heard == expected


def test_a_header_that_no_mark_has_is_heard():
    listener = MarkListener(Thoughts("optional", HARMONY, {"<|channel|>": 1, "<|message|>": 2}))
    listener.control("<|channel|>")
    assert listener.inside
    assert [listener.text("ana"), listener.text("gram")] == ["", "anagram"]
    assert not listener.inside
