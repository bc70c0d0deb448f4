"""The shape of a device profile and the bounds of its numbers. profiles/FORMAT.md says what each key means."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from gemma_edge.profiles.budget import MemoryBudget
from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.profiles.sizes import GIB, MIB, format_bytes


class Architecture(StrEnum):
    AARCH64 = "aarch64"
    X86_64 = "x86_64"


class Isa(StrEnum):
    """CPU features that decide which kernels run, under the names of /proc/cpuinfo's meaning, not its spelling."""

    NEON = "neon"
    LSE = "lse"  # ARMv8.1 atomics; without them the litert-lm wheel aborts at load
    FP16 = "fp16"
    DOTPROD = "dotprod"
    I8MM = "i8mm"
    AVX2 = "avx2"
    AVX_VNNI = "avx-vnni"
    AVX512 = "avx512"
    AVX512_VNNI = "avx512-vnni"


ISA_BY_ARCHITECTURE: Mapping[Architecture, frozenset[Isa]] = {
    Architecture.AARCH64: frozenset({Isa.NEON, Isa.LSE, Isa.FP16, Isa.DOTPROD, Isa.I8MM}),
    Architecture.X86_64: frozenset({Isa.AVX2, Isa.AVX_VNNI, Isa.AVX512, Isa.AVX512_VNNI}),
}

# Outside these a number is a slip of the keyboard: a watch has 512 MiB, a server 1 TiB.
MIN_RAM_BYTES, MAX_RAM_BYTES = 256 * MIB, 1024 * GIB
MIN_BUDGET_BYTES = 64 * MIB
MAX_CORES = 256
MIN_MEMORY_BYTES_PER_S, MAX_MEMORY_BYTES_PER_S = 5 * 10**8, 10**12  # a Pi Zero reads 1 GB/s, a server 0.5 TB/s
MIN_STORAGE_BYTES_PER_S, MAX_STORAGE_BYTES_PER_S = 10**6, 10**11  # a bad SD card, a RAID of NVMe


class ProfileError(GemmaEdgeError):
    """A profile that cannot be used: `where` it is, the `key`, what was found and what was expected."""

    def __init__(self, key: str, found: str, expected: str, where: str = "") -> None:
        self.key = key
        self.found = found
        self.expected = expected
        super().__init__(f"{where + ' ' if where else ''}{key}: found {found}; expected {expected}")

    def at(self, where: str) -> "ProfileError":
        """The same problem with its place ("my-phone.toml:7")."""
        return ProfileError(self.key, self.found, self.expected, where)


@dataclass(frozen=True)
class DeviceProfile:
    """One device class. `sources` maps a field's name to where its number comes from."""

    name: str
    description: str
    architecture: Architecture
    isa: tuple[Isa, ...]
    cores: int
    ram_bytes: int
    budget_bytes: int  # what the whole process may use; see FORMAT.md
    memory_bytes_per_s: int  # sustained reads by all cores together, not the data sheet's peak
    storage_bytes_per_s: int  # sequential reads
    sources: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ProfileError on the first value that cannot be."""
        if not self.name:
            raise ProfileError("name", "an empty string", 'a short name such as "my-phone"')
        if not self.description.strip() or len(self.description.splitlines()) > 1:
            raise ProfileError("description", shown(self.description), "one line of text")
        for feature in self.isa:
            if feature not in ISA_BY_ARCHITECTURE[self.architecture]:
                names = ", ".join(sorted(ISA_BY_ARCHITECTURE[self.architecture]))
                raise ProfileError("isa", f'"{feature}"', f"features of {self.architecture}: {names}")
        if not 1 <= self.cores <= MAX_CORES:
            raise ProfileError("cores", str(self.cores), f"1 to {MAX_CORES}")
        _check_size("ram_bytes", self.ram_bytes, MIN_RAM_BYTES, MAX_RAM_BYTES)
        _check_size("budget_bytes", self.budget_bytes, MIN_BUDGET_BYTES, self.ram_bytes, "ram_bytes")
        _check_rate("memory_bytes_per_s", self.memory_bytes_per_s, MIN_MEMORY_BYTES_PER_S, MAX_MEMORY_BYTES_PER_S)
        _check_rate("storage_bytes_per_s", self.storage_bytes_per_s, MIN_STORAGE_BYTES_PER_S, MAX_STORAGE_BYTES_PER_S)

    @property
    def budget(self) -> MemoryBudget:
        return MemoryBudget(self.budget_bytes)


def shown(value: object) -> str:
    """A value as TOML writes it, on one line."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _check_size(key: str, value: int, least: int, most: int, most_name: str = "") -> None:
    if not least <= value <= most:
        limit = f"{most_name} ({format_bytes(most)})" if most_name else format_bytes(most)
        raise ProfileError(key, f"{value} ({format_bytes(value)})", f"{format_bytes(least)} to {limit}")


def _check_rate(key: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ProfileError(key, f"{value} bytes per second", f"{least / 1e9:g} to {most / 1e9:g} GB per second")
