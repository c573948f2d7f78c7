"""omni: ask any document, long video or sound a question, on any machine."""

from omni.config import OmniConfig
from omni.load import OmniProcessor, load
from omni.model import OmniModel

__all__ = ["OmniConfig", "OmniModel", "OmniProcessor", "load"]
