"""A LangChain chain on the embedded demo: one question, a batch of questions, and a streamed answer.

Run with: python examples/langchain_chain.py
"""

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import PromptTemplate

from deepen_core.demo import documents, questions
from deepen_integrations.langchain import DeepenLLM


def main() -> None:
    # Two small models with different tokenizers; each knows part of an invented town. Nothing is loaded yet.
    llm = DeepenLLM.demo(max_new_tokens=16)
    chain = PromptTemplate.from_template("Question: {question}\nAnswer:") | llm | StrOutputParser()

    print("One question")
    first, *others = questions()[:7]
    print(f"  {first.text} {chain.invoke({'question': first.text}).strip()}.")

    print("\nA batch, answered by one call of the engine")
    answers = chain.batch([{"question": question.text} for question in others])
    for question, answer in zip(others, answers, strict=True):
        mark = "right" if answer.strip() == question.answer else f"it is {question.answer}"
        print(f"  {question.text:<42} {answer.strip():<12} {mark}")

    print("\nA stream, with options for this call only")
    opening = documents()[0].text.partition(". ")[0] + "."
    print(f"  {opening}", end="")
    for piece in llm.stream(opening, max_new_tokens=60, stop=["\n", "Question"]):
        print(piece, end="", flush=True)
    print()

    usage = llm.generate([first.prompt]).generations[0][0].generation_info
    print(f"\nWhat LangChain is told of the first answer: {usage}")
    llm.close()


if __name__ == "__main__":
    main()
