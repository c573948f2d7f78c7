"""omni: ask any document, long video or sound a question, on any machine."""
