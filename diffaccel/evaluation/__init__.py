"""What `diffaccel evaluate` does and says: generate, measure, report."""
