# SPDX-License-Identifier: MIT
"""Fetching the model and llama.cpp with everything wrong that can be, and no network.

usage: python3 fetch_test.py"""

import contextlib
import io
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))
import fetching  # noqa: E402

MODEL = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"


class Fetch(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.cache, self.packages = Path(folder.name) / "cache", Path(folder.name) / "packages"
        self.cache.mkdir()
        self.packages.mkdir()

    def fails(self, script, pattern):
        """One sentence, exit code 1, nothing left but what was there before."""
        before = set(self.cache.rglob("*"))
        offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.packages)}
        done = subprocess.run(
            [SCRIPTS / script], env={**os.environ, **offline, "TOKENSPARSE_CACHE": str(self.cache)},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        self.assertEqual((done.returncode, done.stdout), (1, ""), done.stderr)
        last = done.stderr.splitlines()[-1]
        self.assertRegex(last, rf"\A{script}: {pattern}")
        self.assertNotIn("Traceback", done.stderr)
        left = set(self.cache.rglob("*")) - before
        self.assertFalse([path for path in left if path.is_file() and path.name != "lock"], left)

    def tmpfs(self, options):
        """A real disk of that size at the cache; skips the test where nobody may mount one."""
        mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.cache)]
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
            self.skipTest("needs the right to mount a small file system")
        self.addCleanup(subprocess.run, ["umount", str(self.cache)], check=True)

    def test_a_small_disk_is_said_before_the_download(self):
        self.tmpfs("size=1m")
        self.fails("fetch-model", rf"{MODEL} needs \d+ MB in {self.cache}, where \d+ MB are free")
        self.fails("fetch-llama-cpp", rf"the source of llama.cpp needs \d+ MB in {self.cache}")

    def test_a_full_disk(self):
        self.tmpfs("size=64k,nr_inodes=2")  # its root and the lock
        self.fails("fetch-model", rf"the disk of the cache {self.cache} is full")

    def test_a_model_with_another_hash(self):
        (self.cache / MODEL).write_bytes(b"GGUF, but another one")
        self.fails("fetch-model", rf"{self.cache}/{MODEL} has the wrong sha256 \(delete it .*\): "
                   r"expected 1d961463\w+, got \w+")  # fmt: skip

    def test_a_package_with_another_hash(self):
        (self.packages / "llama_cpp_python-0.3.36.tar.gz").write_bytes(b"not what was published")
        self.fails("fetch-llama-cpp", r"llama_cpp_python==0.3.36 has the wrong sha256: expected "
                   r"832db069\w+, got \w+")  # fmt: skip

    def test_a_package_that_is_not_there(self):
        self.fails("fetch-llama-cpp", "pip could not download llama_cpp_python==0.3.36: ")

    def test_how_far_a_download_is(self):
        (self.cache / "pip-unpack-1").mkdir()
        wheel = self.cache / "pip-unpack-1" / "one.whl"
        wheel.write_bytes(bytes(600_000))
        for terminal, text in ((False, "  75 % of 2 MB\n"), (True, "\r   75 % of 2 MB")):
            with (
                self.subTest(terminal=terminal),
                contextlib.redirect_stderr(io.StringIO()) as said,
                subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as pip,
            ):
                said.isatty = lambda answer=terminal: answer
                progress = fetching.Progress(2_000_000, before=900_000)
                progress.QUIET_SECONDS = 0
                wait = pip.wait

                def once(timeout=None):
                    """A second look finds the process at its end."""
                    if said.getvalue():
                        pip.stdin.close()
                        return wait()
                    raise subprocess.TimeoutExpired("pip", timeout)

                pip.wait = once
                progress.follow(pip, self.cache)
                self.assertIn(text, said.getvalue())

    def test_a_cache_that_is_a_file(self):
        self.cache.rmdir()
        self.cache.write_text("")
        self.addCleanup(self.cache.unlink)
        self.fails("fetch-model", f"cache {self.cache}: ")


if __name__ == "__main__":
    unittest.main()
