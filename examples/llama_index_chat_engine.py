"""A LlamaIndex chat engine on the embedded demo: it retrieves a document per question and streams the answers.

Run with: python examples/llama_index_chat_engine.py
"""

from llama_index.core import Document, VectorStoreIndex
from llama_index.core.memory import ChatMemoryBuffer

from deepen_core.demo import documents, questions
from deepen_integrations.llama_index import DeepenLLM, HashingEmbedding, configure_settings


def main() -> None:
    llm = DeepenLLM.demo(max_new_tokens=16)
    configure_settings(llm)  # first: memory and prompts then count tokens with the main member's tokenizer

    people = [Document(text=document.text) for document in documents()]
    index = VectorStoreIndex.from_documents(people, embed_model=HashingEmbedding())
    memory = ChatMemoryBuffer.from_defaults(token_limit=40)
    # The demo's models follow no instructions, so the system message is the document alone.
    engine = index.as_chat_engine(
        chat_mode="context", llm=llm, memory=memory, similarity_top_k=1, context_template="{context_str}"
    )

    print("A conversation")
    for question in questions()[:6]:
        print(f"  {question.text:<42}", end="")
        said = ""
        for piece in engine.stream_chat(question.text).response_gen:
            said += piece
            print(piece, end="", flush=True)
        print(", right" if said.strip() == question.answer else f", but it is {question.answer}")

    remembered, said = memory.get(), memory.get_all()
    print(f"\nOf {len(said)} messages the last {len(remembered)} go along with the next question:")
    for message in remembered:
        print(f"  {message.role.value:<10} {message.content.strip()}")

    engine.reset()
    print(f"\nAfter a reset: {len(engine.chat_history)} messages")
    llm.close()


if __name__ == "__main__":
    main()
