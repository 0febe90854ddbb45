"""`diffaccel info`: a model's denoisers and sites, a method's plan and the memory it will take; loads no weights."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from diffaccel.commands import Answer, UsageError, check_json, show_progress, silence_libraries
from diffaccel.commands.method import computed_steps, method_of
from diffaccel.commands.text import render, table
from diffaccel.methods import Method, written_out
from diffaccel.methods.first_block import FirstBlock, NotPlannedError
from diffaccel.pipelines.source import call_defaults, locate, read_json
from diffaccel.report import format_bytes

if TYPE_CHECKING:
    from torch import nn

    from diffaccel.blueprint import Shape

DEFAULT_METHOD = "taylorseer"


def run(args: argparse.Namespace) -> Answer:
    """Carry out the command.

    Raises:
        UsageError: what was asked for cannot be done.
        OSError: a configuration file cannot be read or fetched.
    """
    method_of(args, "", DEFAULT_METHOD)  # for its errors, before anything is imported
    check_json(args)
    try:
        source = locate(args.model)
    except ValueError as error:
        raise UsageError(str(error)) from error
    silence_libraries(show_progress(args))
    index = read_json(source)
    import torch

    from diffaccel import blueprint
    from diffaccel.pipelines import image

    try:
        kind = image.pipeline_class(index)
        image.check_arguments(kind, [name for name in ("height", "width") if getattr(args, name) is not None])
        networks = blueprint.denoisers(source, index, getattr(torch, args.dtype or "float32"))
    except ValueError as error:
        raise UsageError(str(error)) from error
    method = method_of(args, kind.__name__, DEFAULT_METHOD)
    assert method is not None
    first, defaults = next(iter(networks.values())), call_defaults(source)
    scale = blueprint.latent_scale(source, index)
    height, width = (
        asked or defaults.get(name) or own
        for name, asked, own in zip(
            ("height", "width"), (args.height, args.width), blueprint.default_size(first, scale), strict=True
        )
    )
    samples = args.batch * image.samples_per_picture(kind, first.config, defaults, args.guidance)
    tokens = args.text_tokens or image.text_tokens(kind, defaults)
    shape = blueprint.Shape(samples, height, width, scale, tokens)
    steps = image.denoising_steps(kind, defaults, args.steps)
    data: dict[str, Any] = {"model": args.model, "pipeline": kind.__name__, "batch": args.batch, "samples": samples}
    data |= {"height": height, "width": width, "text_tokens": tokens, "dtype": args.dtype or "float32"}
    data |= {"networks": {name: describe(network, method, shape) for name, network in networks.items()}}
    data |= plan_data(first, method, steps)
    return Answer(as_text(data, names=args.sites), data)


def describe(network: nn.Module, method: Method, shape: Shape) -> dict[str, Any]:
    """Class, size, and for each level the sites of a denoiser and the memory `method` would take there.

    `unpredicted` says why there is no memory, and is None if there is.
    """
    from diffaccel import blueprint
    from diffaccel.memory import footprint
    from diffaccel.sites import LEVELS, sites

    parameters = list(network.parameters())
    try:
        inputs, unpredicted = blueprint.inputs(network, shape), None
    except NotImplementedError as error:
        inputs, unpredicted = {}, str(error)
    levels: dict[str, Any] = {}
    for level in dict.fromkeys((*LEVELS, method.level)):
        try:
            found = sites(network, level)
        except ValueError:
            levels[level] = {"sites": []}
            continue
        levels[level] = {"sites": [site.name for site in found]}
        if unpredicted is None:
            one = footprint(network, inputs, level)
            levels[level] |= {"features": one.features, "bytes_per_anchor": one.bytes}
            levels[level] |= {"bytes": one.bytes * held_anchors(method)}
    return {
        "class": type(network).__name__,
        "parameters": sum(p.numel() for p in parameters),
        "weight_bytes": sum(p.numel() * p.element_size() for p in parameters),
        "unpredicted": unpredicted,
        "levels": levels,
    }


def plan_data(network: nn.Module, method: Method, steps: int) -> dict[str, Any]:
    """The plan of a run of `steps` steps, as text and as data.

    Raises:
        UsageError: the network has no site at the method's level.
    """
    from diffaccel.gate import ends
    from diffaccel.sites import sites

    result = {"method": written_out(method), "level": method.level, "order": method.order, "steps": steps}
    result |= {"anchors": held_anchors(method)}
    try:
        found = ends(network) if isinstance(method, FirstBlock) else sites(network, method.level)
        plan = method.plan(found, steps)
    except NotPlannedError as error:
        nothing: dict[str, Any] = dict.fromkeys(("plan", "computed", "bound"))
        return result | nothing | {"plan_text": str(error), "chosen": False}
    except ValueError as error:
        raise UsageError(str(error)) from error
    rows = [plan.computed(i) for i in range(len(plan.rows))]
    result |= {"plan": rows, "chosen": getattr(method, "schedule", None) == "best"}
    return result | {"computed": computed_steps(plan), "bound": plan.bound, "plan_text": str(plan)}


def held_anchors(method: Method) -> int:
    """Most features a site keeps; of first_block one may be smaller, what the first block added."""
    return method.order + 1 + isinstance(method, FirstBlock)


def as_text(data: dict[str, Any], names: bool) -> str:
    """The answer for people; `names` lists all sites."""
    lines = [f"{data['pipeline']} {data['model']}"]
    for name, network in data["networks"].items():
        lines += ["", _network(name, network, data)]
        if names:
            for level, entry in network["levels"].items():
                lines += ["", f"{level} sites:", *(f"  {site}" for site in entry["sites"])]
    lines += ["", data["method"], data["plan_text"]]
    if data["chosen"]:
        lines.append("as many steps, but which ones the calibration decides")
    return "\n".join(lines)


def _network(name: str, network: dict[str, Any], data: dict[str, Any]) -> str:
    size = f"{network['parameters'] / 1e6:.1f} M parameters, {format_bytes(network['weight_bytes'])}"
    lines = [f"{name}: {network['class']}, {size} in {data['dtype']}"]
    known, anchors = network["unpredicted"] is None, data["anchors"]
    held = f"{anchors} anchors, order {data['order']}" if anchors > 1 else "1 anchor, order 0"
    found = table("level", "sites", *(("features", "one anchor", held) if known else ()))
    for level, entry in network["levels"].items():
        row = [f"{level}{' *' if level == data['level'] else ''}", str(len(entry["sites"]))]
        if "bytes" in entry:
            row += [str(entry["features"]), format_bytes(entry["bytes_per_anchor"]), format_bytes(entry["bytes"])]
        found.add_row(*row)
    lines.append(render(found))
    lines += [f"  {level}: {span(entry['sites'])}" for level, entry in network["levels"].items() if entry["sites"]]
    lines.append("")
    if known:
        what = f"{data['batch']} picture{'s' * (data['batch'] > 1)} of {data['width']}x{data['height']}"
        pair = ", conditional and unconditional" if data["samples"] > data["batch"] else ""
        lines.append(
            f"* level of the method; memory for {what}, {data['text_tokens']} text tokens, {data['dtype']}{pair}"
        )
    else:
        lines.append(f"* level of the method; memory cannot be predicted: {network['unpredicted']}")
    return "\n".join(lines)


def span(names: list[str]) -> str:
    """The first and the last of some names."""
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
