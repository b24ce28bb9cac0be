"""Checks, before anything is sampled, of what the steps after it need."""
