"""Small tasks."""

import json

from deepen_core.evaluation.items import ChoiceItem, OpenItem, Task

ITEMS = (
    ChoiceItem("What jumps?", ("the fox", "the lazy dog", "a girl"), 0),
    ChoiceItem("Who sleeps?", ("the quick brown fox", "the dog"), 1),
    ChoiceItem("你好?", ("世界", "hello there", "x"), 2),
)
TASK = Task("animals", ITEMS)
QUESTIONS = (OpenItem("Who sleeps?", ("The dog",)), OpenItem("What jumps?", ("fox", "a fox")))


def written(place, items):
    lines = [json.dumps(vars(item), ensure_ascii=False) for item in items]
    place.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return place
