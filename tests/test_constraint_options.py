"""The options that constrain an answer: what they take, what they refuse, and why."""

import json
import pickle
import sys
from types import SimpleNamespace

import pytest
from panic_parts import panics
from pydantic import BaseModel, ConfigDict

from deepen_core import Ensemble, SamplingParams
from deepen_core.config import resolve_sampling
from deepen_core.constraints.grammar import json_rule
from deepen_core.errors import ConfigurationError, SamplingError
from deepen_integrations.langchain import DeepenLLM
from deepen_integrations.llama_index import DeepenLLM as LlamaIndexLLM

SCHEMA = {
    "type": "object",
    "properties": {"ü": {"type": "integer", "maximum": 99, "minimum": 0}},
    "required": ["ü"],
    "additionalProperties": False,
}


class Person(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    age: int | None = None


def nested(levels):
    schema = {"type": "string"}
    for _ in range(levels):
        schema = {"properties": {"a": schema}}
    return schema


def parsed(**options):
    return resolve_sampling(None, options)


@pytest.mark.parametrize("given", [SCHEMA, json.dumps(SCHEMA), json.dumps(SCHEMA, ensure_ascii=False)])
def test_a_schema_in_any_form_is_plain_data(given):
    params = parsed(json_schema=given)
    assert params.json_schema == SCHEMA
    assert params.json_schema is not given
    assert pickle.loads(pickle.dumps(params)) == params
    assert json.loads(params.model_dump_json())["json_schema"] == SCHEMA
    assert params != parsed(json_schema={**SCHEMA, "additionalProperties": True})


def test_a_pydantic_model_is_its_schema():
    assert parsed(json_schema=Person).json_schema == Person.model_json_schema()
    wrapped = {"name": "person", "strict": True, "schema": Person.model_json_schema()}
    assert parsed(json_schema=wrapped).json_schema == Person.model_json_schema()
    twice = {"type": "json_schema", "json_schema": wrapped}
    assert parsed(json_schema=twice).json_schema == Person.model_json_schema()


def test_references_may_have_letters_of_any_script(pair):
    schema = {"items": {"$ref": "#/$defs/Größe"}, "type": "array", "minItems": 1, "maxItems": 2}
    schema["$defs"] = {"Größe": {"enum": [{"$ref": "#/ü"}, 3]}}
    answer = pair.generate("a", json_schema=schema, max_new_tokens=100, temperature=1.0, seed=1)
    assert all(value in ({"$ref": "#/ü"}, 3) for value in json.loads(answer.text))


def test_a_schema_is_the_requests_own():
    schema = json.loads(json.dumps(SCHEMA))
    params = parsed(json_schema=schema)
    schema["properties"]["more"] = {}
    assert params.json_schema == SCHEMA


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"json_schema": "{no json"}, "'json_schema' is '{no json': this is not JSON: Expecting property name"),
        ({"json_schema": [1]}, r"'json_schema' is \[1\]: give a JSON schema as a dict or a string"),
        ({"json_schema": "[1]"}, "give a JSON schema as a dict"),
        ({"json_schema": int}, "give a JSON schema as a dict"),
        ({"json_schema": {"const": {1, 2}}}, "a schema is plain JSON, and this is not: Object of type set"),
        ({"json_schema": {"minimum": float("nan")}}, "plain JSON, and this is not: Out of range float"),
        ({"json_schema": {"const": "\ud800"}}, "half a character"),
        ({"json_schema": nested(65)}, r"more than 128 levels; put its parts side by side under \$defs"),
        ({"json_schema": nested(400)}, "more than 128 levels"),
        ({"json_schema": "[" * 100_000}, "this is not JSON: .*recursion"),
        ({"regex": ""}, "'regex' is '': it would allow only the empty answer"),
        ({"regex": 3}, "'regex' is 3: Input should be a valid string"),
        ({"regex": "\udfff"}, "half a character"),
        ({"grammar": 'start: "\udfff"'}, "half a character"),
        ({"choices": ["a", "b\ud83d"]}, "half a character"),
        ({"grammar": ""}, "'grammar' is '': it would allow only the empty answer"),
        ({"choices": []}, "'choices' is .*: there is nothing to choose from"),
        ({"choices": "yes"}, "'choices' is 'yes': give a list of strings"),
        ({"choices": {"yes": 1}}, "give a list of strings"),
        ({"choices": ["yes", ""]}, "'' is not a choice"),
        ({"choices": ["yes", 3]}, "3 is not a choice"),
        ({"choices": ["a"], "regex": "a"}, "Regex and choices are given; an answer can have one constraint"),
        ({"json_scheme": SCHEMA}, "did you mean 'json_schema'"),
    ],
)
def test_wrong_ones_are_refused(options, said):
    with pytest.raises(SamplingError, match=said):
        parsed(**options)
    with pytest.raises((ConfigurationError, SamplingError), match=said):
        DeepenLLM(models="demo", **options)
    with pytest.raises(SamplingError, match=said):
        DeepenLLM(models="demo").sampling(options)


def test_a_long_wrong_schema_does_not_flood_the_message():
    with pytest.raises(SamplingError) as told:
        parsed(json_schema={"const": {1, 2}, "description": "x" * 5000})
    assert len(str(told.value)) < 500


@pytest.mark.parametrize(
    "option", [{"json_schema": SCHEMA}, {"regex": "a"}, {"choices": ["a"]}, {"grammar": "start: /a/"}]
)
def test_without_the_extra_it_is_named(monkeypatch, option):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    for make in (parsed, lambda **options: DeepenLLM(models="demo", **options)):
        with pytest.raises(
            (SamplingError, ConfigurationError), match=r'pip install "deepen-integrations\[structured\]"'
        ):
            make(**option)
    assert parsed(regex=None, max_new_tokens=3).max_new_tokens == 3


def test_a_calls_constraint_takes_the_place_of_another():
    llm = DeepenLLM(models="demo", regex="[a-z]+", max_new_tokens=7)
    params = llm.sampling({"choices": ["a", "b"]})
    assert (params.regex, params.choices, params.max_new_tokens) == (None, ("a", "b"), 7)
    other = llm.with_options(json_schema=SCHEMA)
    assert (other.regex, other.json_schema) == (None, SCHEMA)
    assert other.sampling({}).json_schema == SCHEMA
    assert llm.sampling({"regex": None}).constraint == "regex"  # None is "not given"
    assert llm.sampling({"temperature": 1.0}).regex == "[a-z]+"


def test_they_are_in_langchains_cache_key():
    """Property order too, since it decides the order of the answer."""
    turned = {"properties": {"a": {}, "b": {}}}, {"properties": {"b": {}, "a": {}}}
    keys = [
        DeepenLLM(models="demo", **options).asdict()
        for options in ({}, {"json_schema": turned[0]}, {"json_schema": turned[1]}, {"regex": "a"}, {"choices": ["a"]})
    ]
    assert len({str(key) for key in keys}) == len(keys)


@pytest.mark.usefixtures("needs_demo")
def test_both_adapters_take_them():
    question = "Question: Where does Felix live?\nAnswer:"
    with Ensemble.demo() as ensemble:
        chain = DeepenLLM.from_ensemble(ensemble, max_new_tokens=60)
        assert chain.invoke(question, choices=[" Oslo", " Lisbon"]) == " Lisbon"
        assert json.loads(chain.invoke(question, json_schema=SCHEMA)).keys() == {"ü"}
        assert "".join(chain.stream(question, regex=" [A-Z][a-z]{5}")) == " Lisbon"
        index = LlamaIndexLLM.from_ensemble(ensemble, max_new_tokens=60, json_schema=SCHEMA)
        assert json.loads(index.complete(question).text).keys() == {"ü"}
        assert index.complete(question, choices=["Oslo", "Lisbon"]).text in {"Oslo", "Lisbon"}


REFUSED = [
    ({"properties": {"a": {"properties": {"b c": {"not": {}}}}}}, r"at \$\.properties\.a\.properties\['b c'\]: .*not"),
    ({"properties": {"tags": {"type": "array", "uniqueItems": True}}}, r"at \$\.properties\.tags: .*uniqueItems"),
    ({"anyOf": [{"type": "null"}, {"if": {}, "then": {}}]}, r"at \$\.anyOf\[1\]: .*if"),
    ({"$defs": {"q": {"contains": {}}}, "$ref": "#/$defs/q"}, r"at \$\.\$defs\.q: .*contains"),
    ({"items": {"$ref": "https://example.org/x.json"}}, r"at \$\.items: 'https://example.org/x.json' lies outside"),
    ({"items": {"$ref": "other.json#/a"}}, r"at \$\.items: .* lies outside"),
    ({"items": {"$ref": "#/$defs/nowhere"}}, r"at \$.*nowhere"),
    ({"items": {"type": "frob"}}, r"at \$\.items: Invalid type: frob"),
    ({"items": {"type": "string", "pattern": "(?=a)"}}, r"at \$\.items: .*look-around"),
    ({"type": "object", "minProperties": 2}, r"at \$: minProperties is 2, but"),
    ({"type": "integer", "minimum": 5, "maximum": 3}, r"at \$: Unsatisfiable schema: minimum \(5\) is greater"),
    ({"allOf": [{"type": "string"}, {"type": "null"}]}, r"at \$: Unsatisfiable"),
    ({"type": "string", "pattern": "^a{5}$", "maxLength": 2}, r"at \$: Unsatisfiable"),
    ({"type": "object", "properties": {"a": False}, "required": ["a"]}, r"at \$: .*'a' is unsatisfiable"),
    ({"enum": []}, r"at \$: Unsatisfiable"),
    # llguidance panics, since it cuts what it quotes inside of a character.
    ({"properties": {"a": {"$ref": ["x" + "\xe9" * 60]}}}, r"at \$\.properties\.a: llguidance fails on it"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, r"at \$: one value may match several options of its oneOf"),
    ({"not": {}, "x-guidance": {"lenient": True}}, r"at \$: .*not"),
]


def test_a_schema_on_which_its_translation_panics_is_refused(pair, monkeypatch):
    broken = SimpleNamespace(grammar_from_json_schema=panics)
    monkeypatch.setattr("deepen_core.constraints.grammar.LLMatcher", broken)
    with pytest.raises(SamplingError, match=r"at \$: llguidance fails on it \(PanicException: a bug in Rust\)"):
        pair.generate("a", json_schema={"type": "integer", "minimum": 12_345})


@pytest.mark.parametrize(("schema", "said"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_followed_is_refused_before_decoding(pair, schema, said):
    member = pair._engine.members[0]
    before = member.work.forwards
    with pytest.raises(SamplingError, match=said):
        pair.generate("a", json_schema=schema)
    with pytest.raises(SamplingError, match=said):
        pair.generate("a", grammar=f"start: %json {json.dumps(schema)}")
    assert member.work.forwards == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"json_schema": {"$ref": "#"}}, "No answer can follow this constraint"),
        ({"regex": "(a"}, "regex cannot be followed: .*unclosed group"),
        ({"regex": "a(?!b)"}, "regex cannot be followed: .*look-around"),
        ({"regex": r"(a)\1"}, "regex cannot be followed: .*backreferences"),
        ({"regex": "[ab&&c]"}, "(No answer can follow|cannot be followed)"),
        ({"regex": "()"}, "regex allows only the empty answer"),
        ({"grammar": "start: other"}, 'grammar cannot be followed: .*unknown name: "other"'),
        ({"grammar": "begin: /a/"}, "no start rule found"),
        ({"grammar": "start: <|eos|>"}, "grammar cannot be followed"),
        ({"grammar": "start: <[1-3]>"}, "no token that may come next"),
        ({"grammar": "start: %json {oops}"}, "grammar has a schema that is not JSON"),
    ],
)
async def test_mistakes_in_expressions_and_grammars(pair, options, said):
    with pytest.raises(SamplingError, match=said):
        pair.generate("a", **options)
    with pytest.raises(SamplingError, match=said):
        await pair.agenerate("a", **options)
    assert pair.generate("a", max_new_tokens=2, ignore_eos=True).finish_reason == "length"


def test_annotations_are_no_constraints(pair):
    """Keywords that only describe, or that nobody knows, change nothing; those of pydantic's unions among them."""
    schema = {
        "title": "T",
        "description": "d",
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "discriminator": {"propertyName": "kind"},
        "oneOf": [
            {
                "type": "object",
                "properties": {"kind": {"const": kind}},
                "required": ["kind"],
                "additionalProperties": False,
            }
            for kind in ("cat", "dog")
        ],
        "examples": [],
        "x-mine": True,
        "uniqueItems": False,
    }
    assert json.loads(pair.generate("a", json_schema=schema, max_new_tokens=200).text)["kind"] in {"cat", "dog"}


def sealed(schema):
    return json.loads(json_rule(schema).removeprefix("%json "))


def test_objects_that_name_their_properties_have_no_others(pair):
    for seed in range(5):
        options = {"max_new_tokens": 200, "temperature": 2.0, "seed": seed}
        answer = pair.generate("a", json_schema={"properties": {"a": {"enum": [1, 2]}}, "type": "object"}, **options)
        assert json.loads(answer.text) in ({}, {"a": 1}, {"a": 2})
    nothing = {"type": "object", "properties": {}}
    assert pair.generate("a", json_schema=nothing, max_new_tokens=200).text == "{}", "a tool without arguments"
    nested = sealed({"properties": {"a": {"$ref": "#/$defs/b"}}, "$defs": {"b": {"properties": {"c": {}}}}})
    assert nested["additionalProperties"] is nested["$defs"]["b"]["additionalProperties"] is False


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"properties": {"a": {}}, "additionalProperties": True},
        {"properties": {"a": {}}, "patternProperties": {"^b": {}}},
        {"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}, "required": ["b"]}]},
        {"properties": {"a": {}}, "anyOf": [{"required": ["a"]}, {"properties": {"b": {}}}]},
        {"properties": {"a": {}}, "type": "object", "required": ["z"]},
        {"properties": {"allOf": {}, "$ref": {"const": 1}}, "required": ["z"], "type": "object"},
    ],
    ids=str,
)
def test_but_those_that_may_have_others_stay_open(schema):
    rule = sealed(schema)
    assert {name: value for name, value in rule.items() if name != "x-guidance"} == schema


def test_a_rule_for_json_is_compact_and_keeps_what_it_was_given():
    rule = json_rule(SCHEMA)
    schema = json.loads(rule.removeprefix("%json "))
    assert schema["x-guidance"]["whitespace_flexible"] is False
    assert {name: schema[name] for name in SCHEMA} == SCHEMA
    assert "x-guidance" not in SCHEMA
    assert "ü" in rule


@pytest.mark.parametrize("directives", [5, None, [], {"whitespace_pattern": "[a-z]*"}, {"json_allowed_escapes": ""}])
def test_directives_to_llguidance_in_a_schema_are_left_out(directives):
    assert json_rule({**SCHEMA, "x-guidance": directives}) == json_rule(SCHEMA)


def test_each_constraint_is_compiled_once(pair, monkeypatch):
    from deepen_core.constraints import matcher as constraint

    compiled = []
    grammar_of = constraint.grammar_of
    monkeypatch.setattr(constraint, "grammar_of", lambda params: compiled.append(params) or grammar_of(params))
    for _ in range(3):
        pair.generate(["a", "b"], regex="[abc]{3}", max_new_tokens=4)
        pair.generate("a", regex="[abd]{3}", max_new_tokens=4)
    assert [params.regex for params in compiled] == ["[abc]{3}", "[abd]{3}"]
    monkeypatch.setattr(constraint, "_KEPT", 2)
    for expression in ("a{3}", "a{4}", "[abc]{3}"):
        pair.generate("a", regex=expression, max_new_tokens=4)
    assert [params.regex for params in compiled][2:] == ["a{3}", "a{4}", "[abc]{3}"]
    assert len(pair._engine.decoder.factory.constraints._compiled) == 2


def test_sampling_params_without_a_constraint_are_as_before():
    assert SamplingParams() == SamplingParams(json_schema=None, regex=None, choices=None, grammar=None)
    assert SamplingParams().constraint is None
    assert hash(SamplingParams(choices=["a"])) == hash(SamplingParams(choices=("a",)))
