"""omni: ask any document, long video or sound a question, on any machine."""

from omni.answer import Piece, Result
from omni.ask import ask, ingest
from omni.config import OmniConfig
from omni.load import OmniProcessor, load
from omni.model import OmniModel

__all__ = ["OmniConfig", "OmniModel", "OmniProcessor", "Piece", "Result", "ask", "ingest", "load"]
