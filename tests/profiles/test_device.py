"""Profiles: those that come with the package, a user's own file, and every complaint about a bad one."""

import dataclasses
import re
from pathlib import Path

import pytest

from gemma_edge.profiles.device import (
    Architecture,
    DeviceProfile,
    Isa,
    MemoryBudget,
    ProfileError,
    load_profile,
    profile_names,
)
from gemma_edge.profiles.sizes import GIB

REQUIRED_NAMES = {
    "phone-1.5gb",
    "phone-2gb",
    "phone-3gb",
    "android-4gb",
    "android-6gb",
    "android-8gb",
    "raspberry-pi-4-4gb",
    "raspberry-pi-5-4gb",
    "raspberry-pi-5-8gb",
    "jetson-orin-nano-8gb",
    "n100-8gb",
}

GOOD = """\
description = "a test board"
architecture = "aarch64"
isa = ["neon", "dotprod"]
cores = 4
ram_bytes = "4 GiB"
budget_bytes = "1.5 GiB"
memory_bytes_per_s = "10 GB"
storage_bytes_per_s = 90000000

[sources]
cores = "counted"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "board.toml"
    path.write_text(text, encoding="utf-8")
    return path


def complaint(path: Path) -> str:
    with pytest.raises(ProfileError) as caught:
        load_profile(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_all_promised_profiles_exist() -> None:
    assert set(profile_names()) >= REQUIRED_NAMES


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_is_valid_and_names_the_source_of_every_number(name: str) -> None:
    profile = load_profile(name)
    numbers = {field.name for field in dataclasses.fields(DeviceProfile)} - {
        "name",
        "description",
        "architecture",
        "sources",
    }
    assert profile.name == name
    assert set(profile.sources) == numbers
    assert all(profile.sources.values())


PHONES = {"phone-1.5gb": 3 * GIB // 2, "phone-2gb": 2 * GIB, "phone-3gb": 3 * GIB}


@pytest.mark.parametrize(("name", "budget_bytes"), PHONES.items())
def test_phone_profiles_are_named_after_their_budget(name: str, budget_bytes: int) -> None:
    assert load_profile(name).budget == MemoryBudget(budget_bytes)


@pytest.mark.parametrize("name", sorted(REQUIRED_NAMES - set(PHONES)))
def test_device_profiles_are_named_after_their_ram_and_leave_the_system_a_share(name: str) -> None:
    profile = load_profile(name)
    assert profile.ram_bytes == int(name.rsplit("-", 1)[1].removesuffix("gb")) * GIB
    assert profile.budget_bytes <= 0.85 * profile.ram_bytes


def test_an_own_file_is_read(tmp_path: Path) -> None:
    profile = load_profile(write(tmp_path, GOOD))
    assert profile == DeviceProfile(
        name="board",
        description="a test board",
        architecture=Architecture.AARCH64,
        isa=(Isa.NEON, Isa.DOTPROD),
        cores=4,
        ram_bytes=4 * GIB,
        budget_bytes=3 * GIB // 2,
        memory_bytes_per_s=10 * 10**9,
        storage_bytes_per_s=90 * 10**6,
        sources={"cores": "counted"},
    )
    assert load_profile(str(tmp_path / "board.toml")) == profile


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ProfileError) as caught:
        load_profile("phone-2g")
    message = str(caught.value)
    assert message.startswith('profile: found "phone-2g"; expected a path ending in .toml or one of android-4gb, ')
    assert message.endswith("; did you mean phone-2gb?")


def test_absent_file(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    assert complaint(path) == f"{path} profile: found No such file or directory; expected a readable TOML file"


def test_binary_file(tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    path.write_bytes(b"cores\xff")
    assert complaint(path) == f"{path} profile: found a byte that is not UTF-8 at 5; expected a TOML file"


def test_broken_toml_names_the_line(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace("cores = 4", "cores = = 4"))
    assert complaint(path).startswith(f"{path}:4 syntax: found Invalid value")


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("cores = 4", "coers = 4", 4, "coers: found an unknown key; expected one of description, architecture, isa,"),
        ("cores = 4\n", "", None, "cores: found nothing; expected a value; profiles/FORMAT.md describes the key"),
        ("cores = 4", 'cores = "4"', 4, 'cores: found "4"; expected an integer'),
        ("cores = 4", "cores = true", 4, "cores: found True; expected an integer"),
        ("cores = 4", "cores = 0", 4, "cores: found 0; expected 1 to 256"),
        ('"a test board"', "7", 1, "description: found 7; expected a string"),
        ('"a test board"', '" "', 1, 'description: found " "; expected one line of text'),
        ('"a test board"', '"two\\nlines"', 1, 'description: found "two\\nlines"; expected one line of text'),
        ('"aarch64"', '"two\\nlines"', 2, 'architecture: found "two\\nlines"; expected one of aarch64, x86_64'),
        ('"aarch64"', '"arm64"', 2, 'architecture: found "arm64"; expected one of aarch64, x86_64'),
        ('["neon", "dotprod"]', '"neon"', 3, 'isa: found "neon"; expected a list such as ["neon", "dotprod"]'),
        ('"dotprod"', '"sdot"', 3, 'isa: found "sdot"; expected a list of neon, lse, '),
        ('"dotprod"', '"avx2"', 3, 'isa: found "avx2"; expected features of aarch64: dotprod, fp16, i8mm, lse, neon'),
        ('"4 GiB"', '"4 gigs"', 5, 'ram_bytes: found "4 gigs"; expected a size such as "2 GiB" or "17 GB", or an '),
        ('"4 GiB"', '"4"', 5, 'ram_bytes: found "4"; expected a size such as "2 GiB"'),
        ('"4 GiB"', "4.5", 5, 'ram_bytes: found 4.5; expected a size such as "2 GiB"'),
        ('"4 GiB"', f'"{"9" * 400} GiB"', 5, 'ram_bytes: found "999'),
        ('"4 GiB"', '"4 PiB"', 5, 'ram_bytes: found "4 PiB"; expected a size'),
        ('"4 GiB"', '"4000 GiB"', 5, "ram_bytes: found 4294967296000 (4000.00 GiB); expected 256 MiB to 1024.00 GiB"),
        (
            '"1.5 GiB"',
            '"-1 GiB"',
            6,
            "budget_bytes: found -1073741824 (-1.00 GiB); expected 64 MiB to ram_bytes (4.00 ",
        ),
        (
            '"1.5 GiB"',
            '"5 GiB"',
            6,
            "budget_bytes: found 5368709120 (5.00 GiB); expected 64 MiB to ram_bytes (4.00 GiB",
        ),
        ('"10 GB"', '"10 MB"', 7, "memory_bytes_per_s: found 10000000 bytes per second; expected 0.5 to 1000 GB"),
        ("90000000", "90", 8, "storage_bytes_per_s: found 90 bytes per second; expected 0.001 to 100 GB"),
        ('cores = "counted"', "cores = 1", 11, "sources.cores: found 1; expected a string"),
        (
            'cores = "counted"',
            'core = "counted"',
            11,
            "sources.core: found an unknown key; expected one of ",
        ),
        ('[sources]\ncores = "counted"', 'sources = "x"', 10, 'sources: found "x"; expected a table [sources] of key'),
        ("[sources]", "[source]", 10, "source: found an unknown key; expected one of "),
    ],
)
def test_every_bad_value_is_refused_with_file_line_and_key(
    tmp_path: Path, old: str, new: str, line: int | None, message: str
) -> None:
    assert GOOD.count(old) == 1
    path = write(tmp_path, GOOD.replace(old, new))
    where = str(path) if line is None else f"{path}:{line}"
    assert complaint(path).startswith(f"{where} {message}")


def test_a_profile_made_in_python_is_checked_too() -> None:
    good = load_profile("phone-2gb")
    with pytest.raises(ProfileError, match=re.escape("budget_bytes: found 1 (1 B); expected 64 MiB to ram_bytes")):
        dataclasses.replace(good, budget_bytes=1)
    with pytest.raises(ProfileError, match="name: found an empty string; expected a short name"):
        dataclasses.replace(good, name="")
