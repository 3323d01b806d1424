"""The tables of the pages on fusion and on fusing by bytes, from the published results."""

from __future__ import annotations

from typing import Any

from benchmarks.markdown import markdown, measured_on
from benchmarks.report import read


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
    measured = measured_on(fusion=fusion, fidelity=fidelity)
    return {**rows, "real pairs": _bits_alone(), "real gains": _gains(), "machine": measured}


def _bits_alone() -> str:
    """Return the table of what each member of the real pairs needs alone."""
    rows = read("real_pairs")["rows"]
    kinds = [name.removesuffix(": main") for name in rows[0] if name.endswith(": main")]
    alone = {f"{kind}: {who}": ".3f" for kind in kinds for who in ("main", "other")}
    headings = {name: name.replace(": ", ", ") for name in alone}
    return markdown(rows, {"main": "", "other": "", "dtype": "", "texts": ""} | alone, headings)


def _gains() -> str:
    """Return the table of what each strategy is worth on the real pairs, a pair in each column."""
    rows = read("real_pairs")["rows"]
    pairs = {f"{row['main']}, {row['other']}": row for row in rows}
    ways = [name for name in rows[0] if name.endswith(" %") and name != "fitted %"]
    shown = [
        {"change of bits, %": name.removesuffix(" %")}
        | {pair: format(row[name], "+.1f") for pair, row in pairs.items()}
        for name in sorted(ways, key=lambda name: sum(row[name] for row in rows))
    ]
    fitted = {pair: f"{row['fitted %']:+.1f} (weight {row['fitted weight']:.1f})" for pair, row in pairs.items()}
    return markdown([*shown, {"change of bits, %": "deepen, fitted"} | fitted], dict.fromkeys(shown[0], ""))


def bytes_tables() -> dict[str, str]:
    """Return every table of the page on fusing by bytes by name."""
    found = {row["pair"].replace(" + ", ", "): row for row in read("byte_fusion")["rows"]}
    ways = ("deepen", "product", "bytes", "bytes, mixture")
    settings = [f"{way}, {how}" for way in (*ways, "union") for how in ("equal", "fitted", "adaptive")]
    settings += ["by the byte, equal", "by the byte, best"]
    first = "main, other"

    def by_setting(end: str) -> str:
        rows: list[dict[str, Any]] = [
            {first: setting} | {pair: row[key] for pair, row in found.items()}
            for setting, key in ((setting, f"{setting}{end} %") for setting in settings)
            if all(key in row for row in found.values())
        ]
        shown = [{key: value if key == first else f"{value:+.1f}" for key, value in row.items()} for row in rows]
        texts = {first: "texts of each kind"} | {pair: str(row["texts"]) for pair, row in found.items()}
        return markdown([texts, *shown], dict.fromkeys([first, *found], ""))

    stories = [row for row in read("stories")["rows"] if row["fusion"] in ways]
    speeds = read("byte_speed")
    names = [key for key in stories[0] if key.endswith(" alone")]
    return {
        "byte stories": markdown(
            stories, {"main": "", "fusion": "", "together": ".3f"} | dict.fromkeys(names, ".3f"), {"fusion": "strategy"}
        ),
        "byte speed": markdown(
            speeds["rows"],
            {"main": "", "other": "", "dtype": "", "fusion": "", "prepared s": ".1f", "new": ".2f", "warm": ".2f"}
            | {"batch": ".1f"},
            {"prepared s": "prepared, s", "new": "new answer", "warm": "the same, warm", "batch": "16 over 1"},
        ),
        "byte gains": by_setting(""),
        "byte worst": by_setting(", worst kind"),
        "machine": measured_on(byte_fusion=read("byte_fusion"), byte_speed=speeds),
    }
