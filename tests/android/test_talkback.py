"""What TalkBack reads, and in which order: from the layouts, where both are decided."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

ANDROID = "{http://schemas.android.com/apk/res/android}"
# Containers that show their children in the order of the file; TalkBack reads them so.
IN_ORDER = {"LinearLayout", "ScrollView", "FrameLayout"}
ACTED_ON = {"Button", "ImageButton", "EditText", "Spinner", "Switch", "SearchView", "ListView"}
TOLD = {"TextView", "ProgressBar"}
# Each screen from top to bottom, as somebody who cannot see it meets it: what is going on, what was said, what to do.
ORDER = {
    "activity_chat": "toolbar notice messages empty load_again choose_model loading status draft draft_remove "
    "attach_image attach_audio record input send",
    "activity_chats": "toolbar search chats empty",
    "activity_models": "toolbar work_text work_progress work_pause work_stop models empty",
    "activity_details": "toolbar details",
    "activity_bench": "toolbar bench_text bench_progress figures start stop share",
    "activity_templates": "toolbar templates empty",
    "activity_settings": "toolbar @system_prompt system_prompt @temperature temperature @top_k top_k @top_p top_p "
    "@seed seed @max_answer max_answer @text_backend text_backend @vision_backend vision_backend "
    "@audio_backend audio_backend may_draft uses_tools - save server server_text copy_server",
    "dialog_url": "@url url -",
    "dialog_template": "@template_name template_name @template_text template_text",
    "row": "title detail",
    "row_answer": "text detail",
    "row_user": "text detail",
}
# Read by itself when it changes; assertive interrupts, and only what needs an answer may.
LIVE = {
    ("activity_chat", "notice"): "assertive",
    ("activity_chat", "status"): "polite",
    ("activity_chat", "draft"): "polite",
    ("activity_bench", "bench_text"): "polite",
    ("activity_settings", "server_text"): "polite",
}


@pytest.fixture(scope="module")
def layouts(repository: Path) -> dict[str, ElementTree.Element]:
    folder = repository / "android_demo/app/src/main/res"
    assert not list(folder.glob("layout-*"))  # another order for another screen would have to be looked at too
    return {path.stem: ElementTree.parse(path).getroot() for path in sorted(folder.glob("layout/*.xml"))}


def name(element: ElementTree.Element) -> str:
    """Its id; "@x" for the label of x, "-" for a text that is only there."""
    label = element.attrib.get(f"{ANDROID}labelFor")
    if label is not None:
        return "@" + label.split("/")[1]
    return element.attrib.get(f"{ANDROID}id", "/-").split("/")[1]


def test_each_screen_is_read_in_its_order(layouts: dict[str, ElementTree.Element]) -> None:
    read = ACTED_ON | TOLD | {"Toolbar"}
    found = {file: " ".join(name(e) for e in root.iter() if e.tag in read) for file, root in layouts.items()}
    assert found == ORDER


def test_the_order_of_the_file_is_the_order_of_the_screen(layouts: dict[str, ElementTree.Element]) -> None:
    for file, root in layouts.items():
        for element in root.iter():
            assert element.tag in IN_ORDER | ACTED_ON | TOLD | {"Toolbar"}, f"{file}: {element.tag}"
            for attribute in ("accessibilityTraversalBefore", "accessibilityTraversalAfter", "layoutDirection"):
                assert f"{ANDROID}{attribute}" not in element.attrib, f"{file}: {attribute}"
            assert element.attrib.get(f"{ANDROID}importantForAccessibility", "auto") == "auto", file
            if element.tag == "FrameLayout" and len(element) > 1:  # one over the other, never both
                assert [child.tag for child in element] == ["ListView", "TextView"], file
                assert name(element[1]) == "empty", file


def test_a_field_has_a_name_just_before_it(layouts: dict[str, ElementTree.Element]) -> None:
    for file, root in layouts.items():
        for parent in root.iter():
            children = list(parent)
            for before, field in zip([None, *children], children, strict=False):
                if field.tag in {"EditText", "Spinner"} and f"{ANDROID}hint" not in field.attrib:
                    assert before is not None, f"{file}: {name(field)}"
                    assert name(before) == f"@{name(field)}", file
                if field.tag in {"Switch", "SearchView"}:
                    has_name = {f"{ANDROID}text", f"{ANDROID}queryHint"} & field.attrib.keys()
                    assert has_name, f"{file}: {name(field)}"


def test_a_picture_and_a_bar_say_what_they_are(layouts: dict[str, ElementTree.Element]) -> None:
    for file, root in layouts.items():
        for element in root.iter():
            described = f"{ANDROID}contentDescription" in element.attrib
            assert described == (element.tag in {"ImageButton", "ProgressBar"}), f"{file}: {name(element)}"


def test_what_speaks_by_itself(layouts: dict[str, ElementTree.Element]) -> None:
    found = {
        (file, name(element)): element.attrib[f"{ANDROID}accessibilityLiveRegion"]
        for file, root in layouts.items()
        for element in root.iter()
        if f"{ANDROID}accessibilityLiveRegion" in element.attrib
    }
    assert found == LIVE


def test_fingers_find_it(layouts: dict[str, ElementTree.Element], repository: Path) -> None:
    """48 dp, as Android's guide asks: Material's own buttons have them, the others say so."""
    styles = ElementTree.parse(repository / "android_demo/app/src/main/res/values/themes.xml").getroot()
    sizes = {style.attrib["name"]: {item.attrib["name"]: item.text for item in style} for style in styles.iter("style")}
    assert sizes["Field"]["android:minHeight"] == "48dp"
    assert sizes["IconButton"]["android:layout_height"] == sizes["IconButton"]["android:layout_width"] == "48dp"
    for file, root in layouts.items():
        for element in root.iter():
            style = element.attrib.get("style", "")
            if element.tag == "ImageButton":
                assert style == "@style/IconButton", file
            if element.tag in {"EditText", "Spinner", "Switch"}:
                tall = style == "@style/Field" or element.attrib.get(f"{ANDROID}minHeight") == "48dp"
                assert tall, f"{file}: {name(element)}"
