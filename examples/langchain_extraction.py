"""Structured extraction with LangChain on the embedded demo: turn texts about people into objects.

`with_structured_output` shows the models a schema and holds the answer to it, so an object is always valid; what is in
it is up to the models. The texts tell another story than the one that these were trained on, so whatever is right was
read. All texts are one batch.

Run with: python examples/langchain_extraction.py
"""

from pydantic import BaseModel

from deepen_core.demo.passages import passages
from deepen_integrations.langchain import ChatDeepen


class Person(BaseModel):
    """What is written about a person."""

    job: str
    city: str
    pet: str
    number: int


def main() -> None:
    asked = passages()[:6]
    with ChatDeepen.demo(max_tokens=64) as chat:
        people = chat.with_structured_output(Person).batch([passage.text for passage in asked])
    right, fields = 0, 0
    for passage, person in zip(asked, people, strict=True):
        print(f"{passage.text}\n  {person!r}\n")
        marks = [str(value) == passage.values[name] for name, value in person]
        right += sum(marks)
        fields += len(marks)
    print(f"{right} of {fields} fields are what the texts say")


if __name__ == "__main__":
    main()
