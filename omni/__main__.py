"""`python -m omni`: the command line."""

from omni.cli import app

app()
