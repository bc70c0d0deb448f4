"""Profiles with a budget of a few hundred MiB and an engine that leaks, for tests of budgets."""

import subprocess
import sys
from pathlib import Path

from gemma_edge.runtime.memory.cgroup import MemoryCgroup

PROFILE = """
description = "a small budget"
architecture = "x86_64"
isa = []
cores = {cores}
ram_bytes = "8 GiB"
budget_bytes = {budget_bytes}
memory_bytes_per_s = "10 GB"
storage_bytes_per_s = "500 MB"
"""


def write_profile(folder: Path, budget_bytes: int, *, cores: int = 2) -> Path:
    path = folder / "small.toml"
    path.write_text(PROFILE.format(budget_bytes=budget_bytes, cores=cores))
    return path


# Leaks 8 MiB a token until somebody stops it.
LEAKING = """
import sys, warnings
from gemma_edge.profiles.budget import OverBudget
from gemma_edge.runtime.engine import Engine
bundle, cache, profile, action = sys.argv[1:]
warnings.simplefilter("always")
with Engine(bundle, cache_dir=cache, profile=profile, over_budget=action) as engine:
    sequence = engine.new_sequence()
    leak = []
    try:
        for token in range(1, 100):
            sequence.append([token])
            sequence.logits()
            leak.append(bytearray(b"x") * (8 << 20))
    except OverBudget as error:
        print(error)
        print(*(part.name for part in error.footprint.parts), sep=", ")
print(len(leak))
"""


def leak(
    bundle: Path, cache_dir: Path, profile: Path, action: str, cgroup: MemoryCgroup | None = None
) -> tuple[list[str], str]:
    """What a run of LEAKING printed: lines of standard output, and standard error."""
    command = [sys.executable, "-c", LEAKING, str(bundle), str(cache_dir), str(profile), action]
    ran = subprocess.run(
        cgroup.command(command) if cgroup else command, capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines(), ran.stderr
