"""Triplets to loss, with torch and transformers alone."""
