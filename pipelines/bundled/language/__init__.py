"""What the bundled masked diffusion language model is trained on, and how."""
