"""What a model thinks before it answers is a block of its own in LlamaIndex's messages, and no text."""

import pytest
from llama_index.core.base.llms.types import ChatMessage, TextBlock, ThinkingBlock

from deepen_integrations.llama_index import DeepenLLM

ASK = [ChatMessage(role="user", content="Where?")]

pytestmark = pytest.mark.usefixtures("loop_of_llama_index")


@pytest.fixture
def thinker(ensemble):
    """An ensemble whose template opens the thoughts."""
    ensemble.has_chat_template, ensemble.thinking = True, "opened"
    ensemble.answers["Where?"] = "Lisbon or Oslo?\n</think>\n\nIn Lisbon."
    return ensemble


async def responses(llm, way):
    if way == "chat":
        return [llm.chat(ASK)]
    if way == "achat":
        return [await llm.achat(ASK)]
    if way == "stream":
        return list(llm.stream_chat(ASK))
    return [response async for response in await llm.astream_chat(ASK)]


@pytest.mark.parametrize("way", ["chat", "achat", "stream", "astream"])
async def test_thoughts_are_a_block_and_no_text(thinker, way):
    *growing, last = await responses(DeepenLLM.from_ensemble(thinker), way)
    thought, text = last.message.blocks
    assert (thought, text) == (ThinkingBlock(content="Lisbon or Oslo?", num_tokens=3), TextBlock(text="In Lisbon."))
    assert last.message.content == "In Lisbon."
    if growing:
        everything = [*growing, last]
        assert "".join(response.delta for response in everything) == "In Lisbon."
        told = [response.additional_kwargs.get("thinking_delta", "") for response in everything]
        assert "".join(told) == "Lisbon or Oslo?"
        assert len([delta for delta in told if delta]) > 1


def test_thoughts_are_given_back_beside_the_text(thinker):
    """For templates that read them; the others get the text alone."""
    llm = DeepenLLM.from_ensemble(thinker)
    llm.chat([*ASK, llm.chat(ASK).message, *ASK])
    told = thinker.requests[-1][0][1]
    assert told == {"role": "assistant", "content": "In Lisbon.", "reasoning_content": "Lisbon or Oslo?"}


def test_the_switch_and_the_room_for_thoughts(thinker):
    llm = DeepenLLM.from_ensemble(thinker, reasoning=False)
    llm.chat(ASK)
    assert thinker.requests[-1][1].reasoning is False
    llm.chat(ASK, reasoning="low")
    assert thinker.requests[-1][1].reasoning == "low"
    thinker.context_window = 20_000
    assert DeepenLLM.from_ensemble(thinker).metadata.num_output == 4096
    assert DeepenLLM.from_ensemble(thinker, reasoning=False).metadata.num_output == 256
    assert DeepenLLM.from_ensemble(thinker, max_new_tokens=7).metadata.num_output == 7


def test_a_prompt_of_ones_own_opens_no_thoughts(thinker):
    """Then the template has not begun them, and an answer without any is no thought."""
    thinker.answers["<Where?>"] = "In Lisbon."
    llm = DeepenLLM.from_ensemble(thinker, messages_to_prompt=lambda messages: f"<{messages[-1].content}>")
    assert llm.chat(ASK).message.blocks == [TextBlock(text="In Lisbon.")]
    thinker.answers["<Where?>"] = "<think>Hm.</think> In Lisbon."
    assert llm.chat(ASK).message.content == "In Lisbon."
