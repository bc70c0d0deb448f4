"""Newer signatures of Android, added to the class files of an older android.jar, so that code that uses them compiles.

The newest android.jar outside of Google's servers is of API 23. MEMBERS says what app/ uses beyond that; classes that
are newer as a whole stand in android_demo/ci/stubs/android. Facts: developer.android.com/reference, "Added in API
level".
"""

import hashlib
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PUBLIC, STATIC, FINAL, NATIVE, ABSTRACT = 0x1, 0x8, 0x10, 0x100, 0x400


@dataclass(frozen=True)
class Member:
    """A method, or a field where `descriptor` has no parentheses. constant: of a static final int."""

    owner: str
    name: str
    descriptor: str
    since: int
    flags: int = PUBLIC | NATIVE
    constant: int | None = None


def _constant(owner: str, name: str, value: int, since: int) -> Member:
    return Member(owner, name, "I", since, PUBLIC | STATIC | FINAL, value)


_START = "(Landroid/content/Intent;)Landroid/content/ComponentName;"
_PENDING = "(Landroid/content/Context;ILandroid/content/Intent;I)Landroid/app/PendingIntent;"
MEMBERS = (
    Member("android/app/ActivityManager$MemoryInfo", "advertisedMem", "J", 34, PUBLIC),
    Member("android/app/Notification$Builder", "<init>", "(Landroid/content/Context;Ljava/lang/String;)V", 26),
    Member("android/app/NotificationManager", "createNotificationChannel", "(Landroid/app/NotificationChannel;)V", 26),
    _constant("android/app/NotificationManager", "IMPORTANCE_LOW", 2, 24),
    Member("android/app/PendingIntent", "getForegroundService", _PENDING, 26, PUBLIC | STATIC | NATIVE),
    Member("android/app/Service", "startForeground", "(ILandroid/app/Notification;I)V", 29),
    Member("android/app/Service", "stopForeground", "(I)V", 24),
    _constant("android/app/Service", "STOP_FOREGROUND_REMOVE", 1, 24),
    Member("android/app/Service", "onTimeout", "(II)V", 35),
    Member("android/content/Context", "startForegroundService", _START, 26, PUBLIC | ABSTRACT),
    Member("android/content/ContextWrapper", "startForegroundService", _START, 26),
    _constant("android/content/pm/ServiceInfo", "FOREGROUND_SERVICE_TYPE_DATA_SYNC", 1, 29),
    Member(
        "android/net/ConnectivityManager",
        "registerDefaultNetworkCallback",
        "(Landroid/net/ConnectivityManager$NetworkCallback;)V",
        24,
    ),
    Member("android/view/WindowInsets", "getDisplayCutout", "()Landroid/view/DisplayCutout;", 28),
    _constant("android/os/Build$VERSION_CODES", "P", 28, 28),
    _constant("android/os/Build$VERSION_CODES", "Q", 29, 29),
    _constant("android/os/Build$VERSION_CODES", "TIRAMISU", 33, 33),
    _constant("android/os/Build$VERSION_CODES", "UPSIDE_DOWN_CAKE", 34, 34),
)
_TEXTS = tuple(
    Member(owner, name, "Ljava/lang/String;", since, PUBLIC | STATIC)
    for owner, name, since in (
        ("android/Manifest$permission", "POST_NOTIFICATIONS", 33),
        ("android/provider/MediaStore", "ACTION_PICK_IMAGES", 33),
    )
)


def newer_jar(android_jar: Path, folder: Path, members: Sequence[Member] = (*MEMBERS, *_TEXTS)) -> Path:
    """A copy of the jar with the members, in a file named after both. Raises KeyError for a class that is not in it."""
    key = hashlib.sha256(repr((android_jar, tuple(members))).encode()).hexdigest()[:16]
    target = folder / f"android-newer-{key}.jar"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    with zipfile.ZipFile(android_jar) as old, zipfile.ZipFile(partial, "w") as new:
        wanted = {f"{member.owner}.class" for member in members}
        for missing in wanted - set(old.namelist()):
            raise KeyError(missing)
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename in wanted:
                own = [member for member in members if f"{member.owner}.class" == entry.filename]
                content = with_members(content, own)
            new.writestr(entry.filename, content)
    partial.rename(target)
    return target


def with_members(content: bytes, members: Sequence[Member]) -> bytes:
    """A class file with further fields and methods (JVM specification, chapter 4)."""
    count, pool_end = _constant_pool(content)
    pool, added = bytearray(), count

    def entry(content: bytes) -> int:
        nonlocal added
        pool.extend(content)
        added += 1
        return added - 1

    def text(value: str) -> int:
        return entry(struct.pack(">BH", 1, len(value)) + value.encode())

    fields, methods = bytearray(), bytearray()
    for member in members:
        is_method = "(" in member.descriptor
        head = struct.pack(">HHH", member.flags, text(member.name), text(member.descriptor))
        attributes = struct.pack(">H", 0)
        if member.constant is not None:
            value = entry(struct.pack(">Bi", 3, member.constant))
            attributes = struct.pack(">HHIH", 1, text("ConstantValue"), 2, value)
        (methods if is_method else fields).extend(head + attributes)
    at_fields = pool_end + 6
    at_fields += 2 + 2 * struct.unpack_from(">H", content, at_fields)[0]  # interfaces
    at_methods = _members_end(content, at_fields)
    at_attributes = _members_end(content, at_methods)
    field_count, method_count = (struct.unpack_from(">H", content, at)[0] for at in (at_fields, at_methods))
    new_fields = sum("(" not in member.descriptor for member in members)
    return b"".join(
        (
            content[:8],
            struct.pack(">H", added),
            content[10:pool_end],
            pool,
            content[pool_end:at_fields],
            struct.pack(">H", field_count + new_fields),
            content[at_fields + 2 : at_methods],
            fields,
            struct.pack(">H", method_count + len(members) - new_fields),
            content[at_methods + 2 : at_attributes],
            methods,
            content[at_attributes:],
        )
    )


def _constant_pool(content: bytes) -> tuple[int, int]:
    """Its count, which is one more than its entries, and the offset of what follows it."""
    sizes = {3: 4, 4: 4, 5: 8, 6: 8, 7: 2, 8: 2, 9: 4, 10: 4, 11: 4, 12: 4, 15: 3, 16: 2, 17: 4, 18: 4, 19: 2, 20: 2}
    (count,) = struct.unpack_from(">H", content, 8)
    at, index = 10, 1
    while index < count:
        tag = content[at]
        at += 1 + (2 + struct.unpack_from(">H", content, at + 1)[0] if tag == 1 else sizes[tag])
        index += 2 if tag in (5, 6) else 1  # long and double count twice
    return count, at


def _members_end(content: bytes, at: int) -> int:
    """The end of the fields or methods whose count stands at `at`."""
    (count,) = struct.unpack_from(">H", content, at)
    at += 2
    for _ in range(count):
        (attributes,) = struct.unpack_from(">H", content, at + 6)
        at += 8
        for _ in range(attributes):
            at += 6 + struct.unpack_from(">I", content, at + 2)[0]
    return at
