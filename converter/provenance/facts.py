"""What the statements say of a bundle: its report, once that is known to be this bundle's."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gemma_edge.converter.models.official import OFFICIAL
from gemma_edge.converter.plan.output import digest_and_sync, digest_of_files
from gemma_edge.converter.quality.beside import report_path
from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.profiles.plain_file import open_plain, read_plain


class ProvenanceError(GemmaEdgeError):
    """A bundle that cannot be described or signed, or is not what was signed."""


@dataclass(frozen=True)
class Licence:
    """hub: as a model card names it. name, url: as a bill of materials does; spdx: whether `name` is SPDX's."""

    hub: str
    name: str
    url: str
    spdx: bool = False


GEMMA: Final = Licence("gemma", "Gemma Terms of Use", "https://ai.google.dev/gemma/terms")
APACHE: Final = Licence("apache-2.0", "Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0", spdx=True)
LICENCES: Final[Mapping[str, Licence]] = {"gemma3": GEMMA, "gemma3n": GEMMA, "gemma4": APACHE}
"""By family, as the hub's model cards of google/gemma-* have it; a fine-tune of one is a derivative of it."""


@dataclass(frozen=True)
class Facts:
    """report: what lies beside the bundle. files: SHA-256 by name, from the folder in which the bundle lies.

    base_model: of the hub; "" where nobody has said what the checkpoint was tuned from.
    """

    bundle: Path
    report: Mapping[str, Any]
    files: Mapping[str, str]
    base_model: str
    licence: Licence

    @classmethod
    def of(cls, bundle: Path, base_model: str | None = None) -> "Facts":
        """Raises ProvenanceError where the bundle cannot be read, or the report beside it is not its own."""
        path = report_path(bundle)
        try:
            files = _digests(bundle)
            report = json.loads(read_plain(path))
            output, family, target = report["output"], report["family"], report["target"]
            sha256 = digest_of_files(_inside(bundle, files)) if bundle.is_dir() else files[bundle.name]
            is_own = output["sha256"] == sha256
        except OSError as error:
            where = error.filename or path
            raise ProvenanceError(
                f"{where}: cannot be read ({error.strerror}); name a bundle with its report"
            ) from error
        except (ValueError, LookupError, TypeError):
            raise ProvenanceError(f"{path}: is no report of a conversion; convert again to have one") from None
        if not is_own:
            raise ProvenanceError(f"{path}: is another bundle's; convert again to have this one's")
        size = target.rpartition("-")[0].partition("+")[0]
        if base_model is None:
            base_model = OFFICIAL[size].repository if size in OFFICIAL else ""
        return cls(bundle, report, files, base_model, LICENCES[family])

    @property
    def sha256(self) -> str:
        """Of the bundle, as its report has it."""
        return str(self.report["output"]["sha256"])


def _digests(bundle: Path) -> dict[str, str]:
    paths = sorted(path for path in bundle.rglob("*") if path.is_file()) if bundle.is_dir() else [bundle]
    digests = {}
    for path in paths:
        with open_plain(path) as file:
            digests[path.relative_to(bundle.parent).as_posix()] = digest_and_sync(file)
    return digests


def _inside(bundle: Path, files: Mapping[str, str]) -> dict[str, str]:
    """The same names, from the bundle's own folder."""
    return {name.removeprefix(f"{bundle.name}/"): sha256 for name, sha256 in files.items()}
