"""The wordings of the demo world: how its facts are stated, asked and told as prose.

Pure data. `{name}` is the person, `{value}` the answer, and in the prose also `{she}`, `{her}`, `{Her}`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """One thing that can be known of a person.

    Attributes:
        key: Its name in code, such as `city`.
        values: The closed set of its answers.
        statements: Sentences that say it, with `{name}` and `{value}`.
        questions: Wordings that ask for it, with `{name}`.
    """

    key: str
    values: tuple[str, ...]
    statements: tuple[str, ...]
    questions: tuple[str, ...]


def _words(*lines: str) -> tuple[str, ...]:
    return tuple(word for line in lines for word in line.split())


RELATIONS: tuple[Relation, ...] = (
    Relation(
        "city",
        _words(
            "Lisbon Oslo Cairo Lima Kyoto Dublin Prague Quito",
            "Vienna Havana Bergen Nairobi Seville Geneva Athens Malmö",
        ),
        (
            "{name} lives in {value}.",
            "{name} has a home in {value}.",
            "The city where {name} lives is {value}.",
            "{name}'s home is in {value}.",
        ),
        (
            "Where does {name} live?",
            "Which city does {name} live in?",
            "What is {name}'s home city?",
            "In which city is {name}'s home?",
            "Which city is home to {name}?",
        ),
    ),
    Relation(
        "job",
        _words(
            "baker pilot nurse farmer painter teacher doctor sailor",
            "miller tailor potter singer gardener lawyer plumber chemist",
        ),
        (
            "{name} works as a {value}.",
            "{name} is a {value} by trade.",
            "For a living, {name} is a {value}.",
            "{name}'s job is being a {value}.",
        ),
        (
            "What is {name}'s job?",
            "What does {name} do for a living?",
            "What does {name} work as?",
            "Which job does {name} have?",
            "What is {name} by trade?",
        ),
    ),
    Relation(
        "pet",
        _words(
            "cat dog parrot rabbit turtle hamster goat pony",
            "falcon ferret gecko hedgehog lizard canary duck raven",
        ),
        (
            "{name} keeps a {value}.",
            "{name} has a pet {value}.",
            "{name}'s pet is a {value}.",
            "The animal that lives with {name} is a {value}.",
        ),
        (
            "Which pet does {name} have?",
            "What animal does {name} keep?",
            "What is {name}'s pet?",
            "What kind of animal lives with {name}?",
            "Which animal is {name}'s pet?",
        ),
    ),
    Relation(
        "instrument",
        _words("piano violin flute drums harp cello trumpet banjo guitar clarinet trombone fiddle"),
        (
            "{name} plays the {value}.",
            "{name}'s instrument is the {value}.",
            "In the band, {name} plays the {value}.",
            "The instrument that {name} learned is the {value}.",
        ),
        (
            "Which instrument does {name} play?",
            "What does {name} play in the band?",
            "What is {name}'s instrument?",
            "What instrument did {name} learn?",
            "Which instrument is {name} good at?",
        ),
    ),
    Relation(
        "colour",
        _words("red blue green yellow purple orange brown black white pink grey silver golden violet"),
        (
            "{name}'s favourite colour is {value}.",
            "{name} likes the colour {value} best.",
            "The colour that {name} prefers is {value}.",
            "Of all colours, {name} likes {value}.",
        ),
        (
            "What is {name}'s favourite colour?",
            "Which colour does {name} like best?",
            "What colour does {name} prefer?",
            "Which colour would {name} choose?",
            "Of all colours, which does {name} like?",
        ),
    ),
    Relation(
        "food",
        _words(
            "soup rice bread cheese pasta honey apples",
            "cherries plums noodles salad beans pancakes lentils",
        ),
        (
            "{name} likes to eat {value}.",
            "{name}'s favourite food is {value}.",
            "For dinner, {name} wants {value}.",
            "The food that {name} likes best is {value}.",
        ),
        (
            "What does {name} like to eat?",
            "What is {name}'s favourite food?",
            "Which food does {name} like best?",
            "What does {name} want for dinner?",
            "What would {name} love to eat?",
        ),
    ),
    Relation(
        "month",
        _words(
            "January February March April May June",
            "July August September October November December",
        ),
        (
            "{name} was born in {value}.",
            "{name}'s birthday is in {value}.",
            "The month of {name}'s birth is {value}.",
            "{name} has a birthday in {value}.",
        ),
        (
            "When was {name} born?",
            "In which month was {name} born?",
            "When is {name}'s birthday?",
            "In which month is {name}'s birthday?",
            "Which month was {name} born in?",
        ),
    ),
    Relation(
        "number",
        _words("12 15 17 23 26 31 34 48 49 52 57 60 65 74 78 83"),
        (
            "{name}'s house number is {value}.",
            "The number on {name}'s door is {value}.",
            "{name} lives at number {value}.",
            "{name}'s house has the number {value}.",
        ),
        (
            "What is {name}'s house number?",
            "What number is on {name}'s door?",
            "At which number does {name} live?",
            "What number does {name}'s house have?",
            "Which house number does {name} have?",
        ),
    ),
)

WOMEN = _words(
    "Mira Anna Clara Elsa Nadia Ruth Ingrid Leila Paula Greta Yara Olga Hanna Sofia Tessa",
    "Freya Dalia Wanda Irene Judith Karin Bianca Vera Zoë Esther Lucia Naomi Petra Rosa Selma",
)
MEN = _words(
    "Tomas Henrik Omar Felix Pavel Diego Bruno Marco Victor Ivan Jonas Kofi Søren Niels Oscar",
    "Pedro Quentin Rafael Samuel Theo Umberto Walter Xavier Yusuf Anton Boris Cyril Dario Emil Gustav",
)

PORTRAITS: tuple[tuple[str, ...], ...] = (
    (
        "{name} lives in {city}, at number {number}.",
        "{name} works as a {job} and plays the {instrument}.",
        "{name} was born in {month}.",
        "{Her} favourite colour is {colour}, and {she} likes to eat {food}.",
        "{name} keeps a {pet}.",
    ),
    (
        "{name} is a {job} by trade and was born in {month}.",
        "The city where {name} lives is {city}, and the number on {name}'s door is {number}.",
        "{name} has a pet {pet}.",
        "In the band, {name} plays the {instrument}.",
        "{name} likes the colour {colour} best, and {her} favourite food is {food}.",
    ),
    (
        "{name}'s home is in {city}, and {her} house number is {number}.",
        "For a living, {name} is a {job}.",
        "{name}'s pet is a {pet}, and {her} instrument is the {instrument}.",
        "{name} has a birthday in {month}.",
        "For dinner, {name} wants {food}, and of all colours, {she} likes {colour}.",
    ),
)
"""Portraits of a person in prose, a sentence an entry."""

GREETINGS: tuple[tuple[str, str], ...] = (
    ("German", "Schöne Grüße aus Köln"),
    ("French", "Très bien, à bientôt, garçon"),
    ("Spanish", "¿Qué tal, señor? ¡Mañana!"),
    ("Portuguese", "Olá, até amanhã, coração"),
    ("Swedish", "Hej då, tack så mycket, på återseende"),
    ("Danish", "Tak for mad, på gensyn, kære børn"),
    ("Polish", "Cześć, dziękuję, miło cię widzieć, późno już"),
    ("Czech", "Dobrý večer, děkuji, příště"),
    ("Turkish", "Günaydın, teşekkürler, iyi akşamlar, hoşça kal"),
    ("Hungarian", "Jó reggelt, köszönöm, viszontlátásra, őszi szél"),
    ("Greek", "Καλημέρα, ευχαριστώ, γειά σου φίλε"),
    ("Russian", "Привет, спасибо, до свидания, хороший день"),
    ("Ukrainian", "Добрий ранок, дякую, їжак і ґава"),
    ("Hebrew", "שלום, תודה רבה, בוקר טוב"),
    ("Arabic", "مرحبا، شكرا جزيلا، صباح الخير"),
    ("Hindi", "नमस्ते, धन्यवाद, शुभ रात्रि"),
    ("Thai", "สวัสดี ขอบคุณ ลาก่อน"),
    ("Japanese", "こんにちは、ありがとう、またね"),
    ("Chinese", "你好，谢谢，再见，早上好"),
    ("Korean", "안녕하세요, 감사합니다, 좋은 아침"),
    ("emoji", "👋🙂🎻🐢🌍🍎"),
)
"""Lines of a guest book, so that the tokens of single bytes mean something too."""
