"""From what the user calls a checkpoint to a directory or a GGUF file: a path, or a repository on the hub."""

import difflib
import re
from pathlib import Path, PurePosixPath

from gemma_edge.converter.checkpoint.gguf.choice import SUFFIX, choose, gguf_at, parts_of
from gemma_edge.converter.models.official import OFFICIAL
from gemma_edge.converter.printing import listed
from gemma_edge.profiles.errors import GemmaEdgeError

# What a conversion reads; other formats of the same weights (.bin, subdirectories, GGUF beside safetensors) stay on the
# hub.
_WANTED = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model"]
_UNWANTED = ["*/*"]

_REPOSITORY = re.compile(
    r"(?P<repository>[\w][\w.-]*/[\w][\w.-]*)(@(?P<revision>[\w./-]+))?(:(?P<gguf>[\w][^:*?\[]*\.gguf))?"
)


_SUFFIXES = (
    ".gguf", ".safetensors", ".bin", ".pt", ".pth", ".json", ".litertlm", ".task", ".onnx", ".zip", ".gz", ".tar",
)  # fmt: skip
_NEAR = 0.5  # difflib's likeness


class HubError(GemmaEdgeError):
    """There is no checkpoint directory to be had; the message says how to get one."""


_PAGE = re.compile(r"https?://(www\.)?huggingface\.co/(?P<repository>[\w][\w.-]*/[\w][\w.-]*)")


def resolve_checkpoint(checkpoint: str | None, size: str, option: str = "--checkpoint") -> Path:
    """The directory or the GGUF file of a checkpoint, downloaded into the Hugging Face cache if it is not a local one.

    checkpoint: a directory, a GGUF file, "org/name" or "org/name@revision" on the hub, with ":FILE.gguf" behind it for
        one of several such files there; None for the official one of that size.
    size: "1b", "e2b", "e4b" or "custom". option: what it was given with.
    Progress goes to stderr; a dropped connection is resumed, files that are already complete are not fetched again.
    Offline, a complete copy in the cache is used.

    Raises:
        HubError: neither a directory nor a GGUF file, and not to be downloaded.
        CheckpointError: a directory of several GGUF files.
    """
    is_official = checkpoint is None
    if checkpoint is None:
        if size not in OFFICIAL:
            raise HubError(f"{size}: has no official checkpoint; pass --checkpoint with a directory or org/name")
        checkpoint = OFFICIAL[size].repository
    path = Path(checkpoint)
    try:
        path = path.expanduser()
    except RuntimeError as error:  # nobody of that name
        raise HubError(f"{checkpoint}: cannot be read ({error}); pass another directory") from error
    try:
        is_directory, is_file = path.is_dir(), path.is_file()
    except OSError as error:  # a name that is too long, a directory that may not be entered
        raise HubError(f"{checkpoint}: cannot be read ({error.strerror}); pass another directory") from error
    if is_directory:
        return gguf_at(path) or path
    if is_file:
        if gguf_at(path) is not None:
            return path
        raise HubError(
            f"{checkpoint}: is a file; expected the directory that holds config.json and the weights, or a GGUF file"
        )
    if (page := _PAGE.match(checkpoint)) is not None:
        raise HubError(f"{checkpoint}: a web page; give the repository's name, {page['repository']}")
    match = _REPOSITORY.fullmatch(checkpoint)
    is_named = match is not None and (match["revision"] or match["gguf"])  # no path is written so
    if not is_official and not is_named and _is_meant_as_path(checkpoint):
        also = "" if match is None else f", or write {checkpoint}@main for the repository of that name"
        raise HubError(f"{checkpoint}: no such directory or file: {_nearby(path)}; correct the path{also}")
    if match is None:
        raise HubError(
            f"{checkpoint}: neither a directory nor a repository org/name[@revision][:FILE.gguf], nor a GGUF file; "
            "correct the path"
        )
    repository, revision, gguf = match["repository"], match["revision"], match["gguf"]
    if gguf is not None:
        return _download_gguf(repository, revision, gguf, option)
    snapshot = _download(repository, revision, _WANTED, _UNWANTED, option)
    if any(snapshot.glob("*.safetensors")):
        return snapshot
    match choose(_files(repository, snapshot)):
        case str(name):
            return _download_gguf(repository, revision, name, option)
        case [first, *rest]:
            raise HubError(
                f"{repository}: holds {len(rest) + 1} GGUF files ({listed([first, *rest])}), expected one; "
                f"name it: {checkpoint}:{first}"
            )
    return snapshot


def _is_meant_as_path(text: str) -> bool:
    """Whether what a user wrote can only be a path, or begins with a directory that exists."""
    path = Path(text)
    if path.is_absolute() or text.startswith((".", "~")) or text.count("/") > 1 or text.endswith("/"):
        return True
    return (text.endswith(_SUFFIXES) and ":" not in text) or ("/" in text and path.parent.is_dir())


def _nearby(path: Path) -> str:
    """What there is on the way to a path that leads to nothing, on one line."""
    missing = path.name
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        missing, folder = folder.name, folder.parent
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        return f"{folder} cannot be looked into ({error.strerror})"
    where = "the current directory" if folder == Path() else str(folder)
    folded = {name.lower(): name for name in names}
    near = [folded[match] for match in difflib.get_close_matches(missing.lower(), folded, 3, _NEAR)]
    if near:
        return f"{where} has no {missing}, but {listed(near)}"
    return f"{where} has no {missing}" + (f", it holds {listed(names)}" if names else ", it is empty")


def _download_gguf(repository: str, revision: str | None, name: str, option: str) -> Path:
    """The file of that name, the parts that belong to it beside it."""
    names = [str(PurePosixPath(name).with_name(part)) for part in parts_of(PurePosixPath(name).name)]
    snapshot = _download(repository, revision, names, [], option)
    if not all((snapshot / part).is_file() for part in names):
        others = [other for other in _files(repository, snapshot) if other.endswith(SUFFIX)]
        raise HubError(f"{repository}: has no {name}, or not all its parts; found {listed(others) or 'no GGUF file'}")
    return snapshot / name


def _files(repository: str, snapshot: Path) -> list[str]:
    """Names of the files at the top of a repository, or, where it cannot be asked, of those downloaded before."""
    from huggingface_hub import HfApi

    try:
        siblings = HfApi().model_info(repository, revision=snapshot.name).siblings or []
        names = [sibling.rfilename for sibling in siblings]
    except Exception:  # offline: what there is of it has been downloaded before
        names = [file.name for file in snapshot.iterdir()] if snapshot.is_dir() else []
    return sorted(name for name in names if "/" not in name)


def _download(repository: str, revision: str | None, wanted: list[str], unwanted: list[str], option: str) -> Path:
    """The directory of a snapshot that holds at least the files that match."""
    from huggingface_hub import constants, errors, snapshot_download  # slow to import, and not needed for a directory

    if constants.HF_HUB_CACHE.startswith("~"):  # it would become a folder of that name, here
        raise HubError(
            f"{repository}: there is no home folder to download it to, HOME is not set and no account says; set "
            f"HF_HOME, or pass {option} with a directory"
        )
    page = f"{constants.ENDPOINT}/{repository}"
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=wanted, ignore_patterns=unwanted))
    except errors.GatedRepoError as error:
        raise HubError(
            f"{repository}: needs its licence accepted; do so at {page}, then `hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"{repository}: has no revision {revision!r}; see {page}/commits/main") from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"{repository}: no directory of that name, and not on {constants.ENDPOINT}, or private; check the name, or "
            "`hf auth login` or set HF_TOKEN"
        ) from error
    except errors.LocalEntryNotFoundError as error:  # the hub could not be asked, and the cache does not suffice
        reason = _reason(error.__cause__ or error)
        raise HubError(
            f"{repository}: no directory of that name; as a repository, no complete copy in {constants.HF_HUB_CACHE} "
            f"and the hub cannot be asked ({reason}); connect and try again, or pass {option} with a directory"
        ) from error
    # What else can happen in this one call differs by version and the HTTP library below it: connections lost for good,
    # a full disk, a name the hub does not allow.
    except Exception as error:
        raise HubError(f"{repository}: download failed ({_reason(error)}); run again to continue it") from error


def _reason(error: BaseException) -> str:
    """The first line of an error's message, or its name where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
