"""Engines that sample: transformers in this process, vLLM in another, servers."""
