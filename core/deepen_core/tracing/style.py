"""How coloured tokens look on a page, here and on that of the server."""

from __future__ import annotations

CSS = """
:root{color-scheme:light dark;--ground:#fff;--ink:#1b1f24;--faint:#5c6670;--line:#d8dee4;--card:#f6f8fa}
@media (prefers-color-scheme:dark){:root{--ground:#0f1318;--ink:#e4e8ec;--faint:#98a3ae;--line:#2c343c;--card:#1a2027}}
.t{position:relative;border-radius:3px;padding:1px 0;cursor:default;white-space:pre-wrap;overflow-wrap:anywhere}
.t[style]{background:color-mix(in srgb,var(--c) 26%,transparent);box-shadow:inset 0 -2px var(--c)}
.t.alone{box-shadow:inset 0 -2px color-mix(in srgb,var(--c) 45%,transparent);background:none}
.t.unlikely{text-decoration:underline dotted;text-underline-offset:3px}
.t:focus,.t:hover{outline:2px solid var(--c,var(--faint));z-index:2}
.chip{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.35em;background:var(--c,var(--line))}
""".strip()
