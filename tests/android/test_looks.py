"""Day and night, the colours that the user has chosen, wide screens: what the resources say of them."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

ANDROID = "{http://schemas.android.com/apk/res/android}"


@pytest.fixture(scope="module")
def demo(repository: Path) -> Path:
    return repository / "android_demo"


@pytest.fixture(scope="module")
def resources(demo: Path) -> Path:
    return demo / "app" / "src" / "main" / "res"


def test_night_changes_what_day_has(resources: Path) -> None:
    def names(folder: str, file: str) -> set[str]:
        return {element.attrib["name"] for element in ElementTree.parse(resources / folder / file).getroot()}

    ours = names("values", "colors.xml") - {"icon_background"}
    for folder in ("values-night", "values-v31", "values-night-v31"):  # by night, a version does not count
        assert names(folder, "colors.xml") == ours, folder
    assert names("values-night", "themes.xml") == names("values-v27", "themes.xml") == {"Theme.Demo.Base"}


def test_the_frameworks_newer_names_have_its_numbers(demo: Path, resources: Path) -> None:
    """AOSP's public-final.xml: thirteen shades of each of five palettes, one after the other."""
    shades = (0, 10, 50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1000)
    palettes = ("neutral1", "neutral2", "accent1", "accent2", "accent3")
    numbers = {
        f"system_{palette}_{shade}": 0x0106001D + 13 * i + j
        for i, palette in enumerate(palettes)
        for j, shade in enumerate(shades)
    }
    file = demo / "ci/stubs/framework/res/values/public.xml"
    declared = {e.attrib["name"]: int(e.attrib["id"], 16) for e in ElementTree.parse(file).iter("public")}
    assert declared.pop("enableOnBackInvokedCallback") == 16844396
    used = {
        (e.text or "").removeprefix("@android:color/")
        for folder in ("values-v31", "values-night-v31")
        for e in ElementTree.parse(resources / folder / "colors.xml").iter("color")
    }
    assert declared == {name: numbers[name] for name in used}


def test_wide_screens_have_margins(resources: Path) -> None:
    """Every child of a screen but its toolbar keeps the margin; lines of 360 to 720 dp."""
    for file in resources.glob("layout/activity_*.xml"):
        for child in ElementTree.parse(file).getroot():
            if child.tag != "Toolbar":
                sides = {child.attrib[f"{ANDROID}layout_margin{side}"] for side in ("Start", "End")}
                assert sides == {"@dimen/side_margin"}, file.name
    for folder, width in (("values-w600dp", 600), ("values-w840dp", 840)):
        (margin,) = ElementTree.parse(resources / folder / "dimens.xml").getroot()
        assert 360 <= width - 2 * int((margin.text or "").removesuffix("dp")) <= 720
