"""The search behind the method "auto": which acceleration of a pipeline reaches a speed-up, or a fidelity."""
