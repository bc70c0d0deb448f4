"""The unit and the container file: systemd and a shell take them, and they say what was asked for."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from gemma_edge.profiles.device import profile_names
from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.profiles.schema import ProfileError
from gemma_edge.runtime.serve.deploy.files import DeployError, Deployment

PROGRAM = Path(shutil.which("true") or "/bin/true")  # systemd looks whether it is there
CACHE = "--cache-dir %C/gemma-edge"
PI = Deployment(Path("/srv/e2b.litertlm"), "raspberry-pi-5-8gb", PROGRAM)


def settings(unit: str) -> dict[str, str]:
    """Of each key the last value."""
    return dict(re.findall(r"^(\w+)=(.*)$", unit, flags=re.MULTILINE))


def verified(unit: str, folder: Path) -> str:
    """What systemd says about a unit: nothing, where it is right."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze not found; apt-get install systemd")
    path = folder / "gemma-edge.service"
    path.write_text(unit)
    done = subprocess.run(
        [analyze, "verify", "--man=no", "--recursive-errors=no", path], capture_output=True, text=True, check=False
    )
    said = [line for line in (done.stdout + done.stderr).splitlines() if path.name in line]
    return "\n".join(said) or (f"status {done.returncode}: {done.stderr}" if done.returncode else "")


@pytest.mark.parametrize("profile", profile_names())
def test_systemd_accepts_the_unit_of_every_profile(profile: str, tmp_path: Path) -> None:
    deployment = replace(PI, profile=profile)
    unit = deployment.unit()
    assert settings(unit)["MemoryMax"] == str(deployment.budget_bytes)
    assert verified(unit, tmp_path) == ""


def test_systemd_would_tell_what_is_wrong(tmp_path: Path) -> None:
    """The test above can fail."""
    assert "MemoryMaxx" in verified(PI.unit().replace("MemoryMax=", "MemoryMaxx="), tmp_path)
    assert "not executable" in verified(replace(PI, program=Path("/opt/nobody/gemma-edge")).unit(), tmp_path)


def test_the_unit_keeps_the_service_in_its_place() -> None:
    found = settings(PI.unit())
    wanted = {
        "Type": "notify",
        "MemoryMax": str(int(6.5 * 2**30)),
        "MemorySwapMax": "0",
        "DynamicUser": "yes",
        "ProtectSystem": "strict",
        "ProtectHome": "yes",
        "CapabilityBoundingSet": "",
        "CacheDirectory": "gemma-edge",
        "SystemCallFilter": "@system-service",
        "Restart": "on-failure",
    }
    assert {key: found[key] for key in wanted} == wanted
    assert int(found["WatchdogSec"]) >= 30
    common = "/srv/e2b.litertlm --profile raspberry-pi-5-8gb"
    assert found["ExecStart"] == f"{PROGRAM} serve {common} --host 127.0.0.1 --port 8080 {CACHE}"
    assert found["ExecStartPre"] == f"{PROGRAM} warm {common} {CACHE}"


def test_keys_and_policy_are_handed_over_as_credentials(tmp_path: Path) -> None:
    unit = replace(PI, api_key_file=Path("/etc/gemma/keys"), policy_file=Path("/etc/gemma/policy.toml")).unit()
    assert "LoadCredential=api-keys:/etc/gemma/keys\nLoadCredential=policy:/etc/gemma/policy.toml\n" in unit
    assert settings(unit)["ExecStart"].endswith(" --api-key-file %d/api-keys --policy %d/policy")
    assert verified(unit, tmp_path) == ""


def test_names_are_quoted_as_systemd_reads_them(tmp_path: Path) -> None:
    odd = replace(PI, bundle=Path('/srv/my "100%" models/$HOME.litertlm'), options=("--metrics",))
    command = settings(odd.unit())["ExecStart"]
    assert command.startswith(f'{PROGRAM} serve "/srv/my \\"100%%\\" models/$$HOME.litertlm" --profile ')
    assert command.endswith(f" --metrics {CACHE}")
    assert verified(odd.unit(), tmp_path) == ""


def test_a_profile_of_ones_own(tmp_path: Path, repository: Path) -> None:
    own = tmp_path / "box.toml"
    own.write_text((repository / "profiles" / "phone-3gb.toml").read_text())
    message = r"box.toml: a service does not see what lies in /(tmp|home|root|var/tmp); put it into /srv or /opt"
    with pytest.raises(DeployError, match=message):
        replace(PI, profile=str(own)).unit()
    with pytest.raises(DeployError, match="a container gets a profile of its own, keys or a policy when it is run"):
        replace(PI, profile=str(own)).container()


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"bundle": Path("e2b.litertlm")}, DeployError, r"'e2b.litertlm' goes into a service's file, expected an abs"),
        ({"bundle": Path("/srv/a\nExecStart=x")}, DeployError, "goes into a service's file, expected an absolute path"),
        ({"bundle": Path("/home/pi/e2b.litertlm")}, DeployError, "a service does not see what lies in /home; put it"),
        ({"program": Path("/root/venv/bin/x")}, DeployError, "a service does not see what lies in /root; put it into"),
        ({"profile": "toaster"}, ProfileError, "toaster"),
    ],
)
def test_a_service_that_could_not_start_is_refused(
    values: dict[str, Path], error: type[GemmaEdgeError], message: str
) -> None:
    with pytest.raises(error, match=message):
        replace(PI, **values).unit()  # type: ignore[arg-type]


@pytest.mark.parametrize("profile", profile_names())
def test_the_container_file_is_filled_in(profile: str) -> None:
    deployment = replace(PI, profile=profile, port=9000, options=("--metrics",))
    text = deployment.container()
    assert not re.search(r"@\w*@", text)
    command = json.loads(text.rpartition("CMD ")[2])
    assert command == [
        "serve", "/models/e2b.litertlm", "--profile", profile, "--host", "0.0.0.0", "--port", "9000",
        "--cache-dir", "/var/cache/gemma-edge", "--metrics",
    ]  # fmt: skip
    assert f"--memory {deployment.budget_bytes} --publish 127.0.0.1:9000:9000" in text
    assert "--volume /srv/e2b.litertlm:/models/e2b.litertlm:ro gemma-edge" in text
    assert "\nUSER 10001:10001\n" in text
    assert "127.0.0.1:9000/health" in text
