"""What samples: transformers in this process, vLLM in another, servers."""
