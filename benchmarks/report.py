"""Tables for people and JSON for later, with the machine named."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, str]:
    """What the numbers were measured on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": f"{len(names)} x {names[0]}" if names else platform.processor() or platform.machine(),
        "threads": str(torch.get_num_threads()),
        "gpu": gpu,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def publish(name: str, title: str, rows: Sequence[Mapping[str, Any]], **more: Any) -> None:
    """Prints tables and writes everything to `benchmarks/results/NAME.json`.

    Args:
        name: Of the file.
        title: Above the table.
        rows: Each maps a column's heading to its value; all have the same headings.
        more: Further tables, of the same form, and whatever else belongs into the file.
    """
    console = Console(width=180)
    _show(console, title, rows)
    for heading, content in more.items():
        if isinstance(content, list) and content and isinstance(content[0], Mapping):
            _show(console, heading, content)
    RESULTS.mkdir(exist_ok=True)
    written = {"title": title, "machine": machine(), **more, "rows": list(rows)}
    (RESULTS / f"{name}.json").write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read(name: str) -> dict[str, Any]:
    """What was published under a name."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def _show(console: Console, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table(title=title, title_justify="left")
    for heading in rows[0]:
        table.add_column(heading, justify="left" if isinstance(rows[0][heading], str) else "right")
    for row in rows:
        table.add_row(*(f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()))
    console.print(table)
