# SPDX-License-Identifier: MIT
"""One greedy answer of a Python package with llama.cpp in it; scripts/plugin-check runs this.

usage: plugin_package.py llama_cpp|xllamacpp MODEL PLUGIN|- PROMPT. Prints one line of JSON."""

import ctypes
import json
import os
import sys

package, model, plugin, prompt = sys.argv[1:]
threads = os.cpu_count()


# [load]
def load_plugin(library: str, plugin: str) -> None:
    """Before you make a context. For llama_cpp `library` is "libggml.so.0": by this name the one that
    it has loaded, not a second one by its path. For xllamacpp it is xllamacpp.xllamacpp.__file__."""
    ggml = ctypes.CDLL(library)
    ggml.ggml_backend_load.restype = ctypes.c_void_p
    ggml.ggml_backend_load(plugin.encode())
# [/load]


def use(library: str) -> str:
    if plugin != "-":
        load_plugin(library, plugin)
    ggml = ctypes.CDLL(library)
    ggml.ggml_version.restype = ctypes.c_char_p
    return ggml.ggml_version().decode()


if package == "llama_cpp":
    import llama_cpp

    version = use("libggml.so.0")
    llama = llama_cpp.Llama(
        model, n_ctx=4096, n_threads=threads, n_threads_batch=threads, flash_attn=True, verbose=False
    )
    text = llama(prompt, max_tokens=12, temperature=0)["choices"][0]["text"]
    llama.close()
else:
    import xllamacpp

    version = use(xllamacpp.xllamacpp.__file__)
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx = 4096
    params.n_parallel = 1
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    params.warmup = False
    server = xllamacpp.Server(params)
    answer = server.handle_completions({"prompt": prompt, "max_tokens": 12, "temperature": 0})
    text = answer["choices"][0]["text"]
    del server
print(json.dumps({"text": text, "ggml": version}), flush=True)
