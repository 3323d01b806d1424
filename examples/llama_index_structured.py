"""Structured output with LlamaIndex on the embedded demo: objects that are always valid for their class.

The documents tell another story than the one that the demo's models were trained on, so whatever is right was read.

Run with: python examples/llama_index_structured.py
"""

import asyncio

from llama_index.core import Document, PromptTemplate, VectorStoreIndex
from pydantic import BaseModel, Field

from deepen_core.demo.passages import Passage, passages
from deepen_integrations.llama_index import DeepenLLM, HashingEmbedding, configure_settings


class Person(BaseModel):
    """What is written about a person."""

    job: str
    number: int = Field(ge=1, le=99)
    pet: str


READ = PromptTemplate("{text}")


# Decoding follows the class's JSON schema, so an answer is always a Person; its content is up to the models.
def main() -> None:
    llm = DeepenLLM.demo(max_new_tokens=64)
    configure_settings(llm)
    asked = passages()[:6]
    documents = [Document(text=passage.text) for passage in asked]
    index = VectorStoreIndex.from_documents(documents, embed_model=HashingEmbedding())

    print("Read from the documents by a query engine")
    engine = index.as_query_engine(
        llm=llm.as_structured_llm(Person), similarity_top_k=1, text_qa_template=PromptTemplate("{context_str}")
    )
    for passage in asked:
        show(engine.query(passage.question).response, passage)

    print("\nThree at once in an event loop")
    for person, passage in zip(asyncio.run(several(llm, asked[:3])), asked[:3], strict=True):
        show(person, passage)

    print("\nA stream of objects, each with what is known by then")
    seen = ""
    for person in llm.stream_structured_predict(Person, READ, text=asked[0].text):
        if repr(person) != seen:
            seen = repr(person)
            print(f"  {seen}")
    llm.close()


def show(person: Person, passage: Passage) -> None:
    """Print an object, and how much of it the passage says."""
    right = [str(value) == passage.values[name] for name, value in person]
    print(f"  {person!r:<48} {sum(right)} of {len(right)} right")


async def several(llm: DeepenLLM, asked: list[Passage]) -> list[Person]:
    """Read several texts; the ensemble decodes them together."""
    return await asyncio.gather(*(llm.astructured_predict(Person, READ, text=passage.text) for passage in asked))


if __name__ == "__main__":
    main()
