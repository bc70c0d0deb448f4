"""Members added to class files, read back by the JDK's own disassembler."""

import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from tools.android.newer_api import PUBLIC, Member, newer_jar

SOURCE = """
public abstract class Old implements Runnable {
    static final long BIG = 1L << 40;
    int kept;
    void first(String text) { System.out.println(text); }
}
"""
ADDED = (
    Member("Old", "added", "(ILjava/lang/String;)J", 26),
    Member("Old", "<init>", "(I)V", 26),
    Member("Old", "LEVEL", "I", 29, 0x19, 7),
    Member("Old", "size", "J", 34, PUBLIC),
)


def test_members_are_added_and_the_old_ones_stay(tmp_path: Path) -> None:
    if shutil.which("javac") is None or shutil.which("javap") is None:
        pytest.skip("javac not found; apt-get install default-jdk-headless")
    (tmp_path / "Old.java").write_text(SOURCE)
    subprocess.run(["javac", "-d", str(tmp_path), str(tmp_path / "Old.java")], check=True)
    with zipfile.ZipFile(tmp_path / "old.jar", "w") as jar:
        jar.write(tmp_path / "Old.class", "Old.class")
        jar.writestr("Other.class", b"untouched")
    newer = newer_jar(tmp_path / "old.jar", tmp_path / "work", ADDED)
    assert newer_jar(tmp_path / "old.jar", tmp_path / "work", ADDED) == newer
    seen = subprocess.run(
        ["javap", "-p", "-constants", "-cp", str(newer), "Old"], check=True, capture_output=True, text=True
    ).stdout
    for line in (
        "public native long added(int, java.lang.String);",
        "public native Old(int);",
        "public static final int LEVEL = 7;",
        "public long size;",
        "static final long BIG = 1099511627776l;",
        "void first(java.lang.String);",
        "int kept;",
    ):
        assert line in seen
    with zipfile.ZipFile(newer) as jar:
        assert jar.read("Other.class") == b"untouched"


def test_a_class_that_is_not_there_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "old.jar", "w"):
        pass
    with pytest.raises(KeyError, match=r"Old\.class"):
        newer_jar(tmp_path / "old.jar", tmp_path, ADDED)
