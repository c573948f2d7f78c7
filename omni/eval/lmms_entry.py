"""Entry point of lmms-eval: tells it, without loading anything else, that there is a model named omni."""

from __future__ import annotations

from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]  (its plug-in)

MANIFEST = ModelManifest(model_id="omni", chat_class_path="omni.eval.lmms.OmniChat")
