# SPDX-License-Identifier: MIT
"""llama-server on loopback, for scripts/plugin-check: starts it, asks it, looks at its resources."""

import concurrent.futures
import json
import pathlib
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

CONNECTIONS = 40


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_port(port: int, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


class Server:
    def __init__(self, program, model, env: dict, threads: str, slots: int, options=()):
        self.port = free_port()
        self.log = ""
        self._log_file = tempfile.TemporaryFile(mode="w+", errors="replace")
        command = [str(program), "-m", str(model), "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["-np", str(slots), "-c", str(4096 * slots), "-t", threads, "--no-webui"]
        # A thread a connection, and no store of old prompts: what grows is then not the server's.
        command += ["--threads-http", str(CONNECTIONS), "--cache-ram", "0", *options]
        self.process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=self._log_file,
        )  # fmt: skip

    def __enter__(self):
        end = time.monotonic() + 300
        while time.monotonic() < end and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5):
                    return self
            except OSError:
                time.sleep(0.3)
        self.__exit__()
        raise OSError("llama-server did not start: " + self.log[-400:])

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log_file.seek(0)
        self.log = self._log_file.read()
        self._log_file.close()

    def complete(self, prompt: str, tokens: int, cache: bool) -> dict:
        """The server's answer: the greedy continuation as `content`, and `timings`."""
        body = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "cache_prompt": cache}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/completion",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=600) as answer:
            return json.loads(answer.read())

    def ask(self, prompt: str, tokens: int = 8):
        """The greedy continuation, or None when the server said no."""
        try:
            return self.complete(prompt, tokens, cache=False)["content"]
        except (OSError, KeyError, ValueError):
            return None

    def ask_at_once(self, prompts: list) -> list:
        """All at the same time, in this order: the first has to take longer than the others take to
        arrive, so that the server has the same batches to compute each time this is done."""
        with concurrent.futures.ThreadPoolExecutor(CONNECTIONS) as pool:
            answers = []
            for prompt in prompts:
                answers.append(pool.submit(self.ask, prompt))
                time.sleep(0.05 if len(answers) > 1 else 0.5)
            return [answer.result() for answer in answers]

    def resources(self) -> tuple:
        """Resident MiB, threads, open files."""
        time.sleep(0.3)  # the last answer's connection closes
        folder = pathlib.Path(f"/proc/{self.process.pid}")
        status = (folder / "status").read_text()
        rss = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return (
            int(rss.split()[1]) / 1024,
            sum(1 for _ in (folder / "task").iterdir()),
            sum(1 for _ in (folder / "fd").iterdir()),
        )
