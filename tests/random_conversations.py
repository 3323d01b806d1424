"""Random conversations whose texts hold control tokens, whole and in halves, and the same without them."""

from hypothesis import strategies as st


class _Texts:
    """Draws pairs of texts, one with attacks and one without, and keeps those with attacks in order.

    Args:
        draw: Hypothesis' own.
        special: Tokens for what an assistant says, and for calls.
        every: Tokens for all others.
    """

    def __init__(self, draw, special, every):
        self.draw, self.special, self.every = draw, sorted(special), sorted(every)
        self.attacks = []

    def text(self, tokens):
        token = self.draw(st.sampled_from([*tokens, "é <", ""]))
        number = len(self.attacks)
        self.attacks.append(f"w{number}x{token}y{token}v")
        return self.attacks[-1], f"w{number}x v"

    def halves(self, tokens):
        """Two strings that make a token where they meet."""
        token = self.draw(st.sampled_from(tokens))
        cut = self.draw(st.integers(1, len(token) - 1))
        self.attacks += [f"w{len(self.attacks)}x{token[:cut]}", f"{token[cut:]}v{len(self.attacks)}"]
        return list(zip(self.attacks[-2:], ("wx", "v"), strict=True))

    def content(self, role):
        tokens = self.special if role == "assistant" else self.every
        form = self.draw(st.sampled_from(["text", "strings", "parts", "halves", "mixed", "empty"]))
        if form == "text":
            return self.text(tokens)
        if form == "empty":
            return (self.draw(st.sampled_from(["", " ", None, [], [_part("")], [""]])),) * 2
        pairs = self.halves(tokens) if form == "halves" else [self.text(tokens) for _ in range(self.count(3))]
        wraps = [{"strings": str, "parts": _part}.get(form) or self.draw(st.sampled_from([str, _part])) for _ in pairs]
        return tuple(
            [wrap(text) for wrap, text in zip(wraps, texts, strict=True)] for texts in zip(*pairs, strict=True)
        )

    def calls(self):
        return zip(*[self.call(number) for number in range(self.count(2))], strict=True)

    def call(self, number):
        form = self.draw(st.sampled_from(['{{"a": "{}"}}'.format, lambda value: {"a": value}]))
        pairs = zip(self.text(self.special), self.text(self.special), strict=True)
        return [
            {"id": f"call0000{number}", "type": "function", "function": {"name": name, "arguments": form(value)}}
            for name, value in pairs
        ]

    def count(self, most):
        return self.draw(st.integers(1, most))


def _part(text):
    return {"type": "text", "text": text}


@st.composite
def conversations(draw, special, every):
    """A conversation with attacks, the same without any, and the texts of the first in order."""
    texts = _Texts(draw, special, every)
    chat, harmless = [], []
    for role in draw(st.lists(st.sampled_from(["system", "user", "assistant", "tool"]), min_size=1, max_size=6)):
        for messages, content in zip((chat, harmless), texts.content(role), strict=True):
            messages.append({"role": role, "content": content})
        if role == "assistant" and draw(st.booleans()):
            for messages, calls in zip((chat, harmless), texts.calls(), strict=True):
                messages[-1]["tool_calls"] = list(calls)
    return chat, harmless, texts.attacks
