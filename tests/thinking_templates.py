"""Chat templates in the manner of families that think: how each is switched, and where it looks for thoughts."""

from functools import cache

import tiny

from deepen_core.members.tokenizer import MemberTokenizer

# Closes thoughts that are switched off, and repeats those since the last question, tool responses not counted.
QWEN3 = """\
{%- set ns = namespace(last=messages|length - 1, found=false) %}
{%- for message in messages[::-1] %}
{%- if not ns.found and message.role == 'user' and not (message.content.startswith('<tool_response>')
    and message.content.endswith('</tool_response>')) %}
{%- set ns.found = true %}{%- set ns.last = messages|length - 1 - loop.index0 %}
{%- endif %}
{%- endfor %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' and loop.index0 > ns.last and message.reasoning_content %}
{{- '<think>\\n' + message.reasoning_content.strip('\\n') + '\\n</think>\\n\\n' }}
{%- endif %}
{{- message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""

_DEEPSEEK = """\
{{- bos_token }}
{%- if thinking is not defined %}{%- set thinking = false %}{%- endif %}
{%- for message in messages %}
{%- if message.role == 'user' %}{{- '<|User|>' + message.content }}
{%- elif message.role == 'assistant' %}{{- '<|Assistant|>' + message.content.split('</think>')[-1] + eos_token }}
{%- else %}{{- message.content }}{%- endif %}
{%- endfor %}"""
DEEPSEEK_R1 = (
    _DEEPSEEK.replace("{%- if thinking is not defined %}{%- set thinking = false %}{%- endif %}", "")
    + "{%- if add_generation_prompt %}{{- '<|Assistant|><think>\\n' }}{%- endif %}"
)
DEEPSEEK_V3 = (
    _DEEPSEEK
    + "{%- if add_generation_prompt %}{{- '<|Assistant|>' + ('<think>' if thinking else '</think>') }}{%- endif %}"
)

GLM = """\
{{- '[gMASK]' }}
{%- for message in messages %}
{%- if message.role == 'user' %}
{{- '<|user|>\\n' + message.content }}
{%- if enable_thinking is defined and not enable_thinking %}{{- '/nothink' }}{%- endif %}
{%- elif message.role == 'assistant' %}
{{- '<|assistant|>' }}
{%- if message.reasoning_content is string %}{{- '\\n<think>' + message.reasoning_content + '</think>' }}
{%- else %}{{- '\\n<think></think>' }}{%- endif %}
{{- '\\n' + message.content }}
{%- else %}{{- '<|system|>\\n' + message.content }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}
{%- if enable_thinking is defined and not enable_thinking %}{{- '\\n<think></think>' }}{%- endif %}
{%- endif %}"""

# Thoughts are off, and asked for in its own system message.
GRANITE = """\
{%- if messages[0].role == 'system' %}{%- set system = messages[0].content %}{%- set turns = messages[1:] %}
{%- else %}{%- set turns = messages %}{%- set system = 'You are Granite.' %}
{%- if thinking %}{%- set system = system + ' Write your thoughts between <think></think>.' %}{%- endif %}
{%- endif %}
{{- '<|start_of_role|>system<|end_of_role|>' + system + '<|end_of_text|>\\n' }}
{%- for message in turns %}
{{- '<|start_of_role|>' + message.role + '<|end_of_role|>' + message.content + '<|end_of_text|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}"""

SMOLLM3 = """\
{%- if enable_thinking is not defined %}{%- set enable_thinking = true %}{%- endif %}
{%- set mode = '/think' if enable_thinking else '/no_think' %}
{{- '<|im_start|>system\\nReasoning Mode: ' + mode + '\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content }}{%- set messages = messages[1:] %}{%- endif %}
{{- '<|im_end|>\\n' }}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' + ('' if mode == '/think' else '<think>\\n\\n</think>\\n') }}
{%- endif %}"""

# Always thinks; thoughts are given back with calls of tools, in a field of another name.
GPT_OSS = """\
{%- if reasoning_effort is not defined %}{%- set reasoning_effort = 'medium' %}{%- endif %}
{{- '<|start|>system<|message|>Reasoning: ' + reasoning_effort + '<|end|>' }}
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{%- if message.tool_calls %}
{%- if message.content and message.thinking %}
{{- raise_exception('Cannot pass both content and thinking in an assistant message with tool calls!') }}
{%- elif message.thinking or message.content %}
{{- '<|start|>assistant<|channel|>analysis<|message|>' + (message.thinking or message.content) + '<|end|>' }}
{%- endif %}
{%- set call = message.tool_calls[0].function %}
{{- '<|start|>assistant to=functions.' + call.name + '<|message|>' + call.arguments|tojson + '<|call|>' }}
{%- else %}{{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|end|>' }}{%- endif %}
{%- else %}{{- '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"""

# Thinks only if told how much.
MISTRAL = """\
{{- bos_token }}
{%- set effort = reasoning_effort if reasoning_effort is defined and reasoning_effort is not none else 'none' %}
{%- if effort not in ['none', 'high'] %}{{- raise_exception('reasoning_effort is none or high') }}{%- endif %}
{{- '[MODEL_SETTINGS]' + effort + '[/MODEL_SETTINGS]' }}
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{%- if message.reasoning %}{{- '[THINK]' + message.reasoning + '[/THINK]' }}{%- endif %}
{{- message.content + eos_token }}
{%- else %}{{- '[INST]' + message.content + '[/INST]' }}{%- endif %}
{%- endfor %}"""

SEED = """\
{%- if thinking_budget is not defined %}{%- set thinking_budget = -1 %}{%- endif %}
{%- if thinking_budget == 0 %}
{{- '<seed:bos>system\\nAnswer without <seed:think> or </seed:think>.<seed:eos>' }}
{%- endif %}
{%- for message in messages %}
{{- '<seed:bos>' + message.role + '\\n' + message.content + '<seed:eos>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<seed:bos>assistant\\n' }}{%- endif %}"""

PLAIN = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

TEMPLATES = {
    "qwen3": QWEN3,
    "deepseek r1": DEEPSEEK_R1,
    "deepseek v3": DEEPSEEK_V3,
    "glm": GLM,
    "granite": GRANITE,
    "smollm3": SMOLLM3,
    "gpt-oss": GPT_OSS,
    "mistral": MISTRAL,
    "seed": SEED,
    "plain": PLAIN,
}


def templated(name):
    """A tokenizer with one of the templates."""
    tokenizer = tiny.byte_level()
    tokenizer.chat_template = TEMPLATES[name]
    return tokenizer


@cache
def side(name):
    """The text side of a member called "main" with one of the templates."""
    return MemberTokenizer(templated(name), "main")


def reader(name):
    """Reads the prompts of such a member."""
    return side(name).reader


def rendered(member, messages, variables=None):
    """The conversation as a member reads it; by name of a template, or the text side of a member."""
    member = side(member) if isinstance(member, str) else member
    prompt = member.reader.read_messages(messages, variables)
    tokens = (member.vocabulary.token_bytes(i) or b"" for i in prompt.ids)
    return b"".join(tokens).decode() + prompt.text
