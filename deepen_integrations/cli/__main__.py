"""Makes `python -m deepen_integrations.cli` the same as `deepen`."""

from deepen_integrations.cli import app

app()
