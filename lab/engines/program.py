# SPDX-License-Identifier: MIT
"""`tokensparse eval`: llama.cpp with this library's CPU path, as users run it."""
import json
import os
import shutil
import subprocess
import tempfile

from lab.engines import EngineError, Measurement

BY_LAYER = {"pairs_by_layer": "pairs_by_layer", "seconds_by_layer": "attention_seconds_by_layer"}


def _program(name):
    found = shutil.which(name)
    if found is None:
        raise EngineError(f"program: no such program: {name}; build it, or give --program PATH")
    return found


class Engine:
    """One process a setting, kept open: the model is loaded once for each."""

    def __init__(self, path, tokenizer, limit, model, program="tokensparse", chunk=0, options=()):
        """model: its numbers, as a setting file says them."""
        if chunk:
            options = [*options, "--chunk", str(chunk)]
        self._command = [_program(program), "eval", "-m", str(path), *options]
        self.tokenizer, self.limit, self.model = tokenizer, limit, model
        self._running = {}
        self.subject = {
            "model": os.path.basename(path),
            "engine": " ".join(["program", *options]),
            "device": "cpu",
        }

    def _start(self, setting):
        file = tempfile.NamedTemporaryFile("w", suffix=".json", delete=False)
        with file:
            json.dump({"format": "tokensparse setting 1", **setting}, file)
        command = [*self._command, "--setting", file.name if setting else "exact", "-"]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def measure(self, prompt, setting, generate=False):
        key = json.dumps(setting, sort_keys=True)
        for other in [other for other in self._running if other != key]:
            self._stop(self._running.pop(other))
        if key not in self._running:
            self._running[key] = self._start(setting)
        process = self._running[key]
        try:
            process.stdin.write(json.dumps(self._question(prompt, generate)) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise EngineError(f"program: {' '.join(self._command)} ended with {process.wait()}")
        got = json.loads(line)
        return Measurement(
            loss=got["loss"],
            exact=float(got["exact"]) if prompt.refs else None,
            seconds=got["seconds"],
            pairs=got["pairs"],
            kept=got["kept"],
            text=got["answer"] if generate else None,
            more={name: [round(x, 4) for x in got[key]] for name, key in BY_LAYER.items() if key in got},
        )

    def _question(self, prompt, generate):
        return {
            "id": prompt.key,
            "tokens": prompt.tokens,
            "answer": self.tokenizer.decode(prompt.answer_tokens),
            "max_tokens": prompt.new_tokens if generate else 0,
        }

    @staticmethod
    def _stop(process):
        process.stdin.close()
        process.wait()
