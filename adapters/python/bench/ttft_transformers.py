# SPDX-License-Identifier: MIT
"""Time to first token in transformers: the stock kernel, ours exact, ours sparse, in one process.

usage: ttft_transformers.py MODEL --tokens 4096 8192 [--device cuda] [--setting FILE] [--json FILE] ...
MODEL is a folder, or `random` for Qwen2.5-0.5B's shape with random weights. Modes take turns, the
median of the rounds counts; ratios are against stock. One line of JSON a length.
"""

import argparse
import json
import time

import record
import torch
import transformers

import tokensparse.transformers as ts

MODES = ("stock", "exact", "sparse")
QWEN_05B = dict(
    vocab_size=151936,
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    max_position_embeddings=32768,
    rope_theta=1e6,
    tie_word_embeddings=True,
)


def load(name, dtype, device):
    if name == "random":
        torch.manual_seed(1)
        with torch.device(device):
            model = transformers.AutoModelForCausalLM.from_config(
                transformers.Qwen2Config(**QWEN_05B), dtype=dtype
            )
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(name, dtype=dtype).to(device)
    return model.eval()


def first_token(model, ids):
    if ids.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    token = model(ids, logits_to_keep=1, use_cache=True).logits.argmax(-1).item()
    return time.perf_counter() - start, token


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 8192])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES)
    parser.add_argument("--text", help="file to take the prompt from; random tokens without it")
    parser.add_argument("--setting", default="built-in", help="file of the sparse mode")
    for key, kind in (("coverage", float), ("keep", float), ("layers", str), ("min-rows", int)):
        parser.add_argument(f"--{key}", type=kind, help="instead of the setting's")
    parser.add_argument("--stock", default="sdpa", help="attention implementation to compare with")
    parser.add_argument("--handed", action="store_true", help="what is exact goes to --stock")
    parser.add_argument("--json", help="file to keep the figures in")
    options = parser.parse_args()
    model = load(options.model, getattr(torch, options.dtype), options.device)
    text = None
    if options.text:
        tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
        with open(options.text, encoding="utf-8") as file:
            text = tokenizer(file.read(), return_tensors="pt").input_ids
    keys = ("coverage", "keep", "layers", "min_rows")
    changes = {key: getattr(options, key) for key in keys if getattr(options, key) is not None}
    sparse = ts.Setting.make(options.setting).changed(**changes)
    modes = {
        "stock": (options.stock, sparse.exact),
        "exact": (ts.NAME, sparse.exact),
        "sparse": (ts.NAME, sparse),
    }
    modes = {name: modes[name] for name in options.modes}
    for length in options.tokens:
        if text is None:
            ids = torch.randint(1, 50000, (1, length), generator=torch.Generator().manual_seed(1))
        else:
            ids = text[:, :length]
        ids = ids.to(options.device)
        times, first, kept = {name: [] for name in modes}, {}, None
        # The first turn is on a short prompt, to warm up.
        for turn in range(record.rounds(options.repeat, length) + 1):
            for name, (implementation, settings) in modes.items():
                model.set_attn_implementation(implementation)
                ts.configure(model, settings, stock=options.stock if options.handed else None)
                with torch.no_grad():
                    first_token(model, ids[:, :2])  # each layer takes the setting
                    seconds, first[name] = first_token(model, ids if turn else ids[:, :2048])
                if turn:
                    times[name].append(seconds)
                if name == "sparse":
                    kept = ts.report(model).kept_share
        result = {
            "engine": f"transformers {transformers.__version__}, torch {torch.__version__}",
            "device": torch.cuda.get_device_name() if ids.is_cuda else "cpu",
            "dtype": options.dtype,
            "stock": options.stock,
            "tokens": ids.shape[1],
            **record.ratios(times),
            "first_token": first,
            "setting": sparse.asdict(),
            "kept_share": kept,
        }
        print(json.dumps(result), flush=True)
        if options.json:
            record.save(options.json, result, ("engine", "device", "dtype", "tokens"))


if __name__ == "__main__":
    main()
