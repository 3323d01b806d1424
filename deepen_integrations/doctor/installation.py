"""What is installed: Python, the packages that are needed, and the extras."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from deepen_integrations.doctor.findings import Finding, Section
from deepen_integrations.extras import DISTRIBUTION, EXTRAS, install_command


def versions() -> Section:
    """Compares the packages that are always needed with the versions that are allowed."""
    found = [
        Finding("python", f"{platform.python_version()} on {platform.platform(terse=True)}"),
        Finding(DISTRIBUTION, version(DISTRIBUTION)),
    ]
    return Section("Versions", [*found, *(_compared(requirement) for requirement in _requirements(""))])


def extras() -> Section:
    """Says of each extra whether it is installed, and what is missing without it."""
    return Section("Extras", [_extra(name) for name in EXTRAS])


def _extra(name: str) -> Finding:
    compared = [_compared(requirement) for requirement in _requirements(name)]
    missing = [one.topic for one in compared if one.said == _MISSING]
    outdated = [one for one in compared if one.state == "wrong" and one.said != _MISSING]
    if missing:
        lacks = f"lacks {', '.join(missing)}" if len(missing) < len(compared) else "not installed"
        return Finding(name, f"{lacks}; for {EXTRAS[name]}: {install_command(name)}", "note")
    if outdated:
        return Finding(name, "; ".join(f"{one.topic} {one.said}" for one in outdated), "wrong")
    return Finding(name, ", ".join(f"{one.topic} {one.said}" for one in compared))


def _requirements(extra: str) -> list[Requirement]:
    """Returns what an extra needs here beyond what is always needed; or the latter, for no extra."""
    every = map(Requirement, requires(DISTRIBUTION) or [])
    wanted = [one for one in every if one.marker is None or one.marker.evaluate({"extra": extra})]
    return [one for one in wanted if (one.marker is not None and "extra" in str(one.marker)) is bool(extra)]


_MISSING = "is not installed"


def _compared(requirement: Requirement) -> Finding:
    try:
        installed = version(requirement.name)
    except PackageNotFoundError:
        return Finding(requirement.name, _MISSING, "wrong")
    if requirement.specifier.contains(installed, prereleases=True):
        return Finding(requirement.name, installed)
    wanted = f'pip install "{requirement.name}{requirement.specifier}"'
    return Finding(requirement.name, f"{installed} is not {requirement.specifier}: {wanted}", "wrong")
