"""A trace as a page of HTML: no scripts, nothing loaded, every text escaped."""

from __future__ import annotations

from collections.abc import Sequence

from deepen_core.tracing.drawing import (
    Drawing,
    decision_of,
    escaped,
    label_of,
    percent,
    shown_token,
    silence_of,
)
from deepen_core.tracing.records import Candidate, TraceStep, Voice
from deepen_core.tracing.style import CSS

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_PAGE_CSS = """
body{margin:0 auto;max-width:52rem;padding:1.5rem 1rem 55vh;background:var(--ground);color:var(--ink);
font:16px/1.6 system-ui,sans-serif}
h1{font-size:1.05rem;font-weight:600;margin:0 0 1rem;white-space:pre-wrap;overflow-wrap:anywhere}
.answer{font-size:1.15rem;line-height:1.9;padding:1rem;border:1px solid var(--line);border-radius:8px}
.card{display:none;position:fixed;inset:auto 0 0;margin:0 auto;z-index:3;max-width:52rem;max-height:50vh;overflow:auto;
padding:.6rem 1rem 1rem;background:var(--card);border:1px solid var(--line);border-radius:12px 12px 0 0;
white-space:normal;font:13px/1.45 system-ui,sans-serif;box-shadow:0 6px 24px rgb(0 0 0/.25)}
.t:hover>.card,.t:focus>.card{display:block}
.card td:first-child{white-space:nowrap}.card b{font-weight:600}
.card table,.sum{border-collapse:collapse;margin-top:.35rem}
.card td,.card th,.sum td,.sum th{padding:.1rem .6rem .1rem 0;text-align:left;vertical-align:top;font-weight:400}
.card th,.sum th{color:var(--faint)}
.card th{white-space:nowrap}.card code{font:12px/1.4 ui-monospace,monospace;white-space:pre-wrap}
.sum{margin:1.25rem 0;font-size:.9rem}.sum td+td,.sum th+th{text-align:right}
.key{color:var(--faint);font-size:.85rem}.key span{margin-right:1.1em}
""".strip()


def page(drawing: Drawing) -> str:
    """Returns the page of a trace."""
    tokens = "".join(_token(drawing, step, piece) for step, piece in zip(drawing.steps, drawing.pieces, strict=True))
    title = escaped(drawing.title) or "Who decided what"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{title}</title><style>{CSS}\n{_PAGE_CSS}</style></head><body>\n"
        f'<h1>{title}</h1>\n<div class="answer">{tokens}</div>\n'
        f"{_legend(drawing)}\n{_summary(drawing)}\n</body></html>\n"
    )


def _token(drawing: Drawing, step: TraceStep, piece: str) -> str:
    kind = [name for name, on in (("alone", step.decision == "alone"), ("unlikely", not step.is_likeliest)) if on]
    colour = "" if step.by is None else f' style="--c:{drawing.colour_of(step.by)}"'
    text = label_of(step) if step.ends else piece or ("·" if step.token else shown_token(step.text))
    inside = f"{escaped(text)}{_card(drawing, step)}"
    return f'<span class="{" ".join(["t", *kind])}" tabindex="0"{colour}>{inside}</span>'


def _card(drawing: Drawing, step: TraceStep) -> str:
    head = (
        f"<b>{escaped(label_of(step))}</b> {escaped(decision_of(step))} · {percent(step.probability)}, "
        f"by {escaped(drawing.main)} alone {percent(step.main_probability)} · moved {percent(step.moved)}"
    )
    if not step.is_likeliest:
        head += " · not the most probable"
    rows = [_row("together", "", step.probability, [("", step.top)])]
    rows += [_voice(drawing, voice) for voice in step.voices]
    headings = "<tr><th></th><th>weight</th><th>this token</th><th>most probable</th></tr>"
    return f'<span class="card">{head}<table>{headings}{"".join(rows)}</table></span>'


def _voice(drawing: Drawing, voice: Voice) -> str:
    name = f'<span class="chip" style="--c:{drawing.colour_of(voice.name)}"></span>{escaped(voice.name)}'
    if not voice.spoke:
        return f"<tr><td>{name}</td><td>{percent(voice.weight)}</td><td></td><td>{escaped(silence_of(voice))}</td></tr>"
    lists = [("", voice.heard)]
    if [candidate.text for candidate in voice.own] != [candidate.text for candidate in voice.heard]:
        lists.append((f"in its own tokens, after {shown_token(voice.after)}: ", voice.own))
    return _row(name, percent(voice.weight), voice.probability, lists, safe=True)


def _row(
    name: str,
    weight: str,
    probability: float | None,
    lists: Sequence[tuple[str, Sequence[Candidate]]],
    *,
    safe: bool = False,
) -> str:
    """Returns a line of the table on a card; `safe` if the name is HTML already."""
    shown = "<br>".join(f"{escaped(label)}{_candidates(candidates)}" for label, candidates in lists)
    cells = (name if safe else escaped(name), weight, percent(probability), shown)
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _candidates(candidates: Sequence[Candidate]) -> str:
    return " ".join(f"<code>{escaped(shown_token(text))}</code> {percent(p)}" for text, p in candidates)


def _legend(drawing: Drawing) -> str:
    found = ["<span>no colour: all agree</span>"]
    for name in drawing.members:
        role = "main" if name == drawing.main else "against main's choice"
        chip = f'<i class="chip" style="--c:{drawing.colour_of(name)}"></i>'
        found.append(f"<span>{chip}{escaped(name)}, {role}</span>")
    if any(not step.is_likeliest for step in drawing.steps):
        found.append("<span>dotted: not the most probable token</span>")
    return f'<p class="key">{"".join(found)}</p>'


def _summary(drawing: Drawing) -> str:
    heads = ("member", "mean weight", "spoke", "silent", "decided", "gives the chosen tokens")
    rows = [
        (
            f'<i class="chip" style="--c:{drawing.colour_of(one.name)}"></i>{escaped(one.name)}',
            percent(one.weight),
            str(one.spoke),
            str(one.silent),
            str(one.decided),
            percent(one.probability),
        )
        for one in drawing.summary
    ]
    agreed = sum(step.decision == "agreement" for step in drawing.steps)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    head = "".join(f"<th>{name}</th>" for name in heads)
    return (
        f'<table class="sum"><tr>{head}</tr>{body}</table>'
        f'<p class="key">{agreed} of {len(drawing.steps)} steps: all members agree.</p>'
    )
