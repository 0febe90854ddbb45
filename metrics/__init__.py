"""Metrics, one file each: from features to statistics to a number."""
