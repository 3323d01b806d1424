"""An answer follows its constraint, whoever speaks and however the token is chosen."""

import json

import pytest

PROMPT = "The quick brown fox"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "city": {"enum": ["Zürich", "東京"]},
    },
    "required": ["name", "age", "city"],
    "additionalProperties": False,
}
WAYS = [{}, {"temperature": 1.0, "seed": 7}, {"temperature": 1.5, "top_k": 5, "seed": 8, "repetition_penalty": 1.3}]


@pytest.mark.parametrize("options", WAYS, ids=["greedy", "sampled", "penalised"])
@pytest.mark.parametrize("names", [("alpha", "beta"), ("beta", "alpha"), ("gamma", "alpha", "wordpiece"), ("no_bos",)])
def test_json(load, names, options):
    with load(*names) as ensemble:
        answer = ensemble.generate(PROMPT, json_schema=PERSON, max_new_tokens=150, **options)
    assert answer.finish_reason == "stop"
    value = json.loads(answer.text)
    assert list(value) == ["name", "age", "city"]
    assert len(value["name"]) <= 8
    assert 0 <= value["age"] <= 150
    assert value["city"] in {"Zürich", "東京"}
    assert value["city"] in answer.text, "written as it is, not as \\u escapes"
