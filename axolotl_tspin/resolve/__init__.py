"""Resolution of the YAML, as the user wrote it, to the step that is due."""
