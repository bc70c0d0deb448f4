"""What goes wrong with images and recordings."""

from gemma_edge.profiles.errors import GemmaEdgeError


class MediaError(GemmaEdgeError, ValueError, RuntimeError):
    """An image or a recording cannot be read, or the model takes none."""


class MissingExtraError(MediaError):
    """A library of the extra `encoders` is not installed."""

    def __init__(self, library: str, error: ImportError | OSError) -> None:
        super().__init__(f"{library} cannot be loaded ({error}); pip install 'gemma-edge[encoders]'")
