"""Async LangChain on the embedded demo: concurrent streams, a cancelled request, and one that times out.

Run with: python examples/langchain_async.py
"""

import asyncio

from deepen_core.demo import Question, questions
from deepen_integrations.langchain import DeepenLLM


async def answer(llm: DeepenLLM, question: Question) -> None:
    """Stream one answer while the others are streamed too."""
    pieces = [piece async for piece in llm.astream(f"Question: {question.text}\nAnswer:")]
    said = "".join(pieces).strip()
    mark = "right" if said == question.answer else f"it is {question.answer}"
    print(f"  {question.text:<42} {said:<12} {mark}, in {len(pieces)} pieces")


async def main() -> None:
    llm = DeepenLLM.demo(max_new_tokens=16)

    print("Six streams at once, decoded as one batch")
    await asyncio.gather(*(answer(llm, question) for question in questions()[:6]))

    print("\nA long answer that nobody waits for any longer")
    try:
        await asyncio.wait_for(llm.ainvoke("Anna", max_new_tokens=10_000, ignore_eos=True), timeout=0.2)
    except asyncio.TimeoutError:
        print("  called off after a fifth of a second; its place in the batch is free again")

    print("\nThe same with an answer, as far as it got")
    result = await llm.agenerate(["Anna"], max_new_tokens=10_000, ignore_eos=True, timeout=0.2)
    told = result.generations[0][0].generation_info
    print(f"  {told['usage']['completion_tokens']} tokens, finish_reason {told['finish_reason']!r}")
    llm.close()


if __name__ == "__main__":
    asyncio.run(main())
