"""Structured extraction with LangChain on the embedded demo: turn texts about people into objects.

`with_structured_output` shows the models a schema and constrains the answer to it, so the answer is always valid. The
demo's models are small and have never seen a schema, so they fill it at random. The example therefore asks for each
field in words too, with `choices` that limit the answer to the field's values. All documents form one batch per field.

Run with: python examples/langchain_extraction.py
"""

from typing import Literal, get_args

from langchain_core.prompts import ChatPromptTemplate
from pydantic import BaseModel

from deepen_core.demo import documents
from deepen_integrations.langchain import ChatDeepen

Job = Literal["baker", "chemist", "doctor", "farmer", "gardener", "lawyer", "nurse", "painter", "pilot", "potter"]
City = Literal["Athens", "Bergen", "Cairo", "Geneva", "Kyoto", "Lima", "Oslo", "Prague", "Quito", "Vienna"]
Pet = Literal["canary", "cat", "dog", "duck", "goat", "hamster", "pony", "rabbit", "raven", "turtle"]


class Person(BaseModel):
    """What is written about a person."""

    job: Job
    city: City
    pet: Pet


IN_WORDS = {"job": "What does {name} work as?", "city": "Where does {name} live?", "pet": "What is {name}'s pet?"}


def main() -> None:
    records = [record for record in documents() if all(_said(record.text, field) for field in IN_WORDS)][:6]
    with ChatDeepen.demo(max_tokens=64) as chat:
        blind = chat.with_structured_output(Person).invoke(records[0].text)
        print(f"By its schema alone, always valid, but the demo's models guess: {blind!r}\n")

        columns = {}
        for field, question in IN_WORDS.items():
            prompt = ChatPromptTemplate.from_messages([("system", "{text}"), ("human", question)])
            chain = prompt | chat.bind(choices=[f" {value}" for value in _values(field)])
            answers = chain.batch([{"text": record.text, "name": record.title} for record in records])
            columns[field] = [answer.text.strip() for answer in answers]

    people = [Person(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]
    for record, person in zip(records, people, strict=True):
        print(f"{record.title:<8} {person!r}")
    right = [value == _said(r.text, field) for r, p in zip(records, people, strict=True) for field, value in p]
    print(f"\n{sum(right)} of {len(right)} fields are what the documents say")


def _values(field: str) -> tuple[str, ...]:
    return get_args(Person.model_fields[field].annotation)


def _said(text: str, field: str) -> str | None:
    """Return the value of a field that occurs in a document."""
    return next((value for value in _values(field) if value in text), None)


if __name__ == "__main__":
    main()
