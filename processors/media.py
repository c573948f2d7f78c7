"""Media: open anything that a user has. Pictures here; sources, and what they are, in `source.py`."""

from __future__ import annotations

from processors.source import Kind, Limits, MediaError, Source, open_source, sniff

__all__ = ["Kind", "Limits", "MediaError", "Source", "open_source", "sniff"]
