"""Masked diffusion language models with fewer rows (dKV-Cache), fewer keys (SparseD) or fewer forwards (SSD)."""
