# SPDX-License-Identifier: MIT
"""Which layers may drop tokens: the drift of the residual stream, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .setting import Setting


@dataclass(frozen=True)
class Profile:
    """Result of `profile`.

    Attributes:
      layers: the ones chosen, ascending.
      drift: of each layer, mean over the tokens of |h_out - h_in| / |h_in|.
      tokens: of the calibration text that were used.
      delta: the share of the layers that was asked for.
      model: num_layers, num_heads, num_kv_heads, head_dim.
    """

    layers: tuple[int, ...]
    drift: tuple[float, ...]
    tokens: int
    delta: float
    model: dict[str, int] = field(default_factory=dict)

    @property
    def setting(self) -> Setting:
        """The built-in setting in these layers."""
        drift = [round(value, 6) for value in self.drift]
        accuracy = {"drift": drift, "tokens": self.tokens, "delta": self.delta}
        return Setting(layers=self.layers, model=self.model, accuracy=accuracy)

    def save(self, path: str) -> None:
        """Writes `setting` as a file."""
        self.setting.save(path)


def choose_layers(drift: list[float], delta: float, candidates: list[int]) -> tuple[int, ...]:
    """The lower `delta` share of the candidates by drift; never the first or the last layer."""
    if not 0 <= delta <= 1:
        raise ValueError(f"delta: must be in [0, 1], is {delta}")
    inner = [layer for layer in candidates if 0 < layer < len(drift) - 1]
    ranked = sorted(inner, key=lambda layer: (drift[layer], layer))
    return tuple(sorted(ranked[: int(delta * len(candidates))]))


def _layers(model: Any) -> Any:
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    layers = getattr(decoder, "layers", None)
    if layers is None:
        raise ValueError(f"model: {type(model).__name__} has no decoder layers to profile")
    return layers


def measure_drift(
    model: Any, tokens: Any, delta: float, candidates: list[int], numbers: dict[str, int]
) -> Profile:
    """Runs the model once over `tokens` [1, n] and watches what each layer adds."""
    import torch

    layers = _layers(model)
    drift = [0.0] * len(layers)

    def watch(index: int):
        def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            before = (args[0] if args else kwargs["hidden_states"]).float()
            after = (output[0] if isinstance(output, tuple) else output).float()
            share = (after - before).norm(dim=-1) / before.norm(dim=-1).clamp_min(1e-20)
            drift[index] = share.mean().item()

        return hook

    hooks = [
        layer.register_forward_hook(watch(i), with_kwargs=True) for i, layer in enumerate(layers)
    ]
    try:
        with torch.no_grad():
            _layers_forward(model, tokens)
    finally:
        for hook in hooks:
            hook.remove()
    chosen = choose_layers(drift, delta, candidates)
    return Profile(chosen, tuple(drift), int(tokens.shape[1]), delta, numbers)


def _layers_forward(model: Any, tokens: Any) -> None:
    # The decoder alone: logits of every token would cost memory for nothing.
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    decoder(input_ids=tokens, use_cache=False)
