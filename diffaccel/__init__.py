"""Faster diffusion pipelines whose output stays faithful."""

__version__ = "0.1.0"
