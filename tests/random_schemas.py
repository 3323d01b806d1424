"""Random JSON schemas of every kind that is supported, each with a value that it allows somewhere."""

import random

WORDS = ["name", "âge", "город", "名前", "a b", 'quo"te', "x-1", "emoji😀", "kind", "n"]


def random_schema(seed):
    """A schema of bounded size: random weights love long texts."""
    return _Maker(random.Random(seed)).schema()


class _Maker:
    def __init__(self, dice):
        self.dice = dice
        self.defs = {}

    def schema(self):
        kinds = [self.object_, self.array, self.union, self.enum, self.chain, self.tree]
        (kind,) = self.dice.choices(kinds, weights=[24, 6, 6, 4, 1, 1])
        made = kind(depth=0)
        return {**made, "$defs": self.defs} if self.defs else made

    def value(self, depth):
        plain = [self.text, self.pattern, self.format_, self.integer, self.number, self.enum, self.const, self.scalar]
        nested = [self.object_, self.array, self.union, self.optional, self.empty, self.shared, self.joined]
        return self.dice.choice(plain if depth >= 3 else plain + nested)(depth=depth)

    def object_(self, depth):
        names = self.dice.sample(WORDS, self.dice.randint(1, 4))
        made = {
            "type": "object",
            "properties": {name: self.value(depth + 1) for name in names},
            "required": [name for name in names if self.dice.random() < 0.6],
        }
        if self.dice.random() < 0.8:
            return {**made, "additionalProperties": False}
        bounds = {"minProperties": len(names), "maxProperties": len(names) + 1}
        return {
            **made,
            "patternProperties": {"^p[0-9]$": self.scalar(depth)},
            "additionalProperties": False,
            **bounds,
        } | {"required": names}

    def empty(self, depth):
        return {"type": "object", "properties": {}, "additionalProperties": False}

    def array(self, depth):
        least = self.dice.randint(0, 2)
        if self.dice.random() < 0.25:
            items = [self.value(depth + 1) for _ in range(2)]
            return {"type": "array", "prefixItems": items, "items": False, "minItems": least}
        return {"type": "array", "items": self.value(depth + 1), "minItems": least, "maxItems": least + 1}

    def union(self, depth):
        return {"anyOf": [self.value(depth + 1) for _ in range(self.dice.randint(2, 3))]}

    def optional(self, depth):
        return {"anyOf": [self.value(depth + 1), {"type": "null"}], "default": None}

    def joined(self, depth):
        return {"allOf": [{"type": "integer", "minimum": -5}, {"maximum": 50}], "description": "two together"}

    def text(self, depth):
        least = self.dice.randint(0, 3)
        return {"type": "string", "minLength": least, "maxLength": least + 4}

    def pattern(self, depth):
        return {"type": "string", "pattern": self.dice.choice([r"^[A-Z]{2}\d{3}$", "^(ja|nein|да)$", "^[^ü]{1,4}$"])}

    def format_(self, depth):
        return {"type": "string", "format": self.dice.choice(["ipv4", "uuid", "date"])}

    def integer(self, depth):
        low = self.dice.randint(-200, 200)
        return self.dice.choice(
            [
                {"type": "integer", "minimum": low, "maximum": low + self.dice.randint(0, 400)},
                {"type": "integer", "exclusiveMinimum": low, "exclusiveMaximum": low + 9},
                {"type": "integer", "minimum": 0, "maximum": 1000, "multipleOf": 7},
            ]
        )

    def number(self, depth):
        return {"type": "number", "minimum": -1.5, "maximum": 99.75, "multipleOf": 0.25}

    def scalar(self, depth):
        return {"type": self.dice.choice(["boolean", "null", ["boolean", "null"]])}

    def enum(self, depth):
        return {"enum": self.dice.sample(["rouge", "grün", "青", 'say "hi"', 3, -0.5, None, True, "\t", [1], {}], 4)}

    def const(self, depth):
        return {"const": self.dice.choice(["é\n", 42, False, {"a": [1, "ü"]}, "\\"])}

    def shared(self, depth):
        self.defs["Größe"] = {"type": "object", "properties": {"cm": self.integer(depth)}, "required": ["cm"]}
        self.defs["Größe"]["additionalProperties"] = False
        return {"$ref": "#/$defs/Größe"}

    def tree(self, depth):
        self.defs["node"] = {
            "type": "object",
            "properties": {
                "v": self.integer(depth),
                "left": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]},
            },
            "required": ["v", "left"],
            "additionalProperties": False,
        }
        return {"$ref": "#/$defs/node"}

    def chain(self, depth):
        return {
            "type": "object",
            "properties": {"n": {"type": "boolean"}, "next": {"$ref": "#"}},
            "required": ["n"],
            "additionalProperties": False,
        }
