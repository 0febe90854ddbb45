"""A robot arm in simulation: tasks of MetaWorld with scripted experts, their demonstrations, and trained policies."""
