"""The run directory on disk: state, tables with checksums, prompts, triplets, scores."""
