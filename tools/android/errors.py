"""What can go wrong with the Android demo's build."""

from gemma_edge.profiles.errors import GemmaEdgeError


class ToolError(GemmaEdgeError):
    """A tool that builds the demo is absent, cannot be fetched, or could not do its work."""


class CompileError(GemmaEdgeError):
    """The sources do not compile, or a test of theirs fails. The message has the compiler's lines."""

    def __str__(self) -> str:
        """Whole: a compiler says in many lines what is wrong, and where."""
        return Exception.__str__(self)
