"""What the demo's members are trained on: what is to be read is there, objects follow their schema, calls fit."""

import json
import re
import sys
from pathlib import Path

import jsonschema
import pytest

from deepen_core.demo import MEMBERS as NAMES
from deepen_core.demo.phrases import MEN, RELATIONS, WOMEN
from deepen_core.demo.world import facts
from deepen_core.replies import ReplyForm, instructed

pytest.importorskip("tokenizers")
sys.path.insert(0, str(Path(__file__).parent.parent / "training"))
from course import build_optimizers
from lessons import Teacher
from prompts import PROSE
from train_demo import build_model

sys.path.pop(0)

VALUES = {value for relation in RELATIONS for value in relation.values}
MEMBERS = pytest.mark.parametrize("member", [0, 1])


def lessons(member, kind, count=200):
    teacher = Teacher(member, seed=11)
    return [teacher.lesson(kind) for _ in range(count)]


def parted(lesson):
    """What is given, and what is to be said: all after the last stretch that does not count."""
    end = max(end for _, end, weight in lesson.spans if not weight)
    return lesson.text[:end], lesson.text[end:]


@MEMBERS
@pytest.mark.parametrize("kind", ["short", "context", "focus", "notes", "reading", "quotes", "steps", "objects"])
def test_weights_cover_the_text(member, kind):
    for lesson in lessons(member, kind, 50):
        starts, ends, weights = zip(*lesson.spans, strict=True)
        assert starts == (0, *ends[:-1])
        assert ends[-1] == len(lesson.text)
        assert all(0 <= weight <= 2 for weight in weights)
        assert max(weights) >= 1 or kind == "short"  # which may be prose


@MEMBERS
@pytest.mark.parametrize("kind", ["note", "notes", "quotes"])
def test_what_is_to_be_read_is_in_the_text(member, kind):
    for lesson in lessons(member, kind):
        given, said = parted(lesson)
        word = [lesson.text[start:end].strip() for start, end, weight in lesson.spans if weight >= 1][-1]
        assert word in VALUES | {*WOMEN, *MEN}
        assert re.search(rf"\b{word}\b", given), lesson.text
        assert word in said


@MEMBERS
def test_objects_follow_the_schema_that_is_shown(member):
    read = 0
    for lesson in lessons(member, "objects"):
        given, said = parted(lesson)
        schema, _ = json.JSONDecoder().raw_decode(given, given.index("schema: ") + len("schema: "))
        found = json.loads(said)
        jsonschema.validate(found, schema)
        assert said.startswith(" {")  # the blank is for the member to say, which may be a token with it
        assert list(found) == schema["required"]
        told = given.partition(json.dumps(schema, ensure_ascii=False))[2]
        read += all(re.search(rf"\b{value}\b", told) for value in found.values())
    assert 0.8 < read / 200 < 0.95  # the others are asked from memory


@MEMBERS
def test_steps_call_a_tool_for_who_is_asked_for_or_answer_from_its_result(member):
    calls = 0
    for lesson in lessons(member, "steps"):
        given, said = parted(lesson)
        asked = next(name for name in (*WOMEN, *MEN) if re.search(rf"\b{name}\b", given))
        if tagged := re.fullmatch(r" <tool_call>\n(.*)\n</tool_call>", said):
            call = json.loads(tagged[1])
            shown = [json.loads(line)["function"] for line in given.split("\n") if line.startswith('{"type"')]
            (tool,) = (one for one in shown if one["name"] == call["name"])
            jsonschema.validate(call["arguments"], tool["parameters"])
            arguments = call["arguments"]
        elif step := re.fullmatch(r" Thought: .*\nAction: (\w+)\nAction Input: (\{.*\})", said):
            assert re.search(rf"\b{step[1]}\b", given.partition("\n")[0])
            arguments = json.loads(step[2])
        else:
            record = given.rpartition("Question: ")[2]
            assert re.search(rf"\b{said.rpartition(' ')[2]}\b", record), lesson.text
            continue
        calls += 1
        assert arguments == {"name": asked}
    assert 60 < calls < 140


@MEMBERS
@pytest.mark.parametrize("kind", ["short", "context", "focus"])
def test_only_what_is_true_is_told_as_prose(member, kind):
    """Of the people that a member knows; of the others it hears what it is meant to hear."""
    known = [fact for fact in facts() if fact.known_to in ("both", NAMES[member])]
    found = 0
    for lesson in lessons(member, kind, 100 if kind == "focus" else 1000):
        for start, end, weight in lesson.spans:
            prose = lesson.text[start:end]
            named = [name for name in (*WOMEN, *MEN) if re.search(rf"\b{name}\b", prose)]
            if weight != PROSE or len(named) != 1:
                continue
            for fact in known:
                if fact.person.name == named[0]:
                    said = {value for value in fact.relation.values if re.search(rf"\b{value}\b", prose)}
                    assert said <= {fact.value}, prose
                    found += len(said)
    assert found > 20


@MEMBERS
def test_members_are_told_of_tools_and_objects_as_by_the_engine(member):
    for lesson in lessons(member, "steps"):
        if tools := [json.loads(line) for line in lesson.text.split("\n") if line.startswith('{"type"')]:
            assert lesson.text.startswith(shown(ReplyForm.from_openai(tools)))
    for lesson in lessons(member, "objects"):
        schema, _ = json.JSONDecoder().raw_decode(lesson.text, lesson.text.index("schema: ") + len("schema: "))
        form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
        assert shown(ReplyForm.from_openai(response_format=form)) in lesson.text


def shown(form):
    """The system message of the engine."""
    return "".join(instructed([{"role": "user", "content": "hi"}], form)[0]["content"])


@MEMBERS
def test_every_weight_is_trained_once(member):
    class Small:
        get_vocab_size = staticmethod(lambda: 64)
        token_to_id = staticmethod(lambda token: 0)

    model = build_model(member, Small())
    trained = [
        id(p) for optimizer in build_optimizers(model, 0.1) for group in optimizer.param_groups for p in group["params"]
    ]
    assert sorted(trained) == sorted(map(id, model.parameters()))


def test_lessons_are_the_same_for_the_same_seed():
    assert [lesson.text for lesson in lessons(0, "steps", 20)] == [lesson.text for lesson in lessons(0, "steps", 20)]
