"""Is the policy better than before: what was measured, and the verdict on it."""
