"""What the UNets of the bundled pipelines have in common before they are trained."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


def zero(layers: Iterable[nn.Module]) -> None:
    """Let layers start at zero, as DDPM does with the last convolution of each residual branch and of the network."""
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The weight matrices of the attention layers; the rest is convolutions, embeddings, biases and norms."""
    return [parameter for name, parameter in model.named_parameters() if parameter.ndim == 2 and ".attentions." in name]
