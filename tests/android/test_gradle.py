"""What Gradle and aapt2 would complain about on a developer's machine, and what they would let pass: read, not run.

Gradle itself needs Google's Maven. android_demo/ci compiles the same sources without it.
"""

import hashlib
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from gemma_edge.runtime.android.push import FOLDER
from tools.android.toolchain import KOTLIN_VERSION

WRAPPER_SHA256 = "55243ef57851f12b070ad14f7f5bb8302daceeebc5bce5ece5fa6edb23e1145c"
ANDROID = "{http://schemas.android.com/apk/res/android}"
EXACT = re.compile(r"\d+(?:\.\d+)*")
# What Android lets an app do only with a permission, by what the code says to do it.
NEEDS_PERMISSION = {
    "android.permission.ACCESS_NETWORK_STATE": "getNetworkCapabilities",
    "android.permission.FOREGROUND_SERVICE": "startForeground(",
    "android.permission.FOREGROUND_SERVICE_DATA_SYNC": "FOREGROUND_SERVICE_TYPE_DATA_SYNC",
    "android.permission.INTERNET": "HttpSource(",
    "android.permission.POST_NOTIFICATIONS": "permission.POST_NOTIFICATIONS",
    "android.permission.RECEIVE_BOOT_COMPLETED": "ACTION_BOOT_COMPLETED",
    "android.permission.RECORD_AUDIO": "AudioRecord(",
    "android.permission.WAKE_LOCK": "PARTIAL_WAKE_LOCK",
}


@pytest.fixture(scope="module")
def demo(repository: Path) -> Path:
    return repository / "android_demo"


@pytest.fixture(scope="module")
def catalog(demo: Path) -> dict[str, Any]:
    return tomllib.loads((demo / "gradle" / "libs.versions.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def manifest(demo: Path) -> ElementTree.Element:
    return ElementTree.parse(demo / "app" / "src" / "main" / "AndroidManifest.xml").getroot()


@pytest.fixture(scope="module")
def resources(demo: Path) -> Path:
    return demo / "app" / "src" / "main" / "res"


def modules(demo: Path) -> list[str]:
    include = re.search(r"include\((.*?)\)", (demo / "settings.gradle.kts").read_text(encoding="utf-8"), re.DOTALL)
    assert include
    return re.findall(r'":(\w+)"', include[1])


def build_files(demo: Path) -> dict[str, str]:
    paths = [demo / "settings.gradle.kts", demo / "build.gradle.kts"]
    paths += [demo / module / "build.gradle.kts" for module in modules(demo)]
    return {str(path.relative_to(demo)): path.read_text(encoding="utf-8") for path in paths}


def sources(demo: Path, module: str) -> dict[Path, str]:
    """The Kotlin files of a module's main source set, by path below it."""
    folder = demo / module / "src" / "main" / "kotlin"
    return {path.relative_to(folder): path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.kt"))}


def imports(text: str) -> list[str]:
    return re.findall(r"^import (\S+)", text, re.MULTILINE)


def test_every_version_is_pinned(demo: Path, catalog: dict[str, Any]) -> None:
    versions = catalog["versions"]
    assert not [name for name, version in versions.items() if not EXACT.fullmatch(version)]
    entries = [*catalog["libraries"].values(), *catalog["plugins"].values()]
    assert {entry["version"]["ref"] for entry in entries} <= set(versions)
    # In the build files there is nothing but references to the catalog.
    for name, text in build_files(demo).items():
        assert not re.search(r"latest|SNAPSHOT|:\d+\.|\bversion\s*\(?\"", text), name


def test_what_litertlm_android_needs(catalog: dict[str, Any]) -> None:
    """0.18.0 carries Kotlin 2.4 metadata and Java 21 classes, and declares minSdk 24."""
    versions = catalog["versions"]
    assert catalog["libraries"]["litertlm-android"]["module"] == "com.google.ai.edge.litertlm:litertlm-android"
    assert versions["litertlm"].startswith("0.18.")  # the version that the Python runtime is compared with
    assert tuple(map(int, versions["kotlin"].split("."))) >= (2, 4)
    assert versions["jdk"] == "21"
    assert versions["minSdk"] == "26"
    assert int(versions["minSdk"]) <= int(versions["targetSdk"]) <= int(versions["compileSdk"])


def test_build_files_and_catalog_name_each_other(demo: Path, catalog: dict[str, Any]) -> None:
    known = {f"libs.plugins.{name}" for name in catalog["plugins"]} | {f"libs.{name}" for name in catalog["libraries"]}
    known |= {f"libs.versions.{name}" for name in catalog["versions"]}
    known = {name.replace("-", ".") for name in known}
    used = {
        accessor.removesuffix(".get")
        for text in build_files(demo).values()
        for accessor in re.findall(r"\blibs(?:\.\w+)+", text)
    }
    refs = {
        f"libs.versions.{entry['version']['ref']}"
        for part in ("libraries", "plugins")
        for entry in catalog[part].values()
    }
    assert used <= known
    assert known <= used | refs


def test_modules_exist_and_depend_one_way(demo: Path) -> None:
    assert modules(demo) == ["core", "engine", "app"]
    for index, module in enumerate(modules(demo)):
        text = (demo / module / "build.gradle.kts").read_text(encoding="utf-8")
        assert sources(demo, module)
        assert set(re.findall(r'project\(":(\w+)"\)', text)) <= set(modules(demo)[:index])


def test_packages_are_folders_and_namespaces(demo: Path) -> None:
    for module in modules(demo):
        namespace = f"org.gemmaedge.{module}"
        build = (demo / module / "build.gradle.kts").read_text(encoding="utf-8")
        if "namespace" in build:
            assert f'namespace = "{namespace}"' in build
        for path, text in sources(demo, module).items():
            package = ".".join(path.parent.parts)
            assert f"\npackage {package}\n" in f"\n{text}", path
            assert package.startswith(namespace)
    assert 'applicationId = "org.gemmaedge.app"' in (demo / "app" / "build.gradle.kts").read_text(encoding="utf-8")


def test_who_may_import_what(demo: Path) -> None:
    for module in modules(demo):
        for path, text in sources(demo, module).items():
            names = imports(text)
            if module != "engine":
                assert not [name for name in names if name.startswith("com.google.")], path
            if module != "app":
                assert not [name for name in names if name.startswith("android.")], path
            assert not [name for name in names if name.startswith("androidx.")], path


def test_the_wrapper_downloads_one_gradle_and_knows_its_hash(demo: Path) -> None:
    text = (demo / "gradle" / "wrapper" / "gradle-wrapper.properties").read_text(encoding="utf-8")
    properties = dict(line.split("=", 1) for line in text.splitlines())
    url = properties["distributionUrl"].replace("\\", "")
    version = re.fullmatch(r"https://services\.gradle\.org/distributions/gradle-(\d+)\.(\d+)\.\d+-bin\.zip", url)
    assert version
    assert (int(version[1]), int(version[2])) >= (9, 5)  # what the Android plugin 9.3 asks for
    assert re.fullmatch(r"[0-9a-f]{64}", properties["distributionSha256Sum"])


def test_the_wrappers_jar_is_gradles(demo: Path) -> None:
    """As Gradle publishes it with 9.4.1 (from npm's @react-native-community/template); it fetches any version."""
    jar = (demo / "gradle" / "wrapper" / "gradle-wrapper.jar").read_bytes()
    assert hashlib.sha256(jar).hexdigest() == WRAPPER_SHA256
    assert (demo / "gradlew").stat().st_mode & 0o111
    assert "gradle-wrapper.jar" in (demo / "gradlew").read_text(encoding="utf-8")


def test_the_workflow_runs_tasks_of_modules_that_exist(demo: Path) -> None:
    text = (demo.parent / ".github" / "workflows" / "android.yml").read_text(encoding="utf-8")
    assert set(re.findall(r" :(\w+):\w+", text)) <= set(modules(demo))
    assert (demo / "app" / "proguard-rules.pro").exists()


def test_nothing_built_or_fetched_is_committed(repository: Path) -> None:
    if not (repository / ".git").exists():
        pytest.skip("not a git checkout: no list of tracked files")
    command = ["git", "-C", str(repository), "ls-files", "android_demo"]
    tracked = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    built = [name for name in tracked if name.endswith((".jar", ".aar", ".apk", ".dex", ".so", ".class"))]
    assert not set(built) - {"android_demo/gradle/wrapper/gradle-wrapper.jar"}  # checked by hash


def classes(demo: Path) -> dict[str, str]:
    """Name of each class of the app -> what it extends."""
    text = "\n".join(sources(demo, "app").values())
    return dict(re.findall(r"^class (\w+)(?:\([^)]*\))? : (\w+)\(", text, re.MULTILINE))


def test_the_manifest_names_classes_that_exist(demo: Path, manifest: ElementTree.Element) -> None:
    known = classes(demo)
    application = manifest.find("application")
    assert application is not None
    assert known[application.attrib[f"{ANDROID}name"].removeprefix(".")] == "Application"
    activities = {
        activity.attrib[f"{ANDROID}name"].removeprefix("."): activity for activity in application.iter("activity")
    }
    assert set(activities) == {name for name, parent in known.items() if parent == "Screen"}
    for activity in activities.values():
        has_filter = activity.find("intent-filter") is not None
        assert activity.attrib[f"{ANDROID}exported"] == ("true" if has_filter else "false")  # required since Android 12
        assert activity.attrib.get(f"{ANDROID}parentActivityName", ".ChatActivity").removeprefix(".") in activities
    for tag, parent in (("service", "Service"), ("receiver", "BroadcastReceiver"), ("provider", "ContentProvider")):
        named = {element.attrib[f"{ANDROID}name"].removeprefix(".") for element in application.iter(tag)}
        assert named == {name for name, extended in known.items() if extended == parent}
    assert [s.attrib[f"{ANDROID}foregroundServiceType"] for s in application.iter("service")] == ["dataSync"]
    launchers = [c for c in application.iter("category") if c.attrib[f"{ANDROID}name"].endswith(".LAUNCHER")]
    assert len(launchers) == 1


def test_what_other_apps_may_hand_over_is_what_core_understands(demo: Path, manifest: ElementTree.Element) -> None:
    understood = sources(demo, "core")[Path("org/gemmaedge/core/share/Incoming.kt")]
    filters = [f for f in manifest.iter("intent-filter") if f.find("data") is not None]
    data = [{k.removeprefix(ANDROID): v for k, v in d.attrib.items()} for f in filters for d in f.iter("data")]
    for action in {a.attrib[f"{ANDROID}name"] for f in filters for a in f.iter("action")}:
        assert f'"{action}"' in understood
    for kind in {d["mimeType"].removesuffix("*") for d in data if "mimeType" in d} - {
        "text/plain"
    }:  # words are the rest
        assert f'"{kind}"' in understood
    assert {d["scheme"] for d in data if "scheme" in d} == {"content", "gemma-edge"}
    assert 'LINK_SCHEME = "gemma-edge"' in understood
    for host in {d["host"] for d in data if "host" in d} - {"*"}:
        assert f'"{host}" ->' in understood
    # A file that is opened by its name, and nothing else that happens to be bytes.
    assert [d["pathPattern"] for d in data if d.get("scheme") == "content"] == [".*\\\\.litertlm"]
    (provider,) = manifest.iter("provider")
    assert provider.attrib[f"{ANDROID}exported"] == "false"
    assert f'OWN_AUTHORITY = "{provider.attrib[f"{ANDROID}authorities"]}"' in understood


def test_permissions_are_those_that_the_code_needs(demo: Path, manifest: ElementTree.Element) -> None:
    asked = {permission.attrib[f"{ANDROID}name"] for permission in manifest.iter("uses-permission")}
    code = "\n".join(text for module in modules(demo) for text in sources(demo, module).values())
    assert asked == {permission for permission, call in NEEDS_PERMISSION.items() if call in code}
    libraries = {library.attrib[f"{ANDROID}name"]: library for library in manifest.iter("uses-native-library")}
    assert set(libraries) == {"libOpenCL.so", "libvndksupport.so"}  # LiteRT-LM's guide: for the GPU
    assert all(library.attrib[f"{ANDROID}required"] == "false" for library in libraries.values())


def declared(resources: Path) -> dict[str, set[str]]:
    """Kind -> names, over every folder of the default configuration."""
    found: dict[str, set[str]] = {}
    for file in resources.glob("*/*.xml"):
        kind = file.parent.name.split("-")[0]
        if kind != "values":
            found.setdefault(kind, set()).add(file.stem)
        elif "-" not in file.parent.name:
            for element in ElementTree.parse(file).getroot():
                tag = {"string-array": "array"}.get(element.tag, element.tag)
                found.setdefault(tag, set()).add(element.attrib["name"])
        found.setdefault("id", set()).update(re.findall(r"@\+id/(\w+)", file.read_text(encoding="utf-8")))
    return found


def referenced(demo: Path, resources: Path) -> Iterator[tuple[str, str]]:
    for text in sources(demo, "core").values():
        yield from (("string", name) for name in re.findall(r'\bphrase\("(\w+)"', text))
    for text in sources(demo, "app").values():
        yield from re.findall(r"(?<!android\.)\bR\.(\w+)\.(\w+)", text)
    files = [*resources.glob("*/*.xml"), demo / "app" / "src" / "main" / "AndroidManifest.xml"]
    for file in files:
        text = file.read_text(encoding="utf-8")
        yield from re.findall(r"[\">]@\+?(\w+)/(\w[\w.]*)", text)
        yield from (("style", name) for name in re.findall(r'parent="(?!@)([\w.]+)"', text))


def test_resources_exist_and_are_used(demo: Path, resources: Path) -> None:
    known, used = declared(resources), set(referenced(demo, resources))
    assert not [f"{kind}/{name}" for kind, name in sorted(used) if name not in known.get(kind, set())]
    everything = {(kind, name) for kind, names in known.items() for name in names}
    # A colour, a text or a picture that nothing shows is left over.
    assert not [f"{kind}/{name}" for kind, name in sorted(everything - used) if kind != "id"]


def test_layouts_speak_the_users_language_and_to_talkback(resources: Path) -> None:
    for file in resources.glob("layout/*.xml"):
        for element in ElementTree.parse(file).getroot().iter():
            for attribute in ("text", "hint", "contentDescription"):
                value = element.attrib.get(f"{ANDROID}{attribute}", "@string/")
                assert value.startswith("@string/") or "://" in value, f"{file.name}: {value}"
            if element.tag in {"ImageButton", "ProgressBar"}:
                assert f"{ANDROID}contentDescription" in element.attrib, f"{file.name}: {element.attrib}"
    labels = {
        label.attrib[f"{ANDROID}labelFor"].removeprefix("@+id/")
        for file in resources.glob("layout/*.xml")
        for label in ElementTree.parse(file).getroot().iter()
        if f"{ANDROID}labelFor" in label.attrib
    }
    fields = {
        field.attrib[f"{ANDROID}id"].split("/")[1]
        for file in resources.glob("layout/*.xml")
        for field in ElementTree.parse(file).getroot().iter()
        if field.tag in {"EditText", "Spinner"} and f"{ANDROID}hint" not in field.attrib
    }
    assert fields <= labels


def test_buttons_side_by_side_share_the_width(resources: Path) -> None:
    """As wide as its text, a button with a long name or large type leaves the next one no room."""
    rows = [
        buttons
        for file in resources.glob("layout/*.xml")
        for row in ElementTree.parse(file).getroot().iter("LinearLayout")
        if row.attrib[f"{ANDROID}orientation"] == "horizontal" and len(buttons := row.findall("Button")) > 1
    ]
    assert rows
    widths = {button.attrib[f"{ANDROID}layout_width"] for buttons in rows for button in buttons}
    assert widths == {"0dp"}


def test_texts_take_the_values_they_are_given(demo: Path, resources: Path) -> None:
    """getString(R.string.x, a, b): as many values as places, or the app ends with an exception when it speaks."""
    places = {name: len(found) for name, found in placeholders(resources / "values/strings.xml").items()}
    calls = 0
    for path, text in sources(demo, "core").items():
        for call in re.finditer(r'\bphrase\("(\w+)"', text):
            calls += 1
            assert _values(text[call.end() :]) == places[call[1]], f"{path}: {call[0]}"
    for path, text in sources(demo, "app").items():
        for call in re.finditer(r"getString\(R\.string\.(\w+)", text):
            calls += 1
            assert _values(text[call.end() :]) == places[call[1]], f"{path}: {call[0]}"
        for name in re.findall(
            r"(?:setText|setTitle|setMessage|toast|menu\.add|makeText)\([^()]*R\.string\.(\w+)", text
        ):
            assert places[name] == 0, f"{path}: {name}"
    assert calls > 100


def placeholders(file: Path) -> dict[str, frozenset[str]]:
    """Name of a text -> its places, "%1$s"."""
    texts = {e.attrib["name"]: "".join(e.itertext()) for e in ElementTree.parse(file).iter("string")}
    return {name: frozenset(re.findall(r"%\d+\$[.\d]*\w", text)) for name, text in texts.items()}


def test_every_text_is_there_in_each_language(resources: Path) -> None:
    ours = placeholders(resources / "values/strings.xml")
    others = sorted(resources.glob("values-*/strings.xml"))
    assert others
    for file in others:
        theirs = placeholders(file)
        assert theirs == ours, sorted(name for name in {*theirs, *ours} if theirs.get(name) != ours.get(name))
        texts = [e.text for e in ElementTree.parse(file).iter("string")]
        assert all(text and text.strip() for text in texts)


def _values(rest: str) -> int:
    """How many arguments follow in a call, up to the parenthesis that closes it."""
    depth, values = 0, 0
    for character in rest:
        if character in ")]}" and depth == 0:
            return values
        depth += (character in "([{") - (character in ")]}")
        values += character == "," and depth == 0
    raise AssertionError(rest)


def test_gradle_and_ci_compile_with_the_same_kotlin(catalog: dict[str, Any]) -> None:
    assert catalog["versions"]["kotlin"] == KOTLIN_VERSION


def test_adb_and_the_app_mean_the_same_folder(demo: Path) -> None:
    application = sources(demo, "app")[Path("org/gemmaedge/app/DemoApplication.kt")]
    assert f'PUSHED_FOLDER = File("{FOLDER}")' in application
