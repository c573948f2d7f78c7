"""Files → numbers: media, sampling, chat and the packed batch; knows no model."""
