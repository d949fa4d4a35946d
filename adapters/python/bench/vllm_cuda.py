# SPDX-License-Identifier: MIT
"""A whole vLLM engine on CUDA: its own kernel, ours exact, ours sparse.

usage: vllm_cuda.py MODEL [--parts PART...] [--tokens N...] [--tensor-parallel N] [--json FILE] ...
MODEL is a folder, or `random` for Qwen2.5-1.5B's shape with random weights: right for times, since
--keep says how many tokens stay, and for comparing exact tokens, but not for what a vote keeps.
vLLM's defaults are left alone: compiled, CUDA graphs, chunked prefill, prefix cache. The parts:
  stock         vLLM's own kernel, everything twice: what two runs of the same differ by
  ours          exact; sparse (--coverage in all layers but the first and last); kept (--keep instead);
                blocks (sparse, and of the tokens it keeps xattention's blocks)
                of each: time to first token by length, greedy tokens of prompts, of a mixed batch, of
                that batch from the prefix cache and of 64 requests at once, memory
  turns         exact, sparse and blocks, each in turns with the same engine without anything of ours
  runner-stock, runner-ours   the same, short and eager, by vLLM's other model runner
  backend       our builder and layer alone on paged caches, beside plain attention
  graphs        prompts inside full CUDA graphs: nothing of ours runs in a replay, and it is counted
  http-stock, http   `vllm serve`: 64 requests at once, and our counters at /metrics
Each part is a process of its own with a time limit; the JSON file is written after each. A part that
the file has already is not run again (--again runs it), so a run that was cut off goes on. With
--at-once all parts start together, which is most of their time, and then measure in turn.
"""

import argparse
import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).parent
QWEN_15B = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": 151936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "rope_theta": 1000000.0,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 0,
}
SMALL = {"tokens": [4096, 16384], "eager": True, "repeat": 2}
# Of each part its script, what is asked of it, and its environment.
PARTS = {
    "stock": ("vllm_engines.py", {"modes": ["stock", "stock again"]}, {}),
    "ours": ("vllm_engines.py", {"modes": ["exact", "sparse", "kept", "blocks"]}, {}),
    "turns": ("vllm_engines.py", {"modes": ["exact", "sparse", "blocks"]}, {}),
    "runner-stock": ("vllm_engines.py", {"modes": ["stock"], **SMALL}, {"runner": 1}),
    "runner-ours": ("vllm_engines.py", {"modes": ["exact", "kept"], **SMALL}, {"runner": 1}),
    "backend": ("../tests/vllm_backend.py", {}, {}),
    "graphs": ("vllm_engines.py", {"modes": ["full graphs"]}, {}),
    "http-stock": ("vllm_server.py", {"modes": ["stock"]}, {}),
    "http": ("vllm_server.py", {"modes": ["sparse"]}, {}),
}
# What is compared with what: (part, mode) with (part, mode).
PAIRS = [
    (("stock", "stock again"), ("stock", "stock")),
    (("ours", "exact"), ("stock", "stock")),
    (("ours", "sparse"), ("stock", "stock")),
    (("ours", "kept"), ("stock", "stock")),
    (("ours", "blocks"), ("stock", "stock")),
    (("runner-ours", "exact"), ("runner-stock", "stock")),
    (("runner-ours", "kept"), ("runner-stock", "stock")),
    (("http", "sparse"), ("http-stock", "stock")),
]


def make_model(folder, longest):
    """A config of the model with room for the longest prompt, and a tokenizer that has its words."""
    import tokenizers
    import transformers

    config = {**QWEN_15B, "max_position_embeddings": longest + 64}
    Path(folder, "config.json").write_text(json.dumps(config))
    words = {f"w{i}": i for i in range(QWEN_15B["vocab_size"])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w1"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="w1", eos_token="w0"
    ).save_pretrained(folder)


def make_plugin(folder):
    """Where the package is not installed but on the path, its entry point for vLLM's processes."""
    from importlib.metadata import entry_points

    if any(point.name == "tokensparse" for point in entry_points(group="vllm.general_plugins")):
        return
    about = Path(folder, "tokensparse-0.dist-info")
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: tokensparse\nVersion: 0\n")
    (about / "entry_points.txt").write_text(
        "[vllm.general_plugins]\ntokensparse = tokensparse.vllm:register\n"
    )
    paths = [folder, os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))


def run_part(name, folder, made, options, seconds):
    """Runs a part. Returns its record: whatever it had said when it ended or was ended."""
    script, asked, environment = PARTS[name]
    asked = {**vars(options), "part": name, "folder": folder, **asked}
    variables = {k: v for k, v in os.environ.items() if not k.startswith("TOKENSPARSE_")}
    if "TOKENSPARSE_LIBRARY" in os.environ:
        variables["TOKENSPARSE_LIBRARY"] = os.environ["TOKENSPARSE_LIBRARY"]
    if "runner" in environment:
        kind = json.loads(Path(folder, "config.json").read_text())["model_type"]
        variables["VLLM_USE_V2_MODEL_RUNNER"] = "1" if kind == "qwen2" else "0"  # 0.24's other one
    variables.setdefault("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")  # functions go to the ranks
    start, said = time.time(), Path(made, f"said-{name}.jsonl")
    said.write_text("")
    asked["said"] = str(said)
    child = subprocess.Popen(
        [sys.executable, str(HERE / script), json.dumps(asked)],
        env=variables,
        start_new_session=True,
    )
    try:
        status = "ok" if child.wait(timeout=seconds) == 0 else f"failed ({child.returncode})"
    except subprocess.TimeoutExpired:
        status = f"ended after {seconds:.0f} s"
    finally:
        try:  # its servers and ranks too
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        child.wait()
    lines = said.read_text().split("\n")[:-1]
    took = round(time.time() - start, 1)
    print(f"\npart {name}: {status}, {took} s", flush=True)
    return {"status": status, "seconds": took, "records": [json.loads(line) for line in lines]}


def agreement(ours, theirs):
    """Tokens until the first difference of each answer, over all."""
    same = 0
    for a, b in zip(ours, theirs):
        same += next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    return f"{same}/{sum(map(len, theirs))}"


def of_mode(parts, part, mode, key):
    """{name: value} of what a mode said under `key`."""
    records = parts.get(part, {}).get("records", [])
    name = "batch" if key in ("answers", "seconds") else "tokens"
    return {str(r[name]): r[key] for r in records if r.get("mode") == mode and key in r and name in r}


def compare(parts, against=None):
    """Tokens and times of each mode beside stock's of the same run; with the parts of another run
    `against`, beside the same mode there."""
    found = []
    pairs = [(a, b, parts) for a, b in PAIRS]
    if against:
        modes = [(part, mode) for part in ("stock", "ours") for mode in PARTS[part][1]["modes"]]
        pairs += [(a, a, against) for a in modes]
    for (part, mode), (other_part, other), others in pairs:
        row = {"part": part, "mode": mode, "against": other if others is parts else "the other run"}
        for key, what in (("answers", "same_tokens"), ("first_token_ms", "speedup"),
                          ("seconds", "batch_speedup")):
            ours, theirs = of_mode(parts, part, mode, key), of_mode(others, other_part, other, key)
            both = [name for name in ours if name in theirs]
            if not both:
                continue
            if key == "answers":
                row[what] = {name: agreement(ours[name], theirs[name]) for name in both}
            else:
                row[what] = {name: round(theirs[name] / ours[name], 3) for name in both}
        if len(row) > 3:
            found.append(row)
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 16384, 32768, 131072])
    parser.add_argument("--compared", type=int, default=40000, help="longest prompt to compare")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--coverage", type=float, default=0.1, help="of `sparse`")
    parser.add_argument("--keep", type=float, default=0.43, help="share of the tokens in `kept`")
    parser.add_argument("--text", help="file to take the prompt from; needs the model's tokenizer")
    parser.add_argument("--memory", type=float, default=0.4, help="gpu_memory_utilization")
    parser.add_argument("--cache-gib", type=float, help="of K and V, in the place of --memory")
    parser.add_argument("--tensor-parallel", type=int, default=1)
    parser.add_argument("--eager", action="store_true", help="no compilation, no CUDA graphs")
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--seconds", type=float, default=3600, help="of all parts together")
    parser.add_argument("--part-seconds", type=float, default=600, help="of one part")
    parser.add_argument("--at-once", action="store_true", help="start all parts together")
    parser.add_argument("--again", action="store_true", help="run parts that the file has, too")
    parser.add_argument("--json", help="file to keep the figures in")
    parser.add_argument("--against", help="JSON file of another run (one card beside two)")
    options = parser.parse_args()
    began = time.time()
    report = {"parts": {}}
    if options.json and Path(options.json).exists():
        report = json.loads(Path(options.json).read_text())
    asked = {k: v for k, v in vars(options).items() if k in ("model", "tensor_parallel", "eager")}
    if report.setdefault("options", asked) != asked:
        parser.error(f"{options.json} is of a run with {report['options']}: give another --json")
    other = json.loads(Path(options.against).read_text())["parts"] if options.against else None
    failed = []
    with tempfile.TemporaryDirectory() as made:
        folder = options.model
        make_plugin(os.path.join(made, "plugin"))
        if folder == "random":
            make_model(made, max(options.tokens))
            folder = made
        alone = threading.Lock()

        def run(name):
            left = options.seconds - (time.time() - began)
            if left < 20:
                print(f"part {name}: no time left", flush=True)
                failed.append(name)
                return
            found = run_part(name, folder, made, options, min(left, options.part_seconds))
            with alone:
                report["parts"][name] = found
                if found["status"] != "ok":
                    failed.append(name)
                report["compared"] = compare(report["parts"], other)
                if options.json:
                    Path(options.json).parent.mkdir(parents=True, exist_ok=True)
                    Path(options.json).write_text(json.dumps(report, indent=1))

        parts = [
            name
            for name in options.parts
            if options.again or report["parts"].get(name, {}).get("status") != "ok"
        ]
        with concurrent.futures.ThreadPoolExecutor(len(PARTS) if options.at_once else 1) as pool:
            list(pool.map(run, parts))
    for row in report.get("compared", []):
        print(json.dumps(row))
    if failed:
        sys.exit(f"not done: {', '.join(failed)}")


if __name__ == "__main__":
    main()
