"""The `deepen` program with all its commands."""

from deepen_integrations.cli import asking, describing, measuring, serve, tracing
from deepen_integrations.cli.application import commands

__all__ = ["asking", "commands", "describing", "measuring", "serve", "tracing"]
