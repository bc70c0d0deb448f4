"""What goes wrong in a service, rather than in the engine below it."""

from collections.abc import Collection

from gemma_edge.profiles.errors import GemmaEdgeError


class ServiceError(GemmaEdgeError, ValueError):
    """A request that a service cannot take as it is."""


def known(what: str, name: object, names: Collection[str]) -> str:
    """The name, which is one of those. Raises ServiceError that lists them."""
    if not isinstance(name, str) or name not in names:
        raise ServiceError(f"unknown {what} {name!r}, expected one of {', '.join(names)}; choose one of those")
    return name
