"""Random weights answer two hundred random schemas, and an independent validator takes every answer."""

import json

import jsonschema
import pytest
import random_schemas
import tiny

from deepen_core import Ensemble

COUNT = 200


@pytest.fixture(scope="module")
def roomy(made_once):
    """Members as the others, with windows for long answers."""

    def make(root):
        tiny.save_gpt2(root / "alpha", tiny.byte_level(), window=2048)
        tiny.save_llama(root / "beta", tiny.sentencepiece_bpe(), window=2048)
        tiny.save_llama(root / "gamma", tiny.unigram(), seed=3, window=2048)

    root = made_once("roomy", make)
    return {name: root / name for name in ("alpha", "beta", "gamma")}


def test_the_schemas_are_of_every_kind():
    schemas = [random_schemas.random_schema(seed) for seed in range(COUNT)]
    text = json.dumps(schemas, ensure_ascii=False)
    for part in (
        *("anyOf", "allOf", "enum", "const", "$ref", '"#"', "prefixItems", "minItems", "patternProperties", "pattern"),
        *("format", "multipleOf", "exclusiveMaximum", '"null"', '"properties": {}', "名前", "Größe", "maxLength"),
    ):
        assert part in text, part
    for schema in schemas:
        jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("names", [("alpha", "beta"), ("beta", "alpha"), ("gamma", "alpha")], ids="-".join)
def test_all_answers_are_valid(roomy, names, temperature):
    schemas = [random_schemas.random_schema(seed) for seed in range(COUNT)]
    with Ensemble.load([roomy[name] for name in names], progress=False, device="cpu") as ensemble:
        handles = [
            ensemble.submit("The quick", json_schema=s, max_new_tokens=400, temperature=temperature, seed=seed)
            for seed, s in enumerate(schemas)
        ]
        answers = [handle.result() for handle in handles]
    cut = [a for a in answers if a.finish_reason == "length"]
    assert len(cut) <= 6, "a random model may go down a recursive schema for ever, but seldom does"
    # Not "date": llguidance allows the year 0 and 29 February in every year, and Python's calendar does not.
    checker = jsonschema.FormatChecker(formats=["ipv4", "uuid"])
    for schema, answer in zip(schemas, answers, strict=True):
        if answer in cut:
            assert len(answer.token_ids) == 400
            continue
        assert answer.finish_reason == "stop"
        value = json.loads(answer.text)
        jsonschema.Draft202012Validator(schema, format_checker=checker).validate(value)
        compact = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        assert len(answer.text) <= 2 * len(compact) + 8, "hardly a blank"
