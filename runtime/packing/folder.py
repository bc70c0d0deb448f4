"""Folders of packed weights that nobody else can write to, as ssh wants them of keys.

What lies in a cache is taken for a model's weights, or vouches for a bundle, so whoever can put a file there decides
what the model says. A digest beside a file would not help: it could be put there just as well. What helps is who can
write: a folder that belongs to this user, or to root, and to which no other user may write, is used as it is. In any
other (a shared machine, a volume of a container) a folder inside it is, made for this user alone.

Whoever may write to the outer folder may also put another in the inner one's place, so it is opened once and held:
until it is closed every file is reached through the descriptor (`anchor`), never through a name on the way to it.
"""

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.formats.lock import LockHeldError, descriptor, held

_DESCRIPTORS = Path("/proc/self/fd")
_OTHERS, _GROUP = 0o002, 0o020


class CacheFolderError(GemmaEdgeError):
    """Packed weights cannot be kept there."""


@dataclass(frozen=True)
class CacheFolder:
    """anchor: to reach files by, as long as the folder is open. path: its name, to show, and to know files by."""

    anchor: Path
    path: Path

    def own(self, name: str) -> Path | None:
        """The file or folder of that name; None where there is none. What another user has put there is removed."""
        place = self.anchor / name
        try:
            status = place.lstat()
        except FileNotFoundError:
            return None
        is_plain = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
        if is_plain and _is_own(status) and not _others_may_write(place, status):
            return place
        self.remove(name)
        return None

    def all_own(self) -> Path:
        """The folder, after everything of other users was removed: for a program that looks for itself."""
        for place in list(self.anchor.iterdir()):
            self.own(place.name)
        return self.anchor

    def remove(self, name: str) -> None:
        """A file, a folder with all that is in it, or a link; nothing where there is none."""
        place = self.anchor / name
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)

    def put(self, partial: str, name: str) -> Path:
        """Give a finished file or folder its name, and to nobody else the right to change it; where it is now."""
        place = self.anchor / partial
        place.chmod(stat.S_IMODE(place.lstat().st_mode) & ~(_GROUP | _OTHERS))
        return place.replace(self.anchor / name)

    @contextmanager
    def locked(self, name: str) -> Iterator[int]:
        """One process at a time; the others wait. Yields a descriptor: a child that inherits it holds the lock, too."""
        self.own(name)
        with held(self.anchor / name, wait=True) as fd:
            yield fd

    def tidy(self, name: str) -> None:
        """Remove a lock file of a process that was killed, if that is what lies there."""
        if self.own(name) is not None:
            with suppress(OSError, LockHeldError), held(self.anchor / name, wait=False):
                pass


def place_of(cache_dir: Path) -> Path:
    """The name of what `own_folder` opens; nothing is made. Raises OSError where `cache_dir` is, and is no folder."""
    try:
        folder = os.open(cache_dir, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return cache_dir
    try:
        return cache_dir if _is_private(folder) else cache_dir / _inner_name()
    finally:
        os.close(folder)


@contextmanager
def own_folder(cache_dir: Path) -> Iterator[CacheFolder]:
    """The folder itself, made where it is missing, or one inside it that is for this user alone.

    Raises CacheFolderError, where there can be none; OSError: `cache_dir` cannot be made or entered.
    """
    _check_links(cache_dir.absolute())
    cache_dir.parent.mkdir(parents=True, exist_ok=True)
    _make(cache_dir, 0o755)
    outer = descriptor(cache_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if _is_private(outer):
            yield CacheFolder(_anchor(outer) or cache_dir, cache_dir.resolve())
            return
        with _inner_folder(outer, cache_dir) as folder:
            yield folder
    finally:
        os.close(outer)


@contextmanager
def _inner_folder(outer: int, cache_dir: Path) -> Iterator[CacheFolder]:
    name = _inner_name()
    why = f"{cache_dir}: other users may write there, so what is packed goes into {name} in it"
    place = _anchor(outer)
    if place is None:
        raise CacheFolderError(f"{why}, which takes /proc to be safe; choose a cache_dir of your own")
    try:
        _make(place / name, 0o700)
        inner = descriptor(place / name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise CacheFolderError(f"{why}: {error.strerror}; choose a cache_dir of your own") from error
    try:
        if not _is_private(inner):
            status = os.fstat(inner)
            found = f"user {status.st_uid}'s, mode {stat.S_IMODE(status.st_mode):03o}"
            raise CacheFolderError(
                f"{why}, which is to be user {os.geteuid()}'s, mode 700, and is {found}; choose a cache_dir of your own"
            )
        anchor = _anchor(inner)
        assert anchor is not None
        yield CacheFolder(anchor, cache_dir.resolve() / name)
    finally:
        os.close(inner)


def _check_links(cache_dir: Path) -> None:
    """A link of another user on the way there might lead into any folder of this one's."""
    for path in (cache_dir, *cache_dir.parents):
        if path.is_symlink() and not _is_own(status := path.lstat()):
            raise CacheFolderError(f"{path}: a link that user {status.st_uid} has made; choose another cache_dir")


def _inner_name() -> str:
    return f"gemma-edge-{os.geteuid()}"


def _make(folder: Path, mode: int) -> None:
    try:
        folder.mkdir(mode)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.EROFS, errno.EACCES) or not os.path.lexists(folder):
            raise


def _anchor(fd: int) -> Path | None:
    """A path that leads to an open folder whatever becomes of its name; None without /proc."""
    path = _DESCRIPTORS / str(fd)
    return path if path.exists() else None


def _is_private(fd: int) -> bool:
    status = os.fstat(fd)
    return _is_own(status) and not _others_may_write(fd, status)


def _is_own(status: os.stat_result) -> bool:
    return status.st_uid in (os.geteuid(), 0)


def _others_may_write(place: int | Path, status: os.stat_result) -> bool:
    if status.st_mode & _OTHERS:
        return True
    return bool(status.st_mode & _GROUP) and (_has_access_list(place) or not _is_group_of_one(status))


def _has_access_list(place: int | Path) -> bool:
    """Its mode then shows what the list grants at most, not whom."""
    try:
        return "system.posix_acl_access" in os.listxattr(place)
    except (OSError, AttributeError):
        return False


def _is_group_of_one(status: os.stat_result) -> bool:
    """The group that many systems give each user for himself: with it, and umask 002, a home is writable by group."""
    import grp
    import pwd

    try:
        group, user = grp.getgrgid(status.st_gid), pwd.getpwuid(status.st_uid)
    except KeyError:
        return False
    return group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
