"""Ready-made jobs on an engine."""
