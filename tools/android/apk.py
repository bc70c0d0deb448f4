"""The demo as an APK, without Gradle: a check that sources and resources compile and fit together.

It holds no LiteRT-LM and cannot run a model; its version name says so.
"""

import hashlib
import re
import shutil
import struct
import subprocess
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tools.android.errors import CompileError, ToolError
from tools.android.fetch import fetch, run
from tools.android.kotlin import Module, compiled, java
from tools.android.newer_api import newer_jar
from tools.android.toolchain import ANDROID, D8, Kotlin, debian_jars, debian_program

PACKAGE = "org.gemmaedge.app"
VERSION_NAME = "compile-check"
MIN_SDK, TARGET_SDK = 26, 36
FRAMEWORK_RESOURCES = Path("/usr/share/android-framework-res/framework-res.apk")
NEWER_ELEMENTS = ("<uses-native-library>",)  # of the manifest, that aapt2 of Android 10 warns of
STUB_PACKAGE = "Lcom/google/ai/edge/litertlm/"


@dataclass(frozen=True)
class Demo:
    """The folders of android_demo."""

    root: Path

    @property
    def app(self) -> Path:
        return self.root / "app/src/main"

    @property
    def manifest(self) -> Path:
        return self.app / "AndroidManifest.xml"

    @property
    def core_resources(self) -> Path:
        return self.root / "core/src/main/resources"

    def kotlin(self, module: str) -> Path:
        """The sources of core, engine or app."""
        return self.root / module / "src/main/kotlin"


@dataclass(frozen=True)
class ApkTools:
    """Programs and files of Debian's packages aapt, android-framework-res, apksigner and zipalign."""

    aapt2: str
    apksigner: str
    zipalign: str
    framework: Path

    @classmethod
    def find(cls) -> Self:
        """Raises ToolError, saying what to install."""
        if not FRAMEWORK_RESOURCES.exists():
            raise ToolError(
                f"{FRAMEWORK_RESOURCES.name} not found, it builds the Android demo; "
                "apt-get install android-framework-res"
            )
        return cls(
            debian_program("aapt2", "aapt"),
            debian_program("apksigner", "apksigner"),
            debian_program("zipalign", "zipalign"),
            FRAMEWORK_RESOURCES,
        )


@dataclass(frozen=True)
class Badging:
    """What Android sees in the APK's manifest."""

    package: str
    version_name: str
    min_sdk: int
    target_sdk: int
    permissions: frozenset[str]
    launchable: str


def build_apk(demo: Demo, kotlin: Kotlin, cache: Path, work: Path) -> Path:
    """Compile everything, package and sign. Raises ToolError or CompileError."""
    tools = ApkTools.find()
    old = fetch(ANDROID, cache) / "android.jar"
    newer = _compile_java("android-classes", sorted((demo.root / "ci/stubs/android").rglob("*.java")), [old], work)
    android_jar = newer_jar(old, work)
    # Without the JDK's classes: what core uses has to be in Android.
    core = compiled(Module.of("core", [demo.kotlin("core")], [android_jar], "-no-jdk", "-Werror"), kotlin, work)
    stubs = compiled(Module.of("litertlm-signatures", [demo.root / "ci/stubs/litertlm"], []), kotlin, work)
    out = work / "apk"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    linked = _link_resources(demo, tools, out)
    r = _compile_r(out / "java", work)
    sources = [demo.kotlin("engine"), demo.kotlin("app")]
    app = compiled(Module.of("app", sources, [core, stubs, r, android_jar, newer], "-no-jdk", "-Werror"), kotlin, work)
    _compile_tests(demo, [app, core, stubs, r, android_jar, newer], kotlin, work)
    d8 = fetch(D8, cache) / "d8.jar"
    _dex([core, app, r], kotlin.libraries, [android_jar, stubs, newer], d8, out)
    return _package(linked, demo, tools, out)


def _compile_tests(demo: Demo, classpath: Sequence[Path], kotlin: Kotlin, work: Path) -> None:
    """The tests that Robolectric runs where Google's Maven can be reached, against its signatures."""
    sources = [demo.root / "app/src/test/kotlin", demo.root / "ci/stubs/robolectric"]
    junit = debian_jars("junit4", "junit4", "hamcrest")
    compiled(Module.of("app-tests", sources, [*classpath, *junit], "-no-jdk", "-Werror"), kotlin, work)


def _link_resources(demo: Demo, tools: ApkTools, out: Path) -> Path:
    """Manifest, resources and assets as an unsigned APK; R.java in out/java."""
    manifest = out / "AndroidManifest.xml"
    # The Gradle plugin takes the package from its own files and refuses it here; aapt2 wants it here.
    text = demo.manifest.read_text()
    manifest.write_text(text.replace("<manifest ", f'<manifest package="{PACKAGE}" ', 1))
    # The Gradle plugin reads resources.properties; aapt2 takes everything there for a resource.
    shutil.copytree(demo.app / "res", out / "res", ignore=shutil.ignore_patterns("*.properties"))
    _build([tools.aapt2, "compile", "--dir", "res", "-o", "resources.zip"], out, "compiling resources")
    versions = ["--version-code", "1", "--version-name", VERSION_NAME]
    sdks = ["--min-sdk-version", str(MIN_SDK), "--target-sdk-version", str(TARGET_SDK)]
    files = ["--manifest", manifest.name, "-A", str(demo.app / "assets"), "--java", "java", "-o", "linked.apk"]
    newer = _newer_framework(demo, tools, out)
    frameworks = ["-I", str(tools.framework), "-I", newer.name]
    link = [tools.aapt2, "link", *frameworks, *versions, *sdks, *files, "--warn-manifest-validation"]
    warnings = _build([*link, "resources.zip"], out, "linking resources")
    unknown = [line for line in warnings.splitlines() if line and not any(name in line for name in NEWER_ELEMENTS)]
    if unknown:
        raise CompileError("\n".join(["the manifest is not right:", *unknown]))
    return out / "linked.apk"


def _newer_framework(demo: Demo, tools: ApkTools, out: Path) -> Path:
    """Names that the framework has had since Debian's version of it, as a second one beside it."""
    folder = demo.root / "ci/stubs/framework"
    _build([tools.aapt2, "compile", "--dir", str(folder / "res"), "-o", "newer.zip"], out, "compiling newer names")
    link = [
        tools.aapt2,
        "link",
        "-x",
        "--manifest",
        str(folder / "AndroidManifest.xml"),
        "-o",
        "newer.apk",
        "newer.zip",
    ]
    _build(link, out, "linking newer names")
    return out / "newer.apk"


def _compile_r(sources: Path, work: Path) -> Path:
    """R's classes: Kotlin copies their constants."""
    return _compile_java("r", [sources / PACKAGE.replace(".", "/") / "R.java"], [], work)


def _compile_java(name: str, sources: Sequence[Path], classpath: Sequence[Path], work: Path) -> Path:
    """Classes in a folder named after the content of their sources."""
    content = hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()[:16]
    folder = work / name / content
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    javac = ["javac", "-nowarn", "--release", "8", "-Xlint:-options", "-d", str(folder)]
    path = ["-classpath", ":".join(map(str, classpath))] if classpath else []
    _build([*javac, *path, *map(str, sources)], folder, f"compiling {name}")
    return folder


def _dex(packaged: Sequence[Path], libraries: Sequence[Path], provided: Sequence[Path], d8: Path, out: Path) -> None:
    """classes.dex and so on, in `out`. provided: what is on the device, or is to be found nowhere."""
    jar = out / "classes.jar"
    with zipfile.ZipFile(jar, "w") as archive:
        for folder in packaged:
            for path in sorted(folder.rglob("*.class")):
                archive.write(path, path.relative_to(folder))
    seen = [option for path in provided if path.suffix == ".jar" for option in ("--lib", path)]
    seen += [option for path in provided if path.is_dir() for option in ("--classpath", path)]
    d8_main = ("-cp", d8, "com.android.tools.r8.D8", "--release", "--min-api", str(MIN_SDK), "--output", out)
    _build(java(*d8_main, *seen, jar, *libraries), out, "translating classes for Android")


def _package(linked: Path, demo: Demo, tools: ApkTools, out: Path) -> Path:
    """Add code, align, sign with a key made for this one file."""
    with zipfile.ZipFile(linked, "a", zipfile.ZIP_DEFLATED) as apk:
        for dex in sorted(out.glob("classes*.dex")):
            apk.write(dex, dex.name)
        for path in sorted(demo.core_resources.rglob("*")):
            if path.is_file():
                apk.write(path, path.relative_to(demo.core_resources))
    aligned, apk_path = out / "aligned.apk", out / f"gemma-edge-demo-{VERSION_NAME}.apk"
    _build([tools.zipalign, "-f", "4", linked.name, aligned.name], out, "aligning")
    password = ["-storepass", "compile-check", "-keypass", "compile-check"]
    subject = ["-dname", f"CN=gemma-edge {VERSION_NAME}", "-alias", "key", "-keyalg", "EC", "-validity", "2"]
    _build(["keytool", "-genkeypair", "-keystore", "key.p12", *password, *subject], out, "making a key")
    sign = [
        tools.apksigner,
        "sign",
        "--ks",
        "key.p12",
        "--ks-pass",
        "pass:compile-check",
        "--min-sdk-version",
        str(MIN_SDK),
    ]
    _build([*sign, "--out", apk_path.name, aligned.name], out, "signing")
    _build(
        [tools.apksigner, "verify", "--min-sdk-version", str(MIN_SDK), apk_path.name], out, "verifying the signature"
    )
    (out / "key.p12").unlink()
    return apk_path


def _build(command: Sequence[str], folder: Path, doing: str) -> str:
    """Run a tool on our sources and return what it prints. Raises CompileError with all of that where it refuses."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompileError(f"{doing}:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


# ---------------------------------------------------------------- what is in it


def badging(apk: Path) -> Badging:
    """Read the manifest back. Raises ToolError."""
    text = run([debian_program("aapt2", "aapt"), "dump", "badging", apk.name], apk.parent, "reading the APK")

    def one(pattern: str) -> str:
        found = re.search(pattern, text, re.MULTILINE)
        if found is None:
            raise CompileError(f"{apk.name}: no {pattern} in what aapt2 says of it:\n{text}")
        return found[1]

    return Badging(
        package=one(r"^package: name='([^']*)'"),
        version_name=one(r"^package: .*versionName='([^']*)'"),
        min_sdk=int(one(r"^sdkVersion:'(\d+)'")),
        target_sdk=int(one(r"^targetSdkVersion:'(\d+)'")),
        permissions=frozenset(re.findall(r"^uses-permission: name='([^']*)'", text, re.MULTILINE)),
        launchable=one(r"^launchable-activity: name='([^']*)'"),
    )


def dex_classes(apk: Path) -> frozenset[str]:
    """The descriptors of the classes that it defines, "Lorg/gemmaedge/app/ChatActivity;".

    source.android.com/docs/core/runtime/dex-format: the header has (count, offset) of string_ids at 56, of type_ids
    at 64 and of class_defs at 96; a string is its length in characters, then MUTF-8 up to a zero.
    """
    found: set[str] = set()
    with zipfile.ZipFile(apk) as archive:
        for name in archive.namelist():
            if re.fullmatch(r"classes\d*\.dex", name):
                found.update(_classes(archive.read(name)))
    return frozenset(found)


def _classes(dex: bytes) -> Iterator[str]:
    strings, types = (struct.unpack_from("<II", dex, at)[1] for at in (56, 64))
    count, definitions = struct.unpack_from("<II", dex, 96)
    for i in range(count):
        (type_index,) = struct.unpack_from("<I", dex, definitions + 32 * i)
        (string_index,) = struct.unpack_from("<I", dex, types + 4 * type_index)
        (at,) = struct.unpack_from("<I", dex, strings + 4 * string_index)
        while dex[at] & 0x80:  # the length, in groups of seven bits
            at += 1
        yield dex[at + 1 : dex.index(0, at + 1)].decode()
