"""Figures of what a model did: speed, success, memory, quality, alerts. Works without a server."""
