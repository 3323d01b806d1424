"""A fake ensemble for the command line, and a runner."""

from typer.testing import CliRunner

from deepen_core.results import Chunk, EnsembleInfo, Generation, MemberInfo, Timings, TokenLogprob, Usage
from deepen_integrations.cli.commands import commands


def member(name: str, **changes) -> MemberInfo:
    values = {
        "name": name,
        "architecture": "GPT2LMHeadModel",
        "parameters": 1234567,
        "vocabulary_size": 512,
        "context_window": 256,
        "weight": 0.5,
        "device": "cpu",
        "dtype": "float32",
        "stop_tokens": ["</s>"],
        "has_chat_template": True,
        "temperature": 41.5,
        "self_mass": 0.9,
        "effective_support": 1.52,
        "rows_built": 12_345,
        "bytes_per_token": 3.25,
        "space_bytes": 2048,
    }
    return MemberInfo(**{**values, **changes})


class FakeEnsemble:
    """Says `pieces` and remembers what it was asked."""

    def __init__(self, pieces=(" Blue", " sky."), warnings=()):
        self.pieces = list(pieces)
        self.warnings = list(warnings)
        self.asked = []
        self.options = {}
        members = [member("general"), member("specialist")]
        self.info = EnsembleInfo(members, "general", "deepen", 1500, 256, 4096, list(warnings), ["It cannot fly."])

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        return None

    def generate(self, prompt, **options):
        self.asked.append(prompt)
        self.options = options
        logprobs = [TokenLogprob(7, b"\xf0\x9f", -0.5, ((7, b"\xf0\x9f", -0.5),))]
        text = "".join(piece for piece in self.pieces if isinstance(piece, str))
        shown = logprobs if options.get("logprobs") is not None else None
        return Generation(text, [7, 8], "length", Usage(3, 2), shown, Timings(0.5, 0.25, 0.25), warnings=self.warnings)

    def stream(self, prompt, **options):
        generation = self.generate(prompt, **options)
        for piece in self.pieces:
            if isinstance(piece, BaseException):
                raise piece
            yield Chunk(piece, [7])
        yield Chunk("", [], "length", generation)


OPENING = [f"deepen_integrations.cli.{module}.open_ensemble" for module in ("asking", "describing", "measuring")]
"""Where the commands look up what opens their ensemble."""


def run(*arguments: str, input: str | None = None):  # noqa: A002 (CliRunner's name)
    return CliRunner().invoke(commands, list(arguments), input=input)
