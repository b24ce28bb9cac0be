"""The generation step: sampling the responses that the due iteration needs.

`engine` samples, `store` keeps prompts, responses and triplets on disk, `step` is the step
itself, from the YAML to complete triplets.
"""
