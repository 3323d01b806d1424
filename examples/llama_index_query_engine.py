"""A LlamaIndex query engine on the embedded demo: find the right document and answer from it.

Run with: python examples/llama_index_query_engine.py
"""

from llama_index.core import Document, VectorStoreIndex

from deepen_core.demo import documents, questions
from deepen_integrations.llama_index import DeepenLLM, HashingEmbedding, configure_settings


def main() -> None:
    llm = DeepenLLM.demo(max_new_tokens=16)
    configure_settings(llm)  # LlamaIndex counts tokens to fill prompts; count with the main member's tokenizer

    people = [Document(text=document.text, metadata={"person": document.title}) for document in documents()]
    index = VectorStoreIndex.from_documents(people, embed_model=HashingEmbedding())
    print(f"{len(people)} documents, such as:\n  {people[0].text}\n")

    engine = index.as_query_engine(llm=llm, similarity_top_k=1)
    for question in questions()[:5]:
        response = engine.query(question.text)
        (source,) = response.source_nodes
        said = str(response).strip()
        mark = "right" if said == question.answer else f"it is {question.answer}"
        print(f"{question.text:<42} {said:<12} {mark}, from the document on {source.metadata['person']}")

    print("\nStreaming:")
    question = questions()[5]
    print(f"{question.text:<42}", end="")
    streaming = index.as_query_engine(llm=llm, similarity_top_k=1, streaming=True)
    for piece in streaming.query(question.text).response_gen:
        print(piece, end="", flush=True)
    print()
    llm.close()


if __name__ == "__main__":
    main()
