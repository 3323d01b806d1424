"""The whole report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deepen_integrations.doctor.findings import Report
from deepen_integrations.doctor.installation import extras, versions
from deepen_integrations.doctor.machine import devices, files
from deepen_integrations.doctor.members import examine_members


def examine(options: Mapping[str, Any], *, try_members: bool = False) -> Report:
    """Examines the installation, the machine and the members of an ensemble.

    Args:
        options: Arguments of `Ensemble.load`.
        try_members: Load each member, one after the other, and try what it can do.

    Raises:
        ConfigurationError: If the list of members is wrong.
    """
    return Report([versions(), extras(), devices(), files(), *examine_members(options, try_them=try_members)])
