"""Retrieval with LangChain on the embedded demo: find the right document and answer from it.

Run with: python examples/langchain_rag.py
"""

from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore

from deepen_core.demo import documents, questions
from deepen_integrations.langchain import DeepenLLM, HashingEmbeddings


def main() -> None:
    people = [Document(document.text, metadata={"person": document.title}) for document in documents()]
    store = InMemoryVectorStore.from_documents(people, HashingEmbeddings())
    retriever = store.as_retriever(search_kwargs={"k": 1})
    print(f"{len(people)} documents, such as:\n  {people[0].page_content}\n")

    llm = DeepenLLM.demo(max_new_tokens=16, stop=["\n"])
    chain = (
        {"context": retriever | _joined, "question": RunnablePassthrough()}
        | PromptTemplate.from_template("{context}\n\nQuestion: {question}\nAnswer:")
        | llm
        | StrOutputParser()
    )
    asked = questions()[:6]
    for question, answer in zip(asked, chain.batch([question.text for question in asked]), strict=True):
        (source,) = retriever.invoke(question.text)
        mark = "right" if answer.strip() == question.answer else f"it is {question.answer}"
        print(f"{question.text:<42} {answer.strip():<12} {mark}, from the document on {source.metadata['person']}")

    print("\nStreaming:")
    print(f"{asked[0].text:<42}", end="")
    for piece in chain.stream(asked[0].text):
        print(piece, end="", flush=True)
    print()
    llm.close()


def _joined(found: list[Document]) -> str:
    return "\n".join(document.page_content for document in found)


if __name__ == "__main__":
    main()
