"""From what the user calls a checkpoint to a directory: a path, or a repository on the Hugging Face hub."""

import re
from pathlib import Path

from gemma_edge.profiles.errors import GemmaEdgeError

OFFICIAL = {"1b": "google/gemma-3-1b-it", "e2b": "google/gemma-3n-E2B-it", "e4b": "google/gemma-3n-E4B-it"}

# What a conversion reads; other formats of the same weights (GGUF, .bin, subdirectories) stay on the hub.
_WANTED = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model"]
_UNWANTED = ["*/*"]

_REPOSITORY = re.compile(r"(?P<repository>[\w][\w.-]*/[\w][\w.-]*)(@(?P<revision>[\w./-]+))?")


class HubError(GemmaEdgeError):
    """There is no checkpoint directory to be had; the message says how to get one."""


def resolve_checkpoint(checkpoint: str | None, size: str) -> Path:
    """The directory of a checkpoint, downloaded into the Hugging Face cache if it is not a local one.

    checkpoint: a directory, "org/name" or "org/name@revision" on the hub; None for the official one of that size.
    size: "1b", "e2b", "e4b" or "custom".
    Progress goes to stderr; a dropped connection is resumed, files that are already complete are not fetched again.
    Offline, a complete copy in the cache is used.

    Raises:
        HubError: not a directory and not to be downloaded.
    """
    if checkpoint is None:
        if size not in OFFICIAL:
            raise HubError(f"{size}: has no official checkpoint; pass --checkpoint with a directory or org/name")
        checkpoint = OFFICIAL[size]
    path = Path(checkpoint)
    try:
        is_directory, is_file = path.is_dir(), path.is_file()
    except OSError as error:  # a name that is too long, a directory that may not be entered
        raise HubError(f"{checkpoint}: cannot be looked up ({error.strerror}); pass another directory") from error
    if is_directory:
        return path
    if is_file:
        raise HubError(f"{checkpoint}: is a file; expected the directory that holds config.json and the weights")
    match = _REPOSITORY.fullmatch(checkpoint)
    if match is None:
        raise HubError(f"{checkpoint}: neither a directory nor a repository org/name[@revision] on the hub")
    return _download(match["repository"], match["revision"])


def _download(repository: str, revision: str | None) -> Path:
    from huggingface_hub import constants, errors, snapshot_download  # slow to import, and not needed for a directory

    page = f"{constants.ENDPOINT}/{repository}"
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=_WANTED, ignore_patterns=_UNWANTED))
    except errors.GatedRepoError as error:
        raise HubError(
            f"{repository}: needs its licence accepted; do so at {page}, then `hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"{repository}: has no revision {revision!r}; see {page}/commits/main") from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"{repository}: not on {constants.ENDPOINT}, or private; check the name, or `hf auth login` or set HF_TOKEN"
        ) from error
    except errors.LocalEntryNotFoundError as error:  # the hub could not be asked, and the cache does not suffice
        reason = _reason(error.__cause__ or error)
        raise HubError(
            f"{repository}: no complete copy in {constants.HF_HUB_CACHE} and the hub cannot be asked ({reason}); "
            "connect and try again, or pass --checkpoint with a directory"
        ) from error
    # What else can happen in this one call differs by version and the HTTP library below it: connections lost for good,
    # a full disk, a name the hub does not allow.
    except Exception as error:
        raise HubError(f"{repository}: download failed ({_reason(error)}); run again to continue it") from error


def _reason(error: BaseException) -> str:
    """The first line of an error's message, or its name where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
