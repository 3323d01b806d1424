"""The tables of `deepen info` and `deepen demo`, and those of answers: votes and log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deepen_integrations.doctor.findings import size

if TYPE_CHECKING:
    from deepen_core.results import EnsembleInfo, MemberInfo, TokenLogprob
    from deepen_core.voting import Choice
    from deepen_integrations.cli.demo import Comparison


def _window(member: MemberInfo) -> str:
    answer = f"{member.context_window:,} tokens"
    return answer if member.source_window is None else f"{member.source_window:,} tokens, and for the answer {answer}"


def _elsewhere(member: MemberInfo) -> str | None:
    if member.elsewhere is None:
        return None
    top_k = member.elsewhere.top_k
    return f"{member.elsewhere.place}; sends {'all tokens' if top_k is None else f'the top {top_k}'}"


_MEMBER_ROWS: dict[str, Callable[[MemberInfo], str | None]] = {
    "architecture": lambda m: m.architecture,
    "parameters": lambda m: f"{m.parameters:,}",
    "device, dtype": lambda m: f"{m.device}, {m.dtype}",
    "weight": lambda m: f"{m.weight:.3g}",
    "vocabulary": lambda m: f"{m.vocabulary_size:,} tokens",
    "bytes per token": lambda m: f"{m.bytes_per_token:.2f}",
    "context window": _window,
    "ends a text with": lambda m: " ".join(m.stop_tokens) or "nothing",
    "chat template": lambda m: "yes" if m.has_chat_template else "no",
    "temperature": lambda m: _number(m.temperature, ",.1f"),
    "self-mass": lambda m: _number(m.self_mass, ".3f"),
    "effective support": lambda m: _number(m.effective_support, ",.1f", " anchors"),
    "rows built": lambda m: f"{m.rows_built:,}" if _has_space(m) else None,
    "relative space": lambda m: size(m.space_bytes) if _has_space(m) else None,
    "several requests": lambda m: m.batching,
    "runs elsewhere": _elsewhere,
}
"""What is shown of a member; None where its strategy of fusion has no such number."""
_MISSING = "-"
_KNOWN = {"both": "Both know", "half": "Both are in two minds"}


def _has_space(member: MemberInfo) -> bool:
    """Whether the strategy of fusion has given the member a relative space."""
    return member.temperature is not None


def _number(value: float | None, form: str, unit: str = "") -> str | None:
    return None if value is None else f"{value:{form}}{unit}"


def print_info(console: Console, info: EnsembleInfo) -> None:
    """Prints the members side by side, then the facts about the ensemble, then the warnings."""
    table = Table(title="Members", title_justify="left")
    table.add_column("")
    for member in info.members:
        table.add_column(Text(member.name + (" (main)" if member.name == info.main else "")), overflow="fold")
    for label, value in _MEMBER_ROWS.items():
        shown = [value(member) for member in info.members]
        if any(shown):
            table.add_row(label, *(Text(text or _MISSING) for text in shown))
    console.print(table)

    together = Table.grid(padding=(0, 2))
    together.add_row("fusion", info.fusion if info.chosen is None else f"{info.fusion}: {info.chosen}")
    if info.weight_policy != "static":
        together.add_row("weights", f"{info.weight_policy}, starting from those above")
    if info.anchors is not None:
        together.add_row("anchors", f"{info.anchors:,} tokens that all members share")
    together.add_row("context window", f"{info.context_window:,} tokens")
    together.add_row("memory held", f"{size(info.bytes_held)} beyond the models' own weights")
    console.print(together)
    for warning in info.warnings:
        console.print(Text(f"Warning: {warning}", style="yellow"))
    if info.limits:
        console.print("What fusion cannot do with these members:")
    for limit in info.limits:
        console.print(Text(f"- {limit}"))
    if not info.warnings:
        console.print("Compatibility: no warnings.", style="green")


def print_answers(console: Console, comparison: Comparison) -> None:
    """Prints a row for each question, grouped by the members that know the answer, and the counts of right answers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("Question")
    for answers in comparison.answers:
        table.add_column(answers.by, no_wrap=True)
    table.add_column("Right answer", style="bold", no_wrap=True)
    for known_to in sorted({question.known_to for question in comparison.questions}):
        table.add_section()
        table.add_row(Text(_KNOWN.get(known_to, f"Only {known_to} knows"), style="italic"))
        for row, question in enumerate(comparison.questions):
            if question.known_to == known_to:
                marked = [_marked(answers.texts[row], answers.right[row]) for answers in comparison.answers]
                table.add_row(Text(question.text), *marked, Text(question.answer))
    console.print(table)

    count = len(comparison.questions)
    totals = [f"{answers.by} {sum(answers.right)} of {count}" for answers in comparison.answers]
    console.print(f"Right: {', '.join(totals)}.", style="bold")


def print_votes(console: Console, choice: Choice) -> None:
    """Prints a row for each answer that was sampled, and the share of the one that wins."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("by", "answer"):
        table.add_column(name, overflow="fold")
    table.add_column({"majority": "votes", "mbr": "chrF", "likelihood": "nats a byte"}[choice.by], justify="right")
    for place, candidate in enumerate(choice.candidates):
        score = _number(candidate.score, "g" if choice.by == "majority" else ".2f") or _MISSING
        answer = _MISSING if candidate.answer is None else candidate.answer
        cells = (candidate.source, answer, score)
        table.add_row(*(Text(cell) for cell in cells), style="bold" if place == choice.place else "")
    console.print(table)
    console.print(f"{100 * choice.share:.0f} % of {len(choice.candidates)} answers agree with the chosen one.")


def print_logprobs(console: Console, tokens: Sequence[TokenLogprob]) -> None:
    """Prints a row for each token: its log-probability in nats, fused and under each member, and the alternatives."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("token", overflow="fold")
    names = [member.name for member in tokens[0].members] if tokens else []
    for name in ("logprob", *names):
        table.add_column(name, justify="right", overflow="fold")
    table.add_column("most probable", overflow="fold")
    for token in tokens:
        others = [f"{_quoted(piece)} {logprob:.2f}" for _, piece, logprob in token.top]
        alone = [_number(member.logprob, ".2f") or _MISSING for member in token.members]
        cells = (_quoted(token.token), f"{token.logprob:.2f}", *alone, "  ".join(others))
        table.add_row(*(Text(cell) for cell in cells))
    console.print(table)


def _quoted(token: bytes) -> str:
    return repr(token.decode("utf-8", "backslashreplace"))


def _marked(text: str, right: bool) -> Text:
    return Text(f"✓ {text}", style="green") if right else Text(f"✗ {text}", style="red")
