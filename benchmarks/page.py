"""Fill the tables of the README and of `docs/` from the published results of the benchmarks, and draw the plots.

Run with `python -m benchmarks.page` after any benchmark that publishes results for a page.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl

from benchmarks import plots
from benchmarks.evaluation_tables import demo_tables, evaluation_tables, kinds_table
from benchmarks.fusion_tables import bytes_tables, fusion_tables
from benchmarks.markdown import markdown, measured_on
from benchmarks.report import read

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def readme_tables() -> dict[str, str]:
    """Return the tables of the README: what an ensemble is worth on text, and with a specialist on many tasks."""
    texts = [
        {
            **dict(zip(("main", "other"), row["pair"].split(" + "), strict=True)),
            "better one alone": row["main"],
            "together": row["deepen, adaptive %"],
            "together, equal": row["deepen, equal %"],
        }
        for row in read("byte_fusion")["rows"]
        if row["main"] <= row["other"]
    ]
    return {
        "text": markdown(
            texts,
            {"main": "", "other": "", "better one alone": ".3f", "together": "+.1f", "together, equal": "+.1f"},
            {"better one alone": "better one alone, bits a byte", "together": "together, %"}
            | {"together, equal": "at equal weights, %"},
        ),
        "kinds": kinds_table(),
    }


def models_tables() -> dict[str, str]:
    """Return every table of the page on pairs of models by name."""
    pairs = read("pairs")
    return {
        "models": markdown(
            pairs["models"],
            {"model": "", "parameters": ",d", "bfloat16 MiB": ",.0f", "float32 MiB": ",.0f", "vocabulary": ",d"}
            | {"bytes per token": ".1f", "context window": ",d", "chat template": ""},
        ),
        "pairs": markdown(
            pairs["rows"],
            {"pair": "", "shared tokens": ",d", "first not shared": ".0%", "second not shared": ".0%"}
            | {"length ratio": ".2f", "size ratio": ".1f", "fusion MiB": ".0f", "warnings": "d"},
        ),
        "machine": measured_on(pairs=pairs),
    }


def performance_tables() -> dict[str, str]:
    """Return every table of the page on performance by name."""
    cpu, gpu, halves, scoring = (read(n) for n in ("real_speed", "real_speed_h100", "precision", "scoring"))
    weighed = read("weights_speed")
    beside = ("first token, of transformers", "first token, of transformers, long prompt")
    ratios = dict.fromkeys(("first token", *beside, "new answer", "the same, warm", "batch of 8"), ".2f")
    pair = {"main": "", "other": "", "dtype": ""}
    seconds = {"importing and reading s": ".1f", "beyond s": ".1f", "to the first token s": ".1f"}
    timed = [
        dict.fromkeys(beside, "") | row | {"device": name}
        for name, content in (("CPU", cpu), ("GPU", gpu))
        for row in content["rows"]
    ]
    return {
        "forwards": markdown(timed, {"device": ""} | pair | ratios),
        "first token": markdown([r for r in timed if "beyond s" in r], {"device": ""} | pair | seconds),
        "precision": markdown(
            halves["rows"],
            {"main": "", "others": "", "dtype": "", "batch": "d", "tokens/s": ".1f", "of transformers": ".2f"},
            {"of transformers": "of transformers alone, in a batch"},
        ),
        "scoring": markdown(scoring["rows"], pair | {"tokens": ",d", "ratio": ".2f", "off": ".1e"}),
        "weights": markdown(
            weighed["rows"],
            {"weights": "", "prompts": "", "other one runs, %": ".0f", "first token": ".2f"}
            | {"one by one": ".2f", "together": ".2f"},
            {"together": f"{weighed['prompts']} together"},
        ),
        "machine": measured_on(
            real_speed=cpu, real_speed_h100=gpu, precision=halves, scoring=scoring, weights_speed=weighed
        ),
    }


def gguf_tables() -> dict[str, str]:
    """Return every table of the page on GGUF files by name."""
    found = read("gguf")
    shown = {"ensemble": "", "tokens/s": ".1f", "faster": ".1f", "tokens/s, batch of 8": ".1f"}
    memory = {
        "load s": ".1f",
        "first token s": ".1f",
        "peak MiB": ",.0f",
        "of its peak": ".2f",
        "of its members": ".2f",
    }
    headings = {
        "first token s": "456 tokens read, s",
        "of its peak": "of the peak",
        "of its members": "of the members'",
    }
    choices = {"model": "", "places": ",d", "same choice": ".1%", "mean total variation": ".3f"}
    same = {"main": "", "member": "", "steps": ",d", "same choice": ".1%"}
    same |= {"fused logprob apart": ".6f", "member logprob apart": ".6f"}
    apart = {"fused logprob apart": "fused log-probability, apart", "member logprob apart": "the member's own, apart"}
    return {
        "speed": markdown(found["rows"], shown | memory, headings),
        "choices": markdown(found["choices"], choices),
        "same": markdown([found["same"]], same, apart),
        "machine": measured_on(gguf=found),
    }


def decoding_tables() -> dict[str, str]:
    """Return every table of the page on decoding by name."""
    decoding, recurrent, determinism = read("decoding"), read("recurrent"), read("determinism")
    turns = read("conversations")
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
        "turns": markdown(
            turns["rows"],
            {"members": "", "dtype": "", "prompt tokens": ",.0f", "ids run": ",.0f", "ids run from the start": ",.0f"}
            | {"first token s": ".2f", "of the time from the start": ".2f", "turns": "d", "same answer": "d"},
        ),
        "shared": markdown(
            decoding["shared beginnings"],
            {"weights": "", "prompts": "d", "shared tokens": "d"}
            | {"ids run for one": ",d", "ids run for all": ",d", "ratio": ".2f"},
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
        "determinism": markdown(
            determinism["rows"],
            {"members": "", "dtype": "", "other tokens, usually": "d", "other bits, usually": "d"}
            | {"other tokens, deterministic": "d", "other bits, deterministic": "d", "time": ".1f"},
            {"time": "time of the batch, deterministic over usual"},
        ),
        "machine": measured_on(decoding=decoding, conversations=turns, recurrent=recurrent, determinism=determinism),
    }


def serve_tables() -> dict[str, str]:
    """Return every table of the page on the server by name."""
    found = read("server")
    columns = {"members": "", "requests": "d", "tokens": "d", "answers": "", "generate": ",.1f", "server": ",.1f"}
    columns |= {"ratio": ".2f", "ratios, lowest to highest": ""}
    return {"cost": markdown(found["rows"], columns), "machine": measured_on(server=found)}


def servers_tables() -> dict[str, str]:
    """Return every table of the page on members behind servers by name."""
    found = read("server_members")
    apart = {"fused logprob apart": "fused, apart", "member logprob apart": "member, apart"}
    rows = [row | {key: "" if row[key] is None else format(row[key], ".1e") for key in apart} for row in found["rows"]]
    columns = {"weights": "", "top": "", "in this process, ms": ".0f", "ms a step": ".0f", "ratio": ".2f"}
    columns |= {"KB a step": ",.0f", "steps": "d", "same choice": ".1%"}
    headings = {"ms a step": "server, ms", "weights": "weights on the server", "top": "top_k"}
    shown = markdown(rows, columns | dict.fromkeys(apart, ""), apart | headings)
    return {"server members": shown, "machine": measured_on(server_members=found)}


def ray_tables() -> dict[str, str]:
    """Return every table of the page on Ray by name."""
    found = read("ray_members")
    pair = {"main": "", "other": "", "dtype": ""}
    compared = {"steps compared": ",d", "same choices": ".1%", "largest difference": ".1e", "ms a step": ".0f"}
    compared |= {"bytes sent a step": ",.0f", "bytes received a step": ",.0f"}
    timed = {"forwards here ms": ".0f", "a step here ms": ".0f", "a step of two actors ms": ".0f", "ratio": ".2f"}
    machine = f"{measured_on(ray_members=found)} The load average of its two cores was {found['load']}."
    return {
        "one actor": markdown(found["rows"], pair | {"other runs": ""} | compared),
        "two actors": markdown(found["together"], pair | timed | {"ratios of answers, lowest to highest": ""}),
        "machine": machine,
    }


def traces_tables() -> dict[str, str]:
    """Return every table of the page on traces by name."""
    tracing = read("tracing")
    spread = {f"{kind}: middle half": "" for kind in ("off", "on")}
    columns = {"members": "", "batch": "d", "ms a step": ".1f", "off": ".2f", "on": ".2f", "on, and read": ".2f"}
    headings = {name: name.replace(": middle half", ", middle half of pairs") for name in spread}
    return {"cost": markdown(tracing["rows"], columns | spread, headings), "machine": measured_on(tracing=tracing)}


def attacks_tables() -> dict[str, str]:
    """Return every table of the page on attacks by name."""
    found, soak = read("fuzz"), read("soak")
    runs = {"run": "", "requests": ",d", "wrong": "d", "hanging": "d", "median ms": ".0f", "95 % ms": ".0f"}
    runs |= {"median, times quiet": ".2f", "95 %, times quiet": ".2f"}
    runs |= {"MiB at minute 1": ",.0f", "MiB at the end": ",.0f"}
    headings = {"median ms": "ms between tokens, median", "95 % ms": "95th percentile"}
    columns = {"entry": "", "inputs": ",d", "refused": ".0%", "seconds": ",.0f", "slowest s": ".2f"}
    columns |= {"other errors": "d"}
    return {
        "soak": markdown(soak["rows"], runs, headings),
        "fuzz": markdown(found["rows"], columns),
        "machine": measured_on(soak=soak, fuzz=found),
    }


PAGES = {
    "README.md": readme_tables,
    "docs/fusion.md": fusion_tables,
    "docs/bytes.md": bytes_tables,
    "docs/decoding.md": decoding_tables,
    "docs/evaluation.md": evaluation_tables,
    "docs/demo.md": demo_tables,
    "docs/models.md": models_tables,
    "docs/performance.md": performance_tables,
    "docs/ray.md": ray_tables,
    "docs/gguf.md": gguf_tables,
    "docs/serve.md": serve_tables,
    "docs/servers.md": servers_tables,
    "docs/traces.md": traces_tables,
    "docs/attacks.md": attacks_tables,
}
"""The pages with tables, by their place in the repository."""


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
        page = ROOT / name
        page.write_text(filled(page.read_text(encoding="utf-8"), tables()), encoding="utf-8")
    with mpl.rc_context(plots.STYLE):
        for name, figure in plots.pictures(read("fusion"), read("fidelity")).items():
            figure.savefig(DOCS / f"fusion-{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
