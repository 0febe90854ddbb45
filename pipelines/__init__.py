"""Pipelines with one call surface, whichever world they come from: pictures, actions or text."""
