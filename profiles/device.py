"""The door to this folder: device profiles by name or file, budgets, footprints.

`load_profile` takes the name of a profile in this folder or the path of a TOML file. profiles/FORMAT.md describes the
keys and the one definition of `budget_bytes`.
"""

import difflib
from pathlib import Path

from gemma_edge.profiles.budget import MemoryBudget, OverBudget, Suggestion, footprint_table
from gemma_edge.profiles.footprint import Footprint, Part
from gemma_edge.profiles.paths import user_path
from gemma_edge.profiles.profile_file import read_profile
from gemma_edge.profiles.schema import Architecture, DeviceProfile, Isa, ProfileError

__all__ = [
    "Architecture",
    "DeviceProfile",
    "Footprint",
    "Isa",
    "MemoryBudget",
    "OverBudget",
    "Part",
    "ProfileError",
    "Suggestion",
    "footprint_table",
    "load_profile",
    "profile_names",
]

_FOLDER = Path(__file__).parent


def profile_names() -> list[str]:
    """The profiles that come with the package, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def load_profile(name_or_path: str | Path) -> DeviceProfile:
    """The profile of that name, or the one in that file: a file is anything that ends in .toml.

    Raises ProfileError: an unknown name, a file that cannot be read, or a value in it that cannot be, with its line.
    """
    text = str(name_or_path)
    if text.endswith(".toml"):
        return read_profile(user_path(text))
    names = profile_names()
    if text not in names:
        near = difflib.get_close_matches(text, names, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ProfileError("profile", f'"{text}"', f"a path ending in .toml or one of {', '.join(names)}{hint}")
    return read_profile(_FOLDER / f"{text}.toml")
