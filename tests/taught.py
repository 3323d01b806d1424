"""Two small models that have learned by heart what to say in a few conversations with tools.

Random members follow any schema and understand nothing. These understand just enough to choose: whether to call a tool,
which one, with what.
"""

import torch
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_tests.integration_tests.chat_models import magic_function, unicode_customer
from tiny import CHAT_TEMPLATE, cut_by_regex
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from deepen_core.chat.tool_format import tool_call_text
from deepen_core.members.tokenizer import MemberTokenizer
from deepen_core.replies import ReplyForm, instructed
from deepen_integrations.langchain.messages import chat_messages
from deepen_integrations.langchain.tools import tool_definition

WIDTH = 96
STEPS = 160


@tool
def get_weather(location: str) -> str:
    """Get the weather at a location."""
    return "It's sunny."


def calling(name, arguments):
    return "".join(tool_call_text(name, arguments))


def lessons():
    """Conversations of LangChain's standard tests with the answers that these ask for."""
    weather, where = HumanMessage("What is the weather in San Francisco, CA?"), {"location": "San Francisco, CA"}
    asked = AIMessage("", tool_calls=[{"name": "get_weather", "args": where, "id": "1"}])
    found = ToolMessage("It's sunny.", tool_call_id="1")
    customers = {
        "Create a customer named '你好啊集团' (Hello Group) - a Chinese technology company": "你好啊集团",
        "Create a customer named 'こんにちは株式会社' (Hello Corporation) - a Japanese company": "こんにちは株式会社",
    }
    magic = "What is the value of magic_function(3)? Use the tool."
    return [
        ([magic_function], "any", [HumanMessage(magic)], calling("magic_function", {"input": 3})),
        ([get_weather], "auto", [weather], calling("get_weather", where)),
        ([get_weather], "auto", [weather, asked, found], "It is sunny in San Francisco."),
        *(
            (
                [unicode_customer],
                "any",
                [HumanMessage(said)],
                calling("unicode_customer", {"customer_name": name, "description": "A company"}),
            )
            for said, name in customers.items()
        ),
    ]


def save_taught(root):
    """Teaches two members with different tokenizers and architectures, in some twenty seconds."""
    told = [
        (
            instructed(chat_messages(messages), ReplyForm.from_openai([tool_definition(one) for one in tools], choice)),
            answer,
        )
        for tools, choice, messages, answer in lessons()
    ]
    lines = ["".join(m["content"]) for messages, _ in told for m in messages] + [answer for _, answer in told]
    words, letters = r"\p{L}+|\p{N}|[^\p{L}\p{N}]+", r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return [
            _taught(root / "cook", cut_by_regex(words, lines * 3, 900), _gpt2, told),
            _taught(root / "waiter", cut_by_regex(letters, lines * 3, 700), _llama, told),
        ]


def _gpt2(tokenizer):
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    sizes = {"n_positions": 2048, "n_embd": WIDTH, "n_layer": 2, "n_head": 4}
    return GPT2LMHeadModel(GPT2Config(**sizes, **dropout, **_ids(tokenizer)))


def _llama(tokenizer):
    sizes = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(
        LlamaConfig(**sizes, max_position_embeddings=2048, tie_word_embeddings=True, **_ids(tokenizer))
    )


def _ids(tokenizer):
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _taught(folder, tokenizer, build, told):
    tokenizer.chat_template = CHAT_TEMPLATE
    member = MemberTokenizer(tokenizer, folder.name)
    starts, wholes = [], []
    for messages, answer in told:
        read = member.reader.read_messages(messages)
        starts.append(read.ids + member.encode(read.text))
        wholes.append([*starts[-1], *member.encode(answer), tokenizer.eos_token_id])
    length = max(map(len, wholes))
    ids = torch.tensor([whole + [0] * (length - len(whole)) for whole in wholes])
    places = torch.arange(length)
    answers = torch.stack([(places >= len(s)) & (places < len(w)) for s, w in zip(starts, wholes, strict=True)])
    model = build(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(STEPS):
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits[answers[:, 1:]], ids[answers])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.003:
            break
    assert loss < 0.05, f"{folder.name} has not learned its lessons: {loss:.3f}"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
