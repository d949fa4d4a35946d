#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What the peers of whole_model.py read: the model in their formats, and prompts as tokens.

usage: prepare.py model MODEL.gguf FOLDER             a Hugging Face folder (bf16) and q8_0.gguf
       prepare.py prompt FOLDER TEXT TOKENS NEEDLE OUT.json
                                                      a prompt of TOKENS tokens with needle 0 to 4 in it
Runs in the environment of `bench/peers/install vllm`. The weights are those of MODEL.gguf,
dequantised: every engine works with the same values, up to its own type.
"""
import json
import pathlib
import sys

WHERE = "Answer with the {} only."
NEEDLES = (  # how deep in the text, the fact, the question, the answer
    (
        0.5,
        "The lighthouse keeper wrote the number 48213 on the back of the harbour map.",
        "Which number did the lighthouse keeper write on the back of the harbour map? "
        + WHERE.format("number"),
        "48213",
    ),
    (
        0.1,
        "The spare key of the observatory is kept inside the blue teapot.",
        "Inside what is the spare key of the observatory kept? " + WHERE.format("object"),
        "blue teapot",
    ),
    (
        0.3,
        "The orchestra will rehearse in the old tannery on the fourteenth of March.",
        "On which day will the orchestra rehearse in the old tannery? " + WHERE.format("date"),
        "fourteenth of March",
    ),
    (
        0.7,
        "Parcel 7719 weighs 364 grams and goes to shelf 58.",
        "How many grams does parcel 7719 weigh? " + WHERE.format("number"),
        "364",
    ),
    (
        0.9,
        "The ferry to Varnholm leaves from pier 26 at noon.",
        "From which pier does the ferry to Varnholm leave? " + WHERE.format("number of the pier"),
        "26",
    ),
)


def convert(source, folder):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)
    loaded = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.bfloat16)
    # It remembers that it was quantised, and refuses to be saved: a fresh one does not.
    config = loaded.config
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(folder)


def requantise(source, target):
    """The same GGUF with every quantised matrix as Q8_0, which OpenVINO GenAI reads."""
    import gguf
    from gguf import quants

    reader = gguf.GGUFReader(source)
    name = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, name)
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        value, kind = field.contents(), field.types[0]
        if key == "general.file_type":
            value = int(gguf.LlamaFileType.MOSTLY_Q8_0)
        writer.add_key_value(key, value, kind, field.types[-1] if len(field.types) > 1 else None)
    for tensor in reader.tensors:
        values = quants.dequantize(tensor.data, tensor.tensor_type)
        if len(tensor.shape) == 2 and values.shape[-1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            packed = quants.quantize(values, kind)
            writer.add_tensor(tensor.name, packed, raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, values.astype("float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make_prompt(folder, text, wanted, needle):
    """Text cut so that the whole prompt has `wanted` tokens or a few less, with a fact in it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    depth, fact, question, answer = NEEDLES[needle]

    def ids_of(part):
        return tokenizer(part, add_special_tokens=False)["input_ids"]

    before, after = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    fixed = len(ids_of(before)) + len(ids_of(after)) + len(ids_of(fact + question)) + 8
    words = text.split(" ")

    def haystack(count):
        at = int(depth * count)
        return " ".join(words[:at]) + f"\n\n{fact}\n\n" + " ".join(words[at:count])

    low, high = 0, min(len(words), wanted)
    while low < high:  # the most words that fit
        middle = (low + high + 1) // 2
        if len(ids_of(haystack(middle))) + fixed <= wanted:
            low = middle
        else:
            high = middle - 1
    if low == len(words):
        raise SystemExit(f"prepare.py: the text is too short for {wanted} tokens")
    body = haystack(low)
    ids = ids_of(before) + ids_of(f"{body}\n\n{question}") + ids_of(after)
    return {"text": body, "question": question, "expected": answer, "ids": ids}


def main():
    if len(sys.argv) == 4 and sys.argv[1] == "model":
        source, folder = pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
        folder.mkdir(parents=True, exist_ok=True)
        convert(source, folder)
        requantise(source, folder / "q8_0.gguf")
    elif len(sys.argv) == 7 and sys.argv[1] == "prompt":
        text = pathlib.Path(sys.argv[3]).read_text(errors="replace")
        prompt = make_prompt(sys.argv[2], text, int(sys.argv[4]), int(sys.argv[5]))
        pathlib.Path(sys.argv[6]).write_text(json.dumps(prompt))
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
