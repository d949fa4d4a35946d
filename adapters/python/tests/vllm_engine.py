# SPDX-License-Identifier: MIT
"""One vLLM engine in a process of its own: prompts in, greedy tokens and the report out.

usage: vllm_engine.py MODEL REQUEST.json; prints one line of JSON after the engine's own output.
"""

import json
import sys
from pathlib import Path


def main():
    import vllm

    import tokensparse.vllm

    model, request = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    engine = vllm.LLM(
        model=model,
        skip_tokenizer_init=True,
        enforce_eager=True,
        dtype=request.get("dtype", "float32"),
        max_model_len=2048,
        max_num_batched_tokens=256,
        max_num_seqs=8,
        enable_prefix_caching=True,
        tensor_parallel_size=request.get("ranks", 1),
    )
    sampling = vllm.SamplingParams(
        max_tokens=request["max_tokens"], temperature=0, detokenize=False
    )
    outputs = []
    for prompts in request["rounds"]:
        inputs = [{"prompt_token_ids": tokens} for tokens in prompts]
        answers = engine.generate(inputs, sampling, use_tqdm=False)
        outputs.append([list(answer.outputs[0].token_ids) for answer in answers])
    reports = engine.collective_rpc(tokensparse.vllm.worker_report)
    print("\n" + json.dumps({"outputs": outputs, "reports": reports}))


if __name__ == "__main__":
    main()
