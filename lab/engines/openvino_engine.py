# SPDX-License-Identifier: MIT
"""OpenVINO GenAI on the CPU, dense or with its XAttention, asked the lab's prompts token by token.

It says which tokens it answers with and not how probable others are: `exact` is told by a greedy answer
that begins with the answer's tokens, which is what teacher forcing would tell; there is no loss, and it
does not say what it computes. It runs in an environment of its own, that of `bench/peers/install openvino`.
"""
import os
import pathlib
import subprocess

from lab.engines import EngineError, program

MODES = ("dense", "xattention")
WORKER = pathlib.Path(__file__).with_name("openvino_worker.py")


class Engine(program.Engine):
    def __init__(self, path, tokenizer, limit, model, python, weights, threads=0):
        """weights: the GGUF file in Q8_0 that it reads; results are kept under the name of `path`."""
        super().__init__(path, tokenizer, limit, model, python)
        if not weights or not pathlib.Path(weights).is_file():
            raise EngineError(f"--openvino: no such file: {weights}; bench/peers/whole_model.py --prepare-only makes it")
        self._command = [self._command[0], str(WORKER), str(weights)]
        self._threads = threads or os.cpu_count()
        self.subject = {**self.subject, "engine": "OpenVINO GenAI, Q8_0"}

    def _start(self, setting):
        mode = setting.get("openvino")
        if mode not in MODES or len(setting) > 1:
            raise EngineError(f'openvino: a setting must be {{"openvino": one of {", ".join(MODES)}}}, is {setting}')
        command = [*self._command, mode, str(self._threads)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def _question(self, prompt, generate):
        room = prompt.new_tokens if generate else len(prompt.answer_tokens)
        return {"tokens": prompt.tokens, "answer_tokens": prompt.answer_tokens, "max_tokens": room}
