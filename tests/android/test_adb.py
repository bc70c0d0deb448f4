"""Which phone is meant, and where adb is, against a program that answers as adb does (fake_adb.sh)."""

import shutil
from pathlib import Path

import pytest

from gemma_edge.runtime.android.adb import AdbError, Device, choose_phone, find_adb
from tests.android.phones import OTHER, READY


@pytest.mark.parametrize(
    ("line", "device"),
    [
        (READY, Device("0A1B2C", "device", "Pixel_7")),
        ("0A1B2C               unauthorized usb:1-1 transport_id:1", Device("0A1B2C", "unauthorized", "")),
        ("192.168.1.7:5555\toffline transport_id:3", Device("192.168.1.7:5555", "offline", "")),
        (
            "0A1B2C\tno permissions (user in plugdev group; are your udev rules wrong?); see [http://x] usb:1-1",
            Device("0A1B2C", "no permissions", ""),
        ),
    ],
)
def test_lines_of_adb_devices(line: str, device: Device) -> None:
    assert Device.parse(line.rstrip("\n")) == device


@pytest.mark.parametrize(
    ("devices", "serial", "message"),
    [
        ("", None, r"^adb: no device is connected; plug one in with USB debugging on .* adb connect HOST:PORT$"),
        (
            READY + OTHER,
            None,
            r"^adb: 2 devices are connected, expected one: 0A1B2C \(Pixel_7\), emulator-5554 \(sdk_phone\); choose "
            "with --serial 0A1B2C$",
        ),
        (READY, "XYZ", r"^adb: no device XYZ; connected: 0A1B2C \(Pixel_7\); give one of these to --serial$"),
        (
            "0A1B2C\tunauthorized usb:1-1\n",
            None,
            r"^adb: 0A1B2C is in state unauthorized, expected device; unlock it and allow this computer's key in the "
            "USB debugging dialog$",
        ),
        (READY + "77\toffline\n", "77", "^adb: 77 is in state offline, expected device; unplug it and plug"),
        ("77\tno permissions (x); see [y]\n", None, "^adb: 77 is in state no permissions, expected device; this user"),
        ("77\trecovery\n", None, "^adb: 77 is in state recovery, expected device; start Android on it$"),
    ],
)  # fmt: skip
def test_no_single_ready_phone(phone_folder: Path, devices: str, serial: str | None, message: str) -> None:
    (phone_folder / "devices").write_text(devices)
    with pytest.raises(AdbError, match=message):
        choose_phone(find_adb(), serial)


def test_the_phone_of_a_serial_and_the_only_ready_one(phone_folder: Path) -> None:
    (phone_folder / "devices").write_text(READY + OTHER)
    assert choose_phone(find_adb(), "emulator-5554").device.model == "sdk_phone"
    (phone_folder / "devices").write_text("77\tunauthorized\n" + OTHER)
    assert choose_phone(find_adb(), None).device.serial == "emulator-5554"


def test_adb_is_missing_or_found_in_the_sdk(
    phone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for variable in ("ANDROID_HOME", "ANDROID_SDK_ROOT"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(
        AdbError, match=r"^adb: found neither on PATH nor under ANDROID_HOME; install Android's platform tools"
    ):
        find_adb()
    tools = tmp_path / "sdk" / "platform-tools"
    tools.mkdir(parents=True)
    shutil.copy(phone_folder.parent / "bin" / "adb", tools)
    monkeypatch.setenv("ANDROID_HOME", str(tmp_path / "sdk"))
    assert find_adb() == tools / "adb"


def test_an_adb_without_its_server_is_quoted(phone_folder: Path) -> None:
    (phone_folder / "no_server").touch()
    with pytest.raises(AdbError, match=r"`adb devices` failed: .*cannot connect to daemon; try: adb kill-server$"):
        choose_phone(find_adb(), None)
