"""Diffusion policies: networks, normalizers, checkpoints of other projects, and the handling of policies of others."""
