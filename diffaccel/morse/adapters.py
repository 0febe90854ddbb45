"""LoRA on the body of a Dot, by peft: its matrices are the Dot's own, the layers below them are Dash's."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn


def add_adapters(body: nn.Module, rank: int, without: Collection[str] = ()) -> nn.ModuleDict:
    """Put LoRA of this rank, with scale 1, on every Linear and Conv2d of a body.

    Its weights may be on the meta device; the new ones are not. Each second matrix is zero.

    Args:
        body: changed in place.
        rank: 0 for none.
        without: names of modules to leave alone.

    Returns:
        The new matrices, for each layer `down` and `up`.

    Raises:
        ImportError: peft is not installed.
    """
    if rank == 0:
        return nn.ModuleDict()
    try:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer
    except ImportError as error:
        raise ImportError("a Dot with LoRA needs peft: pip install 'diffaccel[morse]', or rank=0") from error
    names = [
        name
        for name, module in body.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and not f"{name}.".startswith(tuple(f"{n}." for n in without))
    ]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=names), body)
    new = nn.ModuleDict()
    for name, layer in body.named_modules():
        if isinstance(layer, LoraLayer):
            # peft has put them on the device of the layer below.
            pair = nn.ModuleDict({"down": layer.lora_A["default"], "up": layer.lora_B["default"]}).to_empty(
                device="cpu"
            )
            layer.reset_lora_parameters("default", init_lora_weights=True)  # type: ignore[no-untyped-call]
            new[name.replace(".", "-")] = pair
    return new
