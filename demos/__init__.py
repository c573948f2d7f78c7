"""Gradio demo and samples."""
