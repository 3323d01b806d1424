"""Chat templates come from model folders: none stops the process, whatever it computes or prints."""

import shutil

import chat_templates
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from deepen_core import Ensemble, MemberConfig
from deepen_core.chat import template_work
from deepen_core.chat.template_engine import MAX_TEMPLATE, TemplateProgram
from deepen_core.chat.template_estimates import FILTERS, check_call
from deepen_core.chat.template_work import LimitError, Work
from deepen_core.errors import ChatTemplateError, ChatTemplateLimitError

CHAT = [{"role": "user", "content": "Hi"}]
FOR_EVER = "{% for a in range(100000) %}{% for b in range(100000) %}BODY{% endfor %}{% endfor %}"


def again(statement, end=""):
    start = "{% set ns = namespace(x='ab', y=[1], n=3) %}"
    return start + "{% for i in range(60) %}" + statement + "{% endfor %}" + end


MADE = "makes more than"
TIME = "was not done after"
BITS = "integers of more than"
HOSTILE = {
    "a loop": (FOR_EVER.replace("BODY", ""), TIME),
    "a loop that prints": (FOR_EVER.replace("BODY", "text"), MADE),
    "a loop of comparisons": (FOR_EVER.replace("BODY", "{% if a in messages %}{% endif %}"), TIME),
    "a loop over a copy": ("{% for a in range(100000)|list * 1000 %}{% endfor %}", MADE),
    "a long range": ("{{ range(10**9)|list }}", "a range of 1,000,000,000 numbers"),
    "a macro twice in itself": (
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        TIME,
    ),
    "calls in calls": (
        "{% macro f() %}{{ caller() }}{{ caller() }}{% endmacro %}"
        + "{% call f() %}" * 40
        + "x"
        + "{% endcall %}" * 40,
        f"{TIME}|{MADE}",
    ),
    "a text doubled": (again("{% set ns.x = ns.x + ns.x %}"), MADE),
    "a text joined to itself": (again("{% set ns.x = ns.x ~ ns.x %}"), MADE),
    "a block doubled": (again("{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}"), MADE),
    "a long sum": ("{% set x = 'a' * 100000 %}{{ " + "+".join(["x"] * 60) + " }}", MADE),
    "long parts": ("{% set x = 'a' * 100000 %}{{ " + "~".join(["x"] * 5000) + " }}", MADE),
    "slices": ("{% set x = 'a' * 100000 %}" + "{% set y = x[1:] %}" * 200, MADE),
    "a list of itself": (again("{% set ns.y = [ns.y, ns.y] %}", "{{ ns.y }}"), f"{MADE}|{TIME}"),
    "a mapping of itself": (again("{% set ns.y = {'a': ns.y, 'b': ns.y} %}"), f"{MADE}|{TIME}"),
    "views of itself": (again("{% set ns.y = [{1: ns.y}.values(), {1: ns.y}.values()] %}"), f"{MADE}|{TIME}"),
    "a method": (again("{% set ns.x = ns.x.replace('a', 'a' * 10) %}"), MADE),
    "a filter": (again("{% set ns.x = ns.x|replace('a', 'a' * 10) %}"), MADE),
    "a filter by its name": ("{{ [1, 2]|map('center', 10**10)|list }}", MADE),
    "a filter of a constant": ("{{ 'a'|center(10000000000) }}", MADE),
    "join": ("{{ range(100000)|join('a' * 1000) }}", MADE),
    "join of a generator": ("{{ range(100000)|map('string')|join('x' * 1000) }}", f"{MADE}|{TIME}"),
    "width": ("{{ 'a'.ljust(10**11) }}", MADE),
    "tabs": ("{{ ('\t' * 10000).expandtabs(1000000) }}", MADE),
    "indent": ("{{ ('\n' * 10000)|indent(1000000) }}", MADE),
    "percent": ("{{ '%99999999999d' % 1 }}", MADE),
    "a width beside": ("{{ '%*d' % (99999999999, 1) }}", MADE),
    "format": ("{{ '{:{}}'.format(1, 10**10) }}", MADE),
    "the filter format": ("{{ '%99999999999d'|format(1) }}", MADE),
    "bytes": ("{{ 'a'.encode().center(10**10) }}", MADE),
    "JSON": ("{{ messages|tojson(indent=10**9) }}", "indents JSON by"),
    "a power": ("{{ 10 ** (10 ** 10) }}", BITS),
    "a product": (again("{% set ns.n = ns.n * ns.n %}"), BITS),
    "a long number": ("{{ ('f' * 100000)|int(base=16) }}", BITS),
    "rounding": ("{{ 5|round(-1000000000) }}", "rounds to -1000000000 digits"),
    "a sum of lists": ("{{ ([[1]] * 1000)|sum(start=[]) }}", "adds up values of type list"),
    "a long template": ("a" * (MAX_TEMPLATE + 1), f"at most {MAX_TEMPLATE:,} are compiled"),
}


@pytest.fixture
def low(monkeypatch):
    """Limits that are reached sooner, so that the tests take less time."""
    monkeypatch.setattr(template_work, "MAX_SECONDS", 0.1)
    monkeypatch.setattr(template_work, "MAX_MADE", 2**20)


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_template_without_an_end_meets_a_limit(kind, low, monkeypatch):
    template, said = HOSTILE[kind]
    if TIME not in said:  # a slow machine must not come to that limit first
        monkeypatch.setattr(template_work, "MAX_SECONDS", 30.0)
    if said == TIME:  # nor a fast one to the other limit
        monkeypatch.setattr(template_work, "MAX_MADE", 2**40)
    with pytest.raises(LimitError, match=said):
        TemplateProgram(template).render(CHAT, {})


@pytest.mark.parametrize(
    "template",
    [
        "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
        "{{ " + "+".join(["1"] * 60_000) + " }}",
        "{% if 1 %}" * 300 + "{% endif %}" * 300,
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% block a %}{{ self.a() }}{% endblock %}",
        "{{ lipsum(n=10**6) }}",
        "{{ ('a.' * 100000)|urlize }}",
        "{{ (5).to_bytes(10**10, 'big') }}",
        "{{ ('a' * 1000).translate({97: 'b' * 100000}) }}",
        "{% set ns = namespace(_x=1) %}",
    ],
)
def test_other_templates_fail_by_themselves(template):
    with pytest.raises(Exception, match=r"recursion|undefined|urlize|unsafe|underscore"):
        TemplateProgram(template).render(CHAT, {})


def member(tmp_path, folders, template):
    folder = shutil.copytree(folders["alpha"], tmp_path / "hostile")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def test_loading_stops_at_a_template_that_always_loops(tmp_path, folders, low):
    folder = member(tmp_path, folders, FOR_EVER)
    with pytest.raises(ChatTemplateLimitError, match=f"The chat template of member 'hostile' ({MADE}|{TIME})"):
        Ensemble.load([folder], device="cpu", progress=False)
    with Ensemble.load(
        [MemberConfig(model=str(folder), chat_template="{{ messages[0].content }}")], device="cpu"
    ) as ensemble:
        assert ensemble.generate(CHAT, max_new_tokens=2, ignore_eos=True).finish_reason == "length"


def test_a_request_stops_at_a_template_that_loops_for_some(tmp_path, folders, low):
    body = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if 'boom' in m.content %}" + FOR_EVER
    folder = member(tmp_path, folders, body + "{% endif %}{% endfor %}")
    with Ensemble.load([folder], device="cpu", progress=False) as ensemble:
        usual = ensemble.generate(CHAT, max_new_tokens=3).text
        with pytest.raises(ChatTemplateLimitError, match="member 'hostile'"):
            ensemble.generate([{"role": "user", "content": "boom"}], max_new_tokens=3)
        assert ensemble.generate(CHAT, max_new_tokens=3).text == usual
    assert issubclass(ChatTemplateLimitError, ChatTemplateError)


def test_a_long_conversation_is_within_the_limits():
    chat = [
        {"role": role, "content": "Some words of a turn. " * 100} for _ in range(500) for role in ("user", "assistant")
    ]
    for name, (template, *_) in chat_templates.TEMPLATES.items():
        if name != "parts":
            rendered = TemplateProgram(template).render([*chat, *CHAT], {"bos_token": "<s>", "eos_token": "</s>"})
            assert name == "silent" or len(rendered) > 1_000_000


LANGUAGE = {
    "json": "{{ messages|tojson }}{{ messages|tojson(indent=2, ensure_ascii=True) }}"
    "{{ x|tojson(separators=(',', ':')) }}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "loop controls": "{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "recursive": "{% for m in x recursive %}{{ m.a }}{% if m.b %}{{ loop(m.b) }}{% endif %}{% endfor %}",
    "namespace": "{% set ns = namespace(a=1) %}{% set ns.a = ns.a + 1 %}{{ ns.a }}{{ dict(a=1) }}"
    "{{ dict.fromkeys([1]) }}",
    "filters": "{{ messages|map(attribute='role')|join(', ') }}{{ ' a '|trim|upper|replace('A', 'b')|indent(2) }}"
    "{{ '%s-%s'|format(1, 2) }}{{ [3, 1]|sort }}{{ [1, 2, 3]|batch(2)|list }}{{ [1, 2]|sum }}{{ 2.55|round(1) }}"
    "{{ messages|selectattr('role', 'equalto', 'user')|list|length }}{% filter upper %}a{% endfilter %}",
    "methods": "{{ '{} {a}'.format(1, a=2) }}{{ 'a,b'.split(',') }}{{ ', '.join(['a', 'b']) }}{{ 'a'.center(5) }}",
    "operators": "{{ 1 + 2 * 3 ** 2 % 4 // 1 - 5 / 2 }}{{ 'a' ~ 1 ~ none ~ true }}{{ 'ab' * 2 }}{{ [1] * 2 + [3] }}"
    "{{ '%s' % 'a' }}{{ 'a' in 'ab' }}{{ 1 < 2 <= 3 != 4 }}{{ 'abc'[::-1] }}{{ (1, 2)[0] }}{{ {'a': [1]} }}",
    "tests": "{{ 1 is eq 1 }}{{ 1 in [1] }}{{ 2 is in [1] }}{{ x is defined }}{{ y is defined }}"
    "{{ 3 is divisibleby 3 }}",
    "macros": "{% macro f(a, b=2) %}{{ a }}{{ b }}{{ caller(3) if caller }}{% endmacro %}{{ f(1) }}"
    "{% call(c) f(1, 5) %}{{ c }}{% endcall %}",
    "blocks": "{% set t %}{{ messages[0].role }}!{% endset %}{{ t }}{% block a %}x{% endblock %}{{ self.a() }}"
    "{% for i in [1] %}{% block b scoped %}{{ i ~ 'y' }}{% endblock %}{% endfor %}",
    "spaces": "  {% if true %}\n  a\n  {% endif %}\n{# c #}\nb\n",
    "values": "{{ x }}{{ none }}{{ 1.5 }}{{ x[0].a is string }}{{ x|length }}{{ bos_token }}{{ undefined_name }}",
}


@pytest.mark.parametrize("kind", LANGUAGE)
def test_the_language_is_that_of_transformers(kind):
    chat = [*CHAT, {"role": "assistant", "content": "Höl\n"}]
    variables = {"x": [{"a": "é", "b": [{"a": 1}]}], "bos_token": "<s>"}
    expected = render_jinja_template([chat], chat_template=LANGUAGE[kind], add_generation_prompt=True, **variables)
    assert TemplateProgram(LANGUAGE[kind]).render(chat, variables) == expected[0][0]


short = st.text("ab%{}\t\n 1", max_size=8)
numbers = st.integers(-3, 30)
values = st.one_of(short, numbers, st.lists(short, max_size=3), st.dictionaries(short, short, max_size=2))


@given(st.sampled_from(sorted(FILTERS)), values, st.lists(values, max_size=2))
@example("slice", "", [8, {"": "1111", "11": "1"}])
@example("batch", "a", [8, {"": "1111", "11": "1"}])
def test_no_filter_makes_more_than_estimated(name, value, args):
    work = Work()
    environment = TemplateProgram("")._template.environment
    context = environment.from_string("").new_context({})
    try:
        made = environment.call_filter(name, value, args, {}, context)
        size = work.weight(list(made) if name in ("batch", "slice") else made)
    except Exception:  # noqa: BLE001 not what the filter takes
        return
    assert size <= 4 * FILTERS[name](work, value, *args) + 100 or name in ("round", "sum")


METHODS = ("center", "expandtabs", "format", "format_map", "join", "ljust", "replace", "rjust", "zfill")


@given(st.sampled_from(METHODS), short, st.lists(values, max_size=2))
def test_no_method_makes_more_than_estimated(name, text, args):
    asked = []

    class Asked(Work):
        def check_room(self, size):
            asked.append(size)

    method = getattr(text, name)
    try:
        made = method(*args)
    except Exception:  # noqa: BLE001 not what the method takes
        return
    check_call(Asked(), method, args, {})
    assert len(made) <= 4 * asked[-1] + 4
