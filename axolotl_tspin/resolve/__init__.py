"""From the YAML as written to the step that is due."""
