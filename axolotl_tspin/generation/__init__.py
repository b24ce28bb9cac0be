"""The generation step: sampling the responses that the due iteration needs.

`engines` sample, `blocks` keeps responses until their block is complete, and `step` is the step
itself, from the YAML to complete triplets.
"""
