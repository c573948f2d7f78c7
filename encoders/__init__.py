"""Numbers → features: the vision and audio towers."""
