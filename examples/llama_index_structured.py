"""Structured output with LlamaIndex on the embedded demo: objects that are always valid for their class.

Run with: python examples/llama_index_structured.py
"""

import asyncio

from llama_index.core import Document, PromptTemplate, VectorStoreIndex
from pydantic import BaseModel, Field

from deepen_core.demo import documents, questions
from deepen_integrations.llama_index import DeepenLLM, HashingEmbedding, configure_settings


class House(BaseModel):
    """Where somebody lives."""

    number: int = Field(ge=1, le=99)


# Decoding follows the class's JSON schema, so an answer is always a House; its content is up to the models. Those of
# the demo have never seen JSON. They can fill in a number, which looks the same as in prose, but not a quoted word.
# Instruction-tuned models fill in fields of all kinds.
def main() -> None:
    llm = DeepenLLM.demo(max_new_tokens=40)
    configure_settings(llm)
    people = [Document(text=document.text) for document in documents()]
    index = VectorStoreIndex.from_documents(people, embed_model=HashingEmbedding())
    asked = [question for question in questions() if question.relation == "number"][:9]

    print("Read from the documents by a query engine; always a number, which the demo's models sometimes guess")
    engine = index.as_query_engine(
        llm=llm.as_structured_llm(House),
        similarity_top_k=1,
        text_qa_template=PromptTemplate("{context_str}\n\n{query_str}"),
    )
    for question in asked:
        house = engine.query(question.text).response
        mark = "right" if str(house.number) == question.answer else f"it is {question.answer}"
        print(f"  {question.text:<42} {house.number:<6} {house!r:<18} {mark}")

    print("\nWithout the documents, three at once in an event loop")
    for question, house in zip(
        asked, asyncio.run(several(llm, [question.text for question in asked[:3]])), strict=False
    ):
        mark = "right" if str(house.number) == question.answer else f"it is {question.answer}"
        print(f"  {question.text:<42} {house!r:<18} {mark}")

    print("\nA stream of objects, each with what is known by then")
    seen = ""
    for house in llm.stream_structured_predict(House, PromptTemplate("{question}"), question=asked[1].text):
        if str(house.number) != seen:
            seen = str(house.number)
            print(f"  number: {seen}")
    llm.close()


async def several(llm: DeepenLLM, texts: list[str]) -> list[House]:
    """Ask without an index; the ensemble decodes all questions together."""
    prompt = PromptTemplate("{question}")
    return await asyncio.gather(*(llm.astructured_predict(House, prompt, question=text) for text in texts))


if __name__ == "__main__":
    main()
