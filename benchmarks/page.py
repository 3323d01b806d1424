"""Fill the tables of `docs/` from the published results of the benchmarks, and draw the plots.

Run with `python -m benchmarks.page` after `fusion`, `fidelity`, `agreement`, `decoding`, `recurrent`, `tasks`
and `demo_tasks`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

from benchmarks import plots
from benchmarks.report import read

DOCS = Path(__file__).parents[1] / "docs"

HEADINGS = {
    "choices that fusion changes": "choice changed by fusion",
    "equal choices": "same choice",
    "steps where main is sure (>= 0.2)": "steps with main's top probability >= 0.2",
    "equal there": "same choice there",
    "of the limit": "fraction of the limit",
    "plain tokens/s": "as published, tokens/s",
    "against plain": "speedup over published",
    "against batch 1": "speedup over batch 1",
    "decoding against batch 1": "decoding speedup over batch 1",
    "of the whole": "share of total time",
    "ids run for one": "ids run, one prompt",
    "ids run for all": "ids run, all prompts",
    "dense GiB": "dense matrices, GiB",
    "dense ms": "dense matrices, ms",
    "spaces s": "calibration s",
}
"""The heading of a column if it is not the key under which the benchmark publishes it."""


def markdown(
    rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], headings: Mapping[str, str] | None = None
) -> str:
    """Format some columns of published results as a Markdown table.

    Args:
        rows: Published results, one mapping per line of the table.
        columns: The keys to show, each with the format of its numbers, or "" for text.
        headings: Headings of this table, which replace those in `HEADINGS`.
    """
    shown = {**HEADINGS, **(headings or {})}
    numbers = [bool(form) for form in columns.values()]
    lines = [[shown.get(key, key) for key in columns], ["---:" if number else "---" for number in numbers]]
    lines += [[_written(row[key], form) for key, form in columns.items()] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _written(value: Any, form: str) -> str:
    return str(value) if isinstance(value, str) or not form else format(value, form)


def fusion_tables() -> dict[str, str]:
    """Return every table of the page on fusion by name."""
    fusion, fidelity, agreement = (read(n) for n in ("fusion", "fidelity", "agreement_real"))
    near = {"equal choices": ".2%", "mean total variation": ".4f"}
    rows = {
        "fidelity": markdown(
            fidelity["rows"],
            {"world": "", "search": "", "entropy": "", "steps": ",.0f", "choices that fusion changes": ".0%"}
            | {"equal choices": ".2%", "steps where main is sure (>= 0.2)": ",.0f", "equal there": ".2%"}
            | {"mean total variation": ".4f"},
        ),
        "agreement": markdown(
            agreement["rows"],
            {"pair": "", "main": "", "fusion": "", "steps": ",d"} | near | {"steps that build rows": ".0%"},
        ),
        "speed": markdown(
            fusion["rows"],
            {"world": "", "V / V / A / d": "", "rows": "d", "entropy": "", "ms": ".1f", "cold ms": ",.0f"}
            | {"rows built": ",d", "MiB held": ".0f", "peak MiB": ",.0f"},
            {"rows": "sequences"},
        ),
        "dense": markdown(
            fusion["the plain way"],
            {"world": "", "dense GiB": ".1f", "dense ms": ",.0f", "ms": ".1f", "ratio": ",.0f"},
            {"ms": "sparse rows, ms", "ratio": "speedup"},
        ),
        "generation": markdown(
            fusion["from a cold start"],
            {"world": "", "tokens": "d", "steps that build": ".0%", "rows built": ",d", "mean ms": ".1f"}
            | {"mean ms, first tenth": ".1f", "mean ms, last fifth": ".1f"}
            | {"rows a step, first tenth": ".1f", "rows a step, last fifth": ".1f"},
        ),
        "build": markdown(
            fusion["built ahead"],
            {"world": "", "spaces s": ".1f", "build s": ".1f", "rows": ",d", "MiB held": ".0f", "peak MiB": ",.0f"},
        ),
    }
    return {**rows, "real pairs": _real_pairs(), "machine": _measured_on(fusion=fusion, fidelity=fidelity)}


def _real_pairs() -> str:
    """Return the table of what each strategy is worth on real pairs."""
    pairs = read("real_pairs")
    kinds = [name.removesuffix(": main") for name in pairs["rows"][0] if name.endswith(": main")]
    alone = {f"{kind}: {who}": ".3f" for kind in kinds for who in ("main", "other")}
    worth = {name: "+.1f" for name in pairs["rows"][0] if name.endswith(" %")}
    headings = {name: name.replace(": main", ", main alone").replace(": other", ", other alone") for name in alone}
    return markdown(
        pairs["rows"],
        {"main": "", "other": "", "dtype": "", "texts": ""} | alone | worth | {"fitted weight": ".1f"},
        headings | {name: f"{name.removesuffix(' %')}, %" for name in worth},
    )


def decoding_tables() -> dict[str, str]:
    """Return every table of the page on decoding by name."""
    decoding, recurrent = read("decoding"), read("recurrent")
    ratio = {"against batch 1": ".1f", "decoding tokens/s": ".0f", "decoding against batch 1": ".1f"}
    singles = [row for row in decoding["rows"] if row["batch"] == 1]
    alone = {name: ".1f" for name in singles[0] if name.endswith(" alone")}
    return {
        "alone": markdown(
            singles,
            {"prompt": ",d", "tokens/s": ".1f"}
            | alone
            | {"of the limit": ".2f", "plain tokens/s": ".2f", "against plain": ".0f"},
        ),
        "batches": markdown(decoding["rows"], {"prompt": ",d", "batch": "d", "tokens/s": ".1f"} | ratio),
        "first": markdown(decoding["first chunk"], {"tokens": "d", "first chunk s": ".3f", "of the whole": ".1%"}),
        "shared": markdown(
            decoding["shared beginnings"],
            {"prompts": "d", "shared tokens": "d", "ids run for one": ",d", "ids run for all": ",d", "ratio": ".2f"},
        ),
        "loop": markdown(
            decoding["event loop"],
            {"streams": "d", "tokens each": "d", "largest gap ms": ".0f", "99th percentile ms": ".1f"},
        ),
        "states": markdown(
            recurrent["rows"],
            {"family": "", "text": ",d", "whole text ms": ",.0f", "main ms": ".0f", "main speedup": ".0f"}
            | {"other ms": ".0f", "other speedup": ".0f"},
            {"text": "ids of the text"},
        ),
        "machine": _measured_on(decoding=decoding, recurrent=recurrent),
    }


def evaluation_tables() -> dict[str, str]:
    """Return every table of the page on evaluation by name."""
    tasks = read("tasks")
    found = {kind: _ways(tasks[kind]) for kind in ("choices", "open") if tasks.get(kind)}
    return {**found, "machine": _measured_on(tasks=tasks)}


def _ways(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of all ways to answer; the members are named once, and an interval has one column."""
    names = list(rows[0])
    shares = dict.fromkeys(names[names.index("way") + 1 : names.index("mean") + 1], ".1f")
    shown, last = [], None
    for row in rows:
        models = row["members"], row["main"]
        once = {} if models != last else {"members": "", "main": ""}
        between = "" if row["from"] == "" else f"{row['from']:+.1f} to {row['to']:+.1f}"
        shown.append({**row, **once, "95 %": between})
        last = models
    return markdown(
        shown,
        {"members": "", "main": "", "way": ""} | shares | {"points": "+.1f", "95 %": "", "others asked, %": ".0f"},
    )


def demo_tables() -> dict[str, str]:
    """Return every table of the page on the demo by name."""
    tasks = read("demo_tasks")
    shares = {"mean": ".1f", "lowest": ".1f", "highest": ".1f"}
    columns = {"task": "", "members": "", "way": ""} | (shares if tasks["seeds"] > 1 else {"mean": ".1f"})
    return {"tasks": markdown(tasks["rows"], columns, {"mean": "mean" if tasks["seeds"] > 1 else "right"})}


PAGES = {
    "fusion.md": fusion_tables,
    "decoding.md": decoding_tables,
    "evaluation.md": evaluation_tables,
    "demo.md": demo_tables,
}


def _measured_on(**contents: Mapping[str, Any]) -> str:
    seen = {name: content["machine"] for name, content in contents.items()}
    said = [
        f"`{n}` on {m['cpu']}, {m['threads']} threads, GPU: {m['gpu']}, torch {m['torch']}" for n, m in seen.items()
    ]
    return f"Measured: {'; '.join(said)}."


def filled(page: str, content: Mapping[str, str]) -> str:
    """Return the page with each table inserted between its markers."""
    for name, table in content.items():
        marks = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        page, found = marks.subn(lambda m, t=table: f"{m[1]}{t}\n{m[2]}", page)  # type: ignore[misc]
        if found != 1:
            raise LookupError(f"the page has {found} pairs of markers for the table {name!r}, not one")
    return page


def main() -> None:
    """Write the pages and their plots."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    for name, tables in PAGES.items():
        page = DOCS / name
        page.write_text(filled(page.read_text(encoding="utf-8"), tables()), encoding="utf-8")
    with mpl.rc_context(plots.STYLE):
        for name, figure in plots.pictures(read("fusion"), read("fidelity")).items():
            figure.savefig(DOCS / f"fusion-{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
