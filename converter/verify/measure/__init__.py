"""The checkpoint and bundles side by side on one text."""
