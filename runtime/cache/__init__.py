"""Folders of packed weights, and the processes that fill them."""
