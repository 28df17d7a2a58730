"""Batches: an agent for each item, with a journal, progress and an executor."""
