"""The systemd unit and the container file, filled in for a bundle and a device."""

import json
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gemma_edge.profiles.device import load_profile
from gemma_edge.profiles.errors import GemmaEdgeError

_HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")
_MOUNTED = Path("/models")  # where a container finds the bundle


class DeployError(GemmaEdgeError, ValueError):
    """A service that could not start as it is asked for."""


@dataclass(frozen=True)
class Deployment:
    """What is to be served, and how.

    bundle: absolute; of a unit where a service may read it. profile: a device's name or file, whose budget is kept.
    program: the command `gemma-edge` of the machine that serves; None: the one beside this Python.
    host, port: where others find it.
    api_key_file, policy_file: of a unit, which hands them over as credentials; only root needs to read them.
    options: more options of `gemma-edge serve`.

    Raises DeployError: a path that is not absolute or has a line break, or no port. ProfileError.
    """

    bundle: Path
    profile: str
    program: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    api_key_file: Path | None = None
    policy_file: Path | None = None
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        load_profile(self.profile)
        for path in (self.bundle, self.program, self.api_key_file, self.policy_file):
            if path is not None and (not path.is_absolute() or not str(path).isprintable()):
                raise DeployError(f"{str(path)!r} goes into a service's file, expected an absolute path; write it out")
        if self.port == 0:
            raise DeployError("port is 0, expected one by which others find the service; choose it")

    def unit(self) -> str:
        """A unit for /etc/systemd/system. Raises DeployError: a file where a service cannot see it."""
        program = self.program or Path(sys.executable).with_name("gemma-edge")
        own_profile = [Path(self.profile).absolute()] if self.profile.endswith(".toml") else []
        for path in (self.bundle, program, *own_profile):
            hidden = next((folder for folder in _HIDDEN if path.is_relative_to(folder)), None)
            if hidden is not None:
                raise DeployError(f"{path}: a service does not see what lies in {hidden}; put it into /srv or /opt")
        profile = str(own_profile[0]) if own_profile else self.profile
        credentials = {"api-keys": ("--api-key-file", self.api_key_file), "policy": ("--policy", self.policy_file)}
        given = {name: (option, path) for name, (option, path) in credentials.items() if path is not None}
        handed = [word for name, (option, _) in given.items() for word in (option, f"%d/{name}")]
        common = [str(self.bundle), "--profile", profile]
        serve = [*common, "--host", self.host, "--port", str(self.port), *self.options]
        cache = ["--cache-dir", "%C/gemma-edge"]
        return _filled(
            "gemma-edge.service",
            {
                "bundle": str(self.bundle),
                "profile": self.profile,
                "memory_max": str(self.budget_bytes),
                "warm": " ".join([_words([str(program), "warm", *common]), *cache]),
                "serve": " ".join([_words([str(program), "serve", *serve]), *cache, *handed]),
                "credentials": "".join(
                    f"LoadCredential={name}:{_specifiers(str(path))}\n" for name, (_, path) in given.items()
                ),
            },
        )

    def container(self) -> str:
        """A container file. The bundle is no part of the image, it is mounted."""
        if self.profile.endswith(".toml") or self.api_key_file or self.policy_file:
            raise DeployError(
                "a container gets a profile of its own, keys or a policy when it is run; leave them out here, and "
                "mount them"
            )
        mounted = str(_MOUNTED / self.bundle.name)
        command = ["serve", mounted, "--profile", self.profile, "--host", "0.0.0.0", "--port", str(self.port)]
        command += ["--cache-dir", "/var/cache/gemma-edge", *self.options]
        values = {
            "bundle": str(self.bundle),
            "volume": shlex.quote(f"{self.bundle}:{mounted}:ro"),
            "profile": self.profile,
            "memory_max": str(self.budget_bytes),
            "publish": f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}:{self.port}",
            "port": str(self.port),
            "command": json.dumps(command),
        }
        return _filled("Containerfile", values)

    @property
    def budget_bytes(self) -> int:
        """Of the profile."""
        return load_profile(self.profile).budget.budget_bytes


def _filled(name: str, values: Mapping[str, str]) -> str:
    text = Path(__file__).with_name(name).read_text(encoding="utf-8")
    return re.sub(r"@(\w*)@", lambda found: values[found[1]] if found[1] else "@", text)


def _words(arguments: list[str]) -> str:
    """A command line as systemd.service(5) reads it: quoted where needed, with nothing to be expanded."""
    return " ".join(_specifiers(_quoted(argument.replace("$", "$$"))) for argument in arguments)


def _quoted(word: str) -> str:
    if re.fullmatch(r"[\w@%+=:,./$-]+", word):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _specifiers(text: str) -> str:
    return text.replace("%", "%%")
