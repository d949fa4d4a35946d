# SPDX-License-Identifier: MIT
"""How far exact attention's logits are from the stock kernel's and from float32's, beside how far
two stock kernels are.

usage: logits.py MODEL --text FILE [--tokens 2048]     a bf16 model of transformers, on the CPU
"""

import argparse

import torch
import transformers
from ttft_transformers import load

import tokensparse.transformers as ts


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--text", required=True, help="file to take the prompt from")
    parser.add_argument("--tokens", type=int, default=2048)
    options = parser.parse_args()
    with open(options.text, encoding="utf-8") as file:
        ids = transformers.AutoTokenizer.from_pretrained(options.model)(
            file.read(), return_tensors="pt"
        ).input_ids[:, : options.tokens]
    runs = {
        "sdpa": ("sdpa", {}),
        "eager": ("eager", {}),
        "ours, bf16 products": (ts.NAME, {"precision": "bf16"}),
        "ours, f32 products": (ts.NAME, {"precision": "f32"}),
    }

    def logits(model, implementation, settings):
        model.set_attn_implementation(implementation)
        ts.configure(model, ts.Setting(layers="none", **settings))
        with torch.no_grad():
            return model(ids, logits_to_keep=512).logits.float()

    model = load(options.model, torch.bfloat16, "cpu")
    found = {name: logits(model, *run) for name, run in runs.items()}
    exact = logits(model.float(), "sdpa", {})
    rms = lambda a, b: (a - b).square().mean().sqrt().item()
    print(f"{ids.shape[1]} tokens, the last 512 rows of logits, RMS {rms(exact, exact * 0):.3f}")
    for name, values in found.items():
        same = (values.argmax(-1) == exact.argmax(-1)).float().mean().item()
        print(
            f"{name:20s} from sdpa {rms(values, found['sdpa']):.4f}, "
            f"from float32 {rms(values, exact):.4f}, next token as float32's {same:.1%}"
        )


if __name__ == "__main__":
    main()
