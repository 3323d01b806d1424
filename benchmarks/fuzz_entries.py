"""The public ways in, each with valid inputs to be changed, and the errors that it may raise."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from langchain_core.messages import convert_to_messages

from benchmarks.fuzz_entry import Entry, Try
from benchmarks.fuzz_files import file_entries, shallow_copy
from benchmarks.fuzz_inputs import Mutator
from deepen_core import Ensemble, MemberConfig
from deepen_core.chat.messages import check_messages
from deepen_core.chat.thoughts import Thoughts
from deepen_core.config import SamplingParams, resolve_fusion, resolve_sampling
from deepen_core.config.members import member_config
from deepen_core.constraints.grammar import grammar_of
from deepen_core.demo import member_paths
from deepen_core.errors import DeepenError
from deepen_core.members.loading import member_configs
from deepen_core.replies import ReplyForm
from deepen_core.replies.parser import ReplyParser, parse_reply
from deepen_integrations.langchain import ChatDeepen, DeepenLLM
from deepen_integrations.llama_index import DeepenLLM as LlamaIndexLLM
from deepen_integrations.serve.bodies import ChatBody, CompletionBody, parsed

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}"
    "{{ c.function.arguments|tojson }}{% endfor %}\n{% endfor %}<assistant>"
)
SAMPLING: dict[str, Any] = {
    "max_new_tokens": 2, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.01, "seed": 3, "stop": ["\n", "x"],
    "logprobs": 2, "repetition_penalty": 1.1, "frequency_penalty": 0.1, "presence_penalty": 0.1, "ignore_eos": True,
    "timeout": 5.0, "logit_bias": {"5": 1.0}, "deterministic": False, "control_tokens": False,
}  # fmt: skip
LOADING: dict[str, Any] = {
    "main": 0, "weights": [0.5, 0.5], "fusion": "deepen", "device": "cpu", "dtype": "float32", "max_batch_size": 4,
    "prompts": [None, "{prompt}"], "gate": 0.9, "max_context_window": 100, "prefix_cache_size": 2,
    "on_member_error": "drop",
}  # fmt: skip
CHAT: list[Any] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Hi"}, "there"]},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}],
    },
    {"role": "tool", "tool_call_id": "c1", "name": "f", "content": "2"},
    {"role": "user", "content": "And now?"},
]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "a": {"type": "integer", "minimum": 0, "maximum": 9},
        "b": {"type": "array", "items": {"$ref": "#/$defs/c"}, "maxItems": 3},
        "d": {"anyOf": [{"type": "string", "pattern": "^a+$"}, {"enum": ["x", 1, None]}]},
        "e": {"type": "string", "format": "date", "maxLength": 9},
    },
    "required": ["a"],
    "additionalProperties": False,
    "$defs": {"c": {"type": "number", "multipleOf": 0.5}},
}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "f", "description": "Adds.", "parameters": SCHEMA, "strict": True},
}
GRAMMARS: list[dict[str, Any]] = [
    {"json_schema": SCHEMA},
    {"regex": "(yes|no)[0-9]{2,5}"},
    {"choices": ["yes", "no", "maybe"]},
    {"grammar": 'start: "a" rest\nrest: /[b-d]+/ | "e" start?\n'},
]
REPLY = (
    '<think>so</think>Text <tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n```json\n{"name": "f"}\n```'
)


@contextmanager
def entries() -> Iterator[list[Entry]]:
    """Opens what the entries need: a small and shallow ensemble, and a folder for files."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        copies = [shallow_copy(path, folder / "pair" / path.name) for path in member_paths()]
        configs = [MemberConfig(model=str(path), chat_template=TEMPLATE) for path in copies]
        pair = stack.enter_context(Ensemble.load(configs, device="cpu", progress=False))
        alone = pair.alone(0)
        yield [*_options(), *_requests(pair, alone), *_parts(), *_adapters(pair), *file_entries(folder)]


def _options() -> list[Entry]:
    missing = ["/nowhere/a", "/nowhere/b"]
    member = {"model": "/nowhere/a", "name": "a", "device": "cpu", "dtype": "float32", "revision": None, "weight": 1.0}
    member |= {"chat_template": TEMPLATE, "context_window": 100, "prompt": "{prompt}", "model_kwargs": {"a": 1}}
    fusions: list[Any] = [
        {"strategy": "product"},
        {"strategy": "union", "k": 5},
        "deepen",
        {"strategy": "deepen-paper"},
    ]

    def load(mutator: Mutator) -> None:
        Ensemble.load(
            **{"models": missing, **_named(mutator.changed({"models": missing, **LOADING})), "progress": False}
        )

    def config(mutator: Mutator) -> None:
        Ensemble.from_config(mutator.changed({"models": missing, **LOADING}), progress=False)

    return [
        Entry("Ensemble.load: options", load, (DeepenError, TypeError)),
        Entry("Ensemble.from_config", config),
        Entry("a member's options", lambda mutator: member_configs([mutator.changed(member)]) and None),
        Entry("a member of any kind", lambda mutator: member_config(mutator.value()) and None),
        Entry("fusion=", lambda mutator: resolve_fusion(mutator.changed(mutator.draw.choice(fusions))) and None),
    ]


def _requests(pair: Ensemble, alone: Ensemble) -> list[Entry]:
    def sampling(mutator: Mutator) -> None:
        resolve_sampling(None, _named(mutator.changed({**SAMPLING, **mutator.draw.choice([{}, *GRAMMARS])})))

    def generate(mutator: Mutator) -> None:
        options = _brief(mutator.changed({**SAMPLING, "prompt": "Where does"}))
        alone.generate(options.pop("prompt", "Hi"), **options)

    def constrained(mutator: Mutator) -> None:
        options = _brief(mutator.changed({"max_new_tokens": 2, **mutator.draw.choice(GRAMMARS)}))
        alone.generate("Hi", **options)

    def messages(mutator: Mutator) -> None:
        pair.count_tokens(mutator.changed(CHAT))

    def variables(mutator: Mutator) -> None:
        given = mutator.changed({"enable_thinking": True, "a": [1]})
        alone.generate(CHAT, max_new_tokens=1, chat_template_kwargs=given)

    def texts(mutator: Mutator) -> None:
        given = mutator.changed("Some text") if mutator.draw.random() < 0.7 else mutator.value()
        mutator.draw.choice((pair.tokenize, pair.token_ends, pair.count_tokens))(given)

    def score(mutator: Mutator) -> None:
        prompt, continuation = mutator.changed("Where"), mutator.changed(" is")
        alone.score(prompt, mutator.value() if mutator.draw.random() < 0.2 else continuation)

    return [
        Entry("SamplingParams", sampling),
        Entry("generate: options and text", generate, (DeepenError, TypeError)),
        Entry("generate: constraints", constrained, (DeepenError, TypeError)),
        Entry("messages", messages),
        Entry("chat_template_kwargs", variables),
        Entry("tokenize, token_ends, count_tokens", texts, (DeepenError, TypeError)),
        Entry("score", score, (DeepenError, TypeError)),
    ]


def _parts() -> list[Entry]:
    def schema(mutator: Mutator) -> None:
        params = resolve_sampling(None, {"json_schema": mutator.changed(SCHEMA, 5)})
        if params.json_schema is not None:
            grammar_of(params)

    def grammar(mutator: Mutator) -> None:
        params = resolve_sampling(None, _named(mutator.changed(mutator.draw.choice(GRAMMARS[1:]))))
        if params.constraint is not None:
            grammar_of(params)

    def tools(mutator: Mutator) -> None:
        choice = mutator.draw.choice([None, "auto", "required", "f", {"type": "function", "function": {"name": "f"}}])
        form = ReplyForm.from_openai(mutator.changed([TOOL]), mutator.changed(choice))
        form.params(SamplingParams(), Thoughts())

    def reply(mutator: Mutator) -> None:
        said = mutator.changed(REPLY, 6)
        parse_reply(said if isinstance(said, str) else mutator.text(), ReplyParser(["f", "g"]))

    def body(mutator: Mutator) -> None:
        chat = {"model": "m", "messages": CHAT, "tools": [TOOL], "temperature": 0.5, "n": 2, "stream": False}
        text = {"model": "m", "prompt": ["a", "b"], "max_tokens": 3, "stop": ["x"], "logprobs": 1, "echo": False}
        kind = mutator.draw.choice((ChatBody, CompletionBody))
        raw = json.dumps(mutator.changed(chat if kind is ChatBody else text)).encode("utf-8", "replace")
        read: Any = parsed(mutator.changed_bytes(raw) if mutator.draw.random() < 0.3 else raw, kind)
        resolve_sampling(None, read.options if kind is CompletionBody else {})

    return [
        Entry("schemas", schema),
        Entry("regex, choices, grammar", grammar),
        Entry("tools and tool_choice", tools),
        Entry("answers that are parsed", reply, ()),
        Entry("bodies of the server", body),
        Entry("messages of any kind", lambda mutator: check_messages(mutator.value()) and None),
    ]


def _adapters(pair: Ensemble) -> list[Entry]:
    chat = ChatDeepen.from_ensemble(pair, max_tokens=1)
    options = {"models": ["/nowhere/a"], **{name: LOADING[name] for name in ("main", "fusion", "device", "gate")}}
    langchain = {**options, "max_tokens": 5, "temperature": 0.5, "stop": ["x"], "seed": 1, "timeout": 5.0}
    llama_index = {**options, "max_tokens": 5, "temperature": 0.5}
    wrong = (DeepenError, ValueError, TypeError)

    def made(kind: Any, valid: dict[str, Any]) -> Try:
        return lambda mutator: kind(**_named(mutator.changed(valid))) and None

    def invoke(mutator: Mutator) -> None:
        said = [
            [kind, text] for kind, text in (("system", "Be brief."), ("human", "Hi"), ("ai", "Yes"), ("human", "And?"))
        ]
        given = mutator.changed(said)
        if not isinstance(given, str):
            try:
                given = convert_to_messages(given)
            except Exception as own:  # LangChain's, which raises KeyError and NotImplementedError as well
                raise ValueError("not messages of LangChain") from own
        chat.invoke(given)

    def tools(mutator: Mutator) -> None:
        chat.bind_tools(mutator.changed([TOOL]), tool_choice=mutator.changed("auto")).invoke("Hi", max_tokens=1)

    return [
        Entry("ChatDeepen", made(ChatDeepen, langchain), wrong),
        Entry("DeepenLLM (LangChain)", made(DeepenLLM, langchain), wrong),
        Entry("DeepenLLM (LlamaIndex)", made(LlamaIndexLLM, llama_index), wrong),
        Entry("ChatDeepen.invoke", invoke, wrong, share=0.2),
        Entry("ChatDeepen.bind_tools", tools, wrong, share=0.2),
    ]


def _named(given: Any) -> dict[str, Any]:
    """Returns options as Python takes them: by names that are texts."""
    return {str(name): value for name, value in given.items()} if isinstance(given, dict) else {}


def _brief(given: Any) -> dict[str, Any]:
    """Returns options of a request that asks for a few tokens, so that it is about the options."""
    options = _named(given)
    most = options.get("max_new_tokens")
    wrong = not isinstance(most, int) or isinstance(most, bool) or most < 1
    return options if wrong and most is not None else {**options, "max_new_tokens": 2}
