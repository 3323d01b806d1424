"""A trace as a picture: a column for each token, with what each member would have said above one another."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence

from deepen_core.tracing.drawing import Drawing, decision_of, escaped, label_of, percent, shown_token, silence_of
from deepen_core.tracing.records import TraceStep, Voice

_CHARACTER, _LINE = 8.0, 18  # pixels of the font, in both directions
_GAP, _MARGIN, _MOST_WIDTH = 14, 16, 900
_LONGEST = 16  # characters of a token
_STYLE = (
    "text{font:13px ui-monospace,Menlo,Consolas,monospace;fill:#1b1f24;white-space:pre}.f{fill:#5c6670}"
    ".h{font-weight:bold}.g{fill:#fff}.b{fill:#f0f2f5}"
    "@media (prefers-color-scheme:dark){text{fill:#e4e8ec}.f{fill:#98a3ae}.g{fill:#0f1318}.b{fill:#1f262e}}"
)


def picture(drawing: Drawing) -> str:
    """Returns the picture of a trace."""
    names = ["answer", *drawing.members]
    first = _MARGIN + max(map(_width, names)) + _GAP
    blocks = list(_blocks([_column(step) for step in drawing.steps], _MOST_WIDTH - first - _MARGIN))
    widest = max((sum(width for _, width, _ in block) + _GAP * len(block) for block in blocks), default=0)
    width = first + max(widest, _width(drawing.title) - first + _MARGIN) + _MARGIN
    drawn: list[str] = []
    y = float(_MARGIN)
    if drawing.title:
        y += _LINE
        drawn.append(_text(_MARGIN, y, drawing.title, "h"))
        y += _LINE / 2
    for block in blocks:
        y = _draw_block(drawing, block, names, first, y, drawn)
    drawn.append(_text(_MARGIN, y + _LINE, _caption(drawing), "f"))
    width = max(width, _MARGIN * 2 + _width(_caption(drawing)))
    height = y + 2 * _LINE
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img">'
        f"<title>{escaped(drawing.title or 'Who decided what')}</title>"
        f'<style>{_STYLE}</style><rect class="g" width="100%" height="100%"/>{"".join(drawn)}</svg>\n'
    )


_Column = tuple[TraceStep, float, list[str]]


def _column(step: TraceStep) -> _Column:
    """Returns a step, its width in pixels, and what stands in it: the token, and a line for each member."""
    cells = [_cut(label_of(step)), *map(_said, step.voices)]
    return step, max(map(_width, cells)), cells


def _said(voice: Voice) -> str:
    if not voice.spoke or not voice.heard:
        return silence_of(voice).partition(":")[0] or "-"
    text, probability = voice.heard[0]
    return f"{_cut(shown_token(text))} {percent(probability)}"


def _blocks(columns: Sequence[_Column], most: float) -> Iterator[list[_Column]]:
    """Yields the columns that fit side by side."""
    block: list[_Column] = []
    used = 0.0
    for column in columns:
        if block and used + column[1] + _GAP > most:
            yield block
            block, used = [], 0.0
        block.append(column)
        used += column[1] + _GAP
    if block:
        yield block


def _draw_block(
    drawing: Drawing, block: Sequence[_Column], names: Sequence[str], first: float, y: float, drawn: list[str]
) -> float:
    """Draws some columns below a height, and returns the height below them."""
    lines = [y + _LINE * (number + 1) + (6 if number else 0) for number in range(len(names))]
    for number, (name, line) in enumerate(zip(names, lines, strict=True)):
        if number:
            drawn.append(_chip(_MARGIN, line, drawing.colour_of(name)))
        drawn.append(_text(_MARGIN + 12 * bool(number), line, name, "f"))
    x = first + 12
    for step, width, cells in block:
        tip = escaped(f"{decision_of(step)}: {percent(step.probability)}, {step.by or drawing.main}")
        colour = None if step.by is None or step.decision == "alone" else drawing.colour_of(step.by)
        fill = 'class="b"' if colour is None else f'fill="{colour}" fill-opacity=".28"'
        drawn.append(
            f'<rect x="{x - 5:.1f}" y="{lines[0] - 14:.1f}" width="{width + 10:.1f}" height="{_LINE}" rx="3" {fill}>'
            f"<title>{tip}</title></rect>"
        )
        for number, (cell, line) in enumerate(zip(cells, lines, strict=True)):
            chose = number and step.voices[number - 1].heard[:1] and step.voices[number - 1].heard[0].text == step.text
            drawn.append(_text(x, line, cell, "h" if not number else "" if chose else "f"))
        x += width + _GAP
    return lines[-1] + _LINE


def _caption(drawing: Drawing) -> str:
    counts = [f"{one.name} decided {one.decided}" for one in drawing.summary]
    agreed = sum(step.decision == "agreement" for step in drawing.steps)
    return f"{len(drawing.steps)} steps: on {agreed} (grey) all members agree, {', '.join(counts)}."


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escaped(text)}</text>'


def _chip(x: float, y: float, colour: str) -> str:
    return f'<rect x="{x}" y="{y - 9:.1f}" width="8" height="8" rx="2" fill="{colour}"/>'


def _width(text: str) -> float:
    """Returns about how wide a text is, in pixels: characters of East Asian scripts take the room of two."""
    return _CHARACTER * sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
