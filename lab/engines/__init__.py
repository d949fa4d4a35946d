# SPDX-License-Identifier: MIT
"""What answers prompts: one interface, three ways, and a peer.

An engine has `subject`, a dict that says what is measured (model, engine, device), `tokenizer`,
`limit`, the model's longest prompt, and `measure(prompt, setting, generate)`, which gives a
Measurement. A setting is a dict in the format "tokensparse setting 1"; dense is {}.

  program       `tokensparse eval`: llama.cpp and this library's CPU path, as users run it
  transformers  the Python package's adapter inside Hugging Face transformers, CPU or GPU
  restated      the method's definition in plain torch operations, and block patterns of other
                methods as masks: what the other two are checked against, and what a GPU runs fast
  openvino      OpenVINO GenAI on the CPU, dense or with its XAttention
"""
import dataclasses


class EngineError(RuntimeError):
    """An engine that cannot start or answer."""


@dataclasses.dataclass(frozen=True)
class Measurement:
    loss: float | None  # mean over the answer's tokens, natural log; None where an engine cannot tell
    exact: float | None  # 1 where every token of the answer is the most probable one
    seconds: float  # to the first token
    pairs: float | None  # query-key pairs computed, share of dense's, mean over the layers
    kept: float | None  # tokens kept, mean over the layers
    text: str | None = None  # what was generated, where asked for
    more: dict = dataclasses.field(default_factory=dict)  # what an engine says besides, see costs()


def costs(steps, seconds, meter):
    """`more` of a Measurement: tokens a second of decoding, and on a GPU the bytes beside the weights,
    at their highest and at the end of the answer."""
    found = {"decode": round(steps / seconds, 3)} if steps else {}
    return {**found, **meter.bytes()}


def sparse_layers(setting, num_layers, windowed=()):
    """The layers that a setting names, of those that attend to the whole prompt: not `windowed`."""
    layers = setting.get("layers", "middle")
    if layers == "none" or not setting:
        return set()
    if layers == "all":
        layers = range(num_layers)
    elif layers == "middle":
        layers = range(1, num_layers - 1)
    for layer in layers:
        if not 0 <= layer < num_layers:
            raise EngineError(f"layers: the model has layers 0 to {num_layers - 1}, got {layer}")
    return set(layers) - set(windowed)
