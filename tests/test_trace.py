"""Are the statistics of a trace those of the features themselves, and is a trace of something else refused?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._pytree import tree_flatten

from diffaccel import accelerate_pipeline
from diffaccel.descriptors import KINDS, descriptors
from diffaccel.forecast import Taylor
from diffaccel.moments import Moments, subset
from diffaccel.recording import recording
from diffaccel.sites import sites
from diffaccel.trace import Trace
from tests import tiny
from tests.test_contract import same, traces
from tests.tiny import FAMILIES, Family

ALL = 10_000  # more tokens than any toy feature has
levels = pytest.mark.parametrize(("family", "level"), tiny.FAMILY_LEVELS.values(), ids=tiny.FAMILY_LEVELS)
families = pytest.mark.parametrize(
    "family", [FAMILIES[name] for name in ("flux", "dit", "sd")], ids=lambda f: f.network
)


def features(family: Family, pipe: Any, level: str, **run: Any) -> dict[tuple[str, int], Tensor]:
    """All features of one run of 8 steps by site and leaf: float64 (steps, samples, dims), branches pooled."""
    caught: dict[tuple[str, int], list[Tensor]] = {}

    def catch(name: str, output: Any) -> None:
        for leaf, tensor in enumerate(tree_flatten(output)[0]):
            rows = tensor.movedim(1, -1) if tensor.ndim == 4 else tensor
            caught.setdefault((name, leaf), []).append(rows.reshape(-1, rows.shape[-1]).double())

    hooks = [
        site.owner.register_forward_hook(lambda _, args, output, name=site.name: catch(name, output))
        for site in sites(family.denoiser(pipe), level)
    ]
    family.run(pipe, **run)
    for hook in hooks:
        hook.remove()
    return {
        key: torch.stack([torch.cat(calls[s * len(calls) // 8 : (s + 1) * len(calls) // 8]) for s in range(8)])
        for key, calls in caught.items()
    }


def record(pipe: Any, family: Family = FAMILIES["flux"], level: str = "model", tokens: int = 64, **run: Any) -> Trace:
    with recording(pipe, level, tokens) as recorder:
        family.run(pipe, **run)
    return recorder.trace()


def by_leaf(trace: Trace) -> dict[tuple[str, int], Moments]:
    (network,) = trace.networks.values()
    return {(site, moments.leaf): moments for site, leaves in network.items() for moments in leaves}


def close(found: Tensor, expected: Tensor, rtol: float = 1e-5) -> bool:
    return bool((found - expected).abs().max() <= rtol * expected.abs().max())


@levels
@pytest.mark.parametrize("guidance", [False, True], ids=["plain", "guided"])
def test_statistics_are_those_of_all_features(family: Family, level: str, guidance: bool) -> None:
    pipe = family.make()
    expected = features(family, pipe, level, guidance=guidance, batch=2)
    trace = record(pipe, family, level, ALL, guidance=guidance, batch=2)
    found = by_leaf(trace)
    assert found.keys() == expected.keys()
    assert list(trace.networks[family.network]) == [site.name for site in sites(family.denoiser(pipe), level)]
    assert (trace.steps, trace.level, trace.runs) == (8, level, 1)
    for key, x in expected.items():
        moments = found[key]
        assert moments.samples == x.shape[1]
        assert moments.gram.dtype == torch.float32
        assert close(moments.gram, torch.einsum("snd,tnd->dst", x, x) / x.shape[1])
        assert close(moments.power([2, 5]), x[[2, 5]].square().mean((0, 1)))
        # TaylorSeer's third order, anchors 5, 4, 2, 0 for step 7; and weights that do not sum to 1.
        for weights in (Taylor(3).weights([5.0, 4.0, 2.0, 0.0], 7.0), [0.5, 0.1, -2.0, 1.0]):
            forecast = torch.einsum("a,and->nd", torch.tensor(weights, dtype=torch.float64), x[[5, 4, 2, 0]])
            assert close(moments.error(weights, [5, 4, 2, 0], 7), (forecast - x[7]).square().mean(0))
        for kind, values in zip(KINDS, moments.descriptors[0], strict=True):
            assert close(values, descriptors(x)[kind], 1e-3 if kind == "spectral_flatness" else 1e-5)


def test_axis_says_where_the_dimensions_are() -> None:
    assert {m.axis for m in by_leaf(record(tiny.stable_diffusion(), FAMILIES["sd"])).values()} == {1}
    assert {m.axis for m in by_leaf(record(tiny.flux())).values()} == {-1}


def test_weights_by_dimension() -> None:
    x = torch.randn(6, 40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moments = Moments.of(x, 0, -1, tuple(range(6)))
    rows = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 0.5]])
    together = moments.error(rows, [3, 1], 4)
    assert close(together, (x[4] - rows[0] * x[3] - rows[1] * x[1]).square().mean(0))
    for d in range(3):
        assert together[d] == moments.error(rows[:, d], [3, 1], 4)[d]


def test_small_errors_of_large_features_are_exact() -> None:
    """A feature that hardly moves about a value a thousand times as large: squares in float32 alone would not do."""
    generator = torch.Generator().manual_seed(0)
    x = 1000 * torch.randn(1, 50, 4, generator=generator).double() + torch.randn(8, 50, 4, generator=generator).double()
    x += torch.linspace(0, 30, 8).view(8, 1, 1)
    moments = Moments.of(x, 0, -1, tuple(range(8)))
    expected = (x[6] - 2 * x[5] + x[4]).square().mean(0)
    assert torch.allclose(moments.error([2.0, -1.0], [5, 4], 6), expected, rtol=1e-4)
    v = torch.tensor([1.0, -2.0, 1.0])
    naive = torch.einsum("s,dst,t->d", v, moments.gram[:, 4:7, 4:7].flip(1, 2), v)
    assert not torch.allclose(naive.double(), expected, rtol=1e-2)


def test_runs_add_up_each_token_alike() -> None:
    family, pipe = FAMILIES["flux"], tiny.flux()
    runs: list[dict[str, Any]] = [{"seed": 1}, {"seed": 2, "batch": 3}, {"seed": 3, "guidance": True}]
    with recording(pipe, "block", ALL) as recorder:
        for run in runs:
            family.run(pipe, **run)
    trace = recorder.trace()
    parts = [features(family, pipe, "block", **run) for run in runs]
    assert trace.runs == 3
    for key, moments in by_leaf(trace).items():
        x = torch.cat([part[key] for part in parts], 1)
        assert moments.samples == x.shape[1]
        assert close(moments.gram, torch.einsum("snd,tnd->dst", x, x) / x.shape[1])
        assert moments.descriptors.shape == (3, len(KINDS), 32)
        for row, part in zip(moments.descriptors, parts, strict=True):
            assert close(row[0], descriptors(part[key])["first_difference"])


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 7, 5), (2, 4, 5)),
        ((2, 3, 5), (2, 3, 5)),
        ((2, 5), (2, 1, 5)),
        ((5,), (1, 1, 5)),
        ((2, 5, 3, 6), (2, 4, 5)),
        ((2, 5, 2, 3, 6), (2, 4, 5)),
    ],
)
def test_subset_is_bounded_and_a_copy(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    tensor = torch.randn(shape)
    part = subset(tensor, 4)
    assert part.shape == expected
    assert set(part.flatten().tolist()) <= set(tensor.flatten().tolist())
    assert part.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()


def test_subset_is_evenly_spaced_and_meets_all_columns() -> None:
    places = torch.arange(32 * 32.0)
    tokens = subset(places.view(1, -1, 1), 32).flatten()
    assert (tokens[0], tokens[-1]) == (0, 1023)
    assert tokens.diff().unique().tolist() == [33]
    picture = torch.stack([places, -places]).view(1, 2, 32, 32)
    assert torch.equal(subset(picture, 32)[0], torch.stack([tokens, -tokens], 1))
    assert subset(places.view(1, -1, 1), 1).item() == 512


@families
def test_few_tokens_are_read_of_each_sample(family: Family) -> None:
    pipe = family.make()
    network = family.denoiser(pipe)
    seen: list[int] = []
    with recording(pipe, "sublayer", tokens=5) as recorder:
        track = recorder._tracks[family.network]

        def held(*_: Any) -> None:
            leaves = [kept for series in track._series.values() for kept in series.values()]
            seen.append(sum(part.numel() for kept in leaves for part in kept.values()))

        handle = network.register_forward_hook(held)
        family.run(pipe, batch=2)
        handle.remove()
        held()
    moments = by_leaf(recorder.trace()).values()
    assert all(m.samples == 2 * 5 for m in moments)
    assert seen == [(s + 1) * 2 * 5 * sum(m.dims for m in moments) for s in range(8)] + [0]


@levels
def test_the_pipeline_computes_the_same_and_is_left_as_it_was(family: Family, level: str) -> None:
    pipe = family.make()
    expected = family.run(pipe)
    before = traces(pipe, family.denoiser(pipe))
    with recording(pipe, level):
        assert torch.equal(family.run(pipe), expected)
        assert not same(before, traces(pipe, family.denoiser(pipe)))
    assert same(before, traces(pipe, family.denoiser(pipe)))
    with pytest.raises(KeyboardInterrupt), recording(pipe, level):
        raise KeyboardInterrupt
    assert same(before, traces(pipe, family.denoiser(pipe)))


def cancel(pipe: Any, step: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    if step == 4:
        raise KeyboardInterrupt
    return kwargs


@pytest.mark.parametrize("where", ["between steps", "inside a block", "at the last step"])
def test_a_cancelled_run_leaves_nothing(where: str) -> None:
    pipe = tiny.flux()
    calls = iter(range(1000))
    failing = {"between steps": -1, "inside a block": 4, "at the last step": 7}[where]

    def fail(*_: Any) -> None:
        if next(calls) == failing:
            raise KeyboardInterrupt

    with recording(pipe, "block") as recorder:
        tiny.run_flux(pipe, seed=1)
        handle = pipe.transformer.single_transformer_blocks[0].register_forward_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            tiny.run_flux(pipe, seed=2, **({"callback_on_step_end": cancel} if failing < 0 else {}))
        handle.remove()
        assert recorder.runs == 1
        tiny.run_flux(pipe, seed=3)
    with recording(pipe, "block") as undisturbed:
        tiny.run_flux(pipe, seed=1)
        tiny.run_flux(pipe, seed=3)
    assert recorder.runs == 2
    assert equal(recorder.trace(), undisturbed.trace())


def test_a_run_that_the_block_cuts_off_does_not_count() -> None:
    pipe = tiny.flux()
    with recording(pipe) as recorder, pytest.raises(KeyboardInterrupt):
        tiny.run_flux(pipe, callback_on_step_end=cancel)
    with pytest.raises(RuntimeError, match="no complete run was recorded"):
        recorder.trace()
    # Nor does it bind the runs that come after it to its number of steps.
    with recording(pipe) as recorder:
        with pytest.raises(KeyboardInterrupt):
            tiny.run_flux(pipe, steps=9, callback_on_step_end=cancel)
        tiny.run_flux(pipe)
    assert equal(recorder.trace(), record(pipe))


def test_another_pipeline_on_the_same_scheduler_is_not_recorded() -> None:
    one, two = tiny.flux(1), tiny.flux(2)
    two.scheduler = one.scheduler
    with recording(one) as recorder:
        tiny.run_flux(two)
        tiny.run_flux(one)
        tiny.run_flux(two)
    assert recorder.runs == 1
    assert equal(recorder.trace(), record(one))


def test_a_cut_off_run_that_another_pipeline_steps_on_does_not_count(caplog: pytest.LogCaptureFixture) -> None:
    one, two = tiny.flux(1), tiny.flux(2)
    two.scheduler = one.scheduler
    with recording(one) as recorder:
        with pytest.raises(KeyboardInterrupt):
            tiny.run_flux(one, guidance=True, callback_on_step_end=cancel)
        tiny.run_flux(two, steps=5)
        assert "no network was called at steps [5, 6, 7]" in caplog.text
        tiny.run_flux(one)
    assert equal(recorder.trace(), record(one))


def test_a_run_in_which_a_call_was_repeated_does_not_count(caplog: pytest.LogCaptureFixture) -> None:
    pipe = tiny.flux()
    calls = iter(range(1000))

    def fail(*_: Any) -> None:
        if next(calls) == 4:
            raise MemoryError

    class Retrying(type(pipe.transformer)):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            try:
                return super().__call__(*args, **kwargs)
            except MemoryError:
                return super().__call__(*args, **kwargs)

    pipe.transformer.__class__ = Retrying
    pipe.transformer.single_transformer_blocks[0].register_forward_hook(fail)
    with recording(pipe) as recorder:
        tiny.run_flux(pipe)
        assert recorder.runs == 0
        tiny.run_flux(pipe)
    assert equal(recorder.trace(), record(pipe))


def test_solvers_that_visit_a_time_twice_have_more_steps() -> None:
    pipe = tiny.stable_diffusion()
    pipe.scheduler = HeunDiscreteScheduler()
    trace = record(pipe, FAMILIES["sd"], steps=8)
    assert trace.steps == 15
    trace.check(pipe, 15, "model")


def test_features_that_are_not_finite_are_refused() -> None:
    pipe = tiny.flux()
    pipe.transformer.transformer_blocks[0].ff.net[2].bias.data[3] = float("inf")
    with recording(pipe, "block") as recorder:
        with pytest.raises(ValueError, match=r"FluxTransformer2DModel, transformer_blocks\.0: .*not finite"):
            tiny.run_flux(pipe)
        assert recorder.runs == 0


def test_runs_too_short_for_differences_are_refused_before_they_compute() -> None:
    pipe = tiny.flux()
    pipe.transformer.register_forward_hook(lambda *_: pytest.fail("it computed"))
    with recording(pipe), pytest.raises(ValueError, match=r"a run of 3 steps is too short .* at least 4"):
        tiny.run_flux(pipe, steps=3)


def test_guidance_switched_in_mid_run_is_refused() -> None:
    pipe = tiny.stable_diffusion()

    def switch(pipe: Any, step: int, t: Any, kwargs: dict[str, Tensor]) -> dict[str, Tensor]:
        pipe._guidance_scale = 1.0
        kwargs["prompt_embeds"] = kwargs["prompt_embeds"][-1:]
        return kwargs

    more = {"callback_on_step_end": switch, "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}
    with recording(pipe), pytest.raises(RuntimeError, match="its guidance branches at different steps"):
        tiny.run_unet(pipe, guidance=True, **more)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda pipe: recording(pipe, tokens=0), ValueError, "tokens must be at least 1"),
        (lambda pipe: recording(pipe, level="layer"), ValueError, "unknown level 'layer'"),
        (lambda pipe: recording(pipe.transformer), TypeError, "needs a scheduler and one of transformer"),
        (lambda pipe: recording(accelerate_pipeline(pipe)), ValueError, r"already accelerated .*remove\(\)"),
    ],
)
def test_what_cannot_be_recorded_is_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message), call(tiny.flux()):
        pass


def test_runs_that_differ_from_the_first_are_refused_before_they_compute() -> None:
    pipe = tiny.flux()
    with recording(pipe) as recorder:
        tiny.run_flux(pipe)
        with pytest.raises(ValueError, match=r"another number of steps \(8, now 9\)"):
            tiny.run_flux(pipe, steps=9)
        pipe.transformer.proj_out.weight.data.mul_(2)
        with pytest.raises(ValueError, match="another weights"):
            tiny.run_flux(pipe)
        pipe.transformer.proj_out.weight.data.div_(2)
        accelerate_pipeline(pipe)
        with pytest.raises(ValueError, match="already accelerated"):
            tiny.run_flux(pipe)
        pipe.acceleration.remove()
        assert recorder.runs == 1
        tiny.run_flux(pipe)
    assert recorder.runs == 2


def equal(one: Trace, other: Trace) -> bool:
    """Whether two traces hold the same, to the last bit."""
    tensors, others = one._tensors(), other._tensors()
    return (
        one.fingerprints == other.fingerprints
        and (one.runs, one.tokens) == (other.runs, other.tokens)
        and list(tensors) == list(others)
        and all(torch.equal(tensor, others[key]) for key, tensor in tensors.items())
        and [(m.leaf, m.axis, m.steps, m.samples) for m in by_leaf(one).values()]
        == [(m.leaf, m.axis, m.steps, m.samples) for m in by_leaf(other).values()]
    )


@families
def test_file_gives_back_every_bit(family: Family, tmp_path: Path) -> None:
    pipe = family.make()
    trace = record(pipe, family, "sublayer", 3)
    path = tmp_path / "new" / "toy.safetensors"
    trace.save(path)
    loaded = Trace.load(path)
    assert equal(loaded, trace)
    loaded.check(pipe, 8, "sublayer")
    assert list(loaded.networks[family.network]) == list(trace.networks[family.network])  # in order of execution
    assert [file.name for file in tmp_path.rglob("*")] == ["new", "toy.safetensors"]
    assert trace.bytes < path.stat().st_size < trace.bytes + 2**20


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trace") / "flux.safetensors"
    record(tiny.flux()).save(path)
    return path


def test_damaged_files_are_refused(saved: Path, tmp_path: Path) -> None:
    whole, tensors = saved.read_bytes(), load_file(saved)
    with safe_open(saved, "pt") as file:
        header = file.metadata()
    damaged = tmp_path / "damaged.safetensors"
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        damaged.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"damaged\.safetensors is no whole trace .*diffaccel calibrate"):
            Trace.load(damaged)
    first = next(key for key in tensors if key.endswith("cross"))
    for changed, metadata in [
        (tensors, {}),
        (tensors, {"trace": "{}"}),
        (tensors, {"trace": "[1]"}),
        (tensors, {"trace": header["trace"].replace('"format": 1', '"format": 99')}),
        ({key: value for key, value in tensors.items() if key != first}, header),
        (tensors | {first: tensors[first][:-1].contiguous()}, header),
    ]:
        save_file(changed, damaged, metadata)
        with pytest.raises(ValueError, match=r"damaged\.safetensors is no whole trace .*diffaccel calibrate"):
            Trace.load(damaged)
    with pytest.raises(FileNotFoundError, match="no trace at"):
        Trace.load(tmp_path / "none.safetensors")


def test_failed_save_leaves_nothing_behind(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "flux.safetensors"
    path.mkdir()  # what was written cannot take its place
    with pytest.raises(OSError, match=r"flux\.safetensors"):
        Trace.load(saved).save(path)
    assert list(tmp_path.rglob("*")) == [path]


def test_a_trace_of_something_else_is_refused(saved: Path) -> None:
    trace = Trace.load(saved)
    trace.check(tiny.flux(), 8, "model")
    trace.check(tiny.flux(transformer=tiny.flux_transformer().bfloat16()), 8, "model")

    def scheduled(scheduler: Any) -> Any:
        pipe = tiny.flux()
        pipe.scheduler = scheduler
        return pipe

    configured = tiny.flux_transformer()
    configured.register_to_config(patch_size=2)
    biased = tiny.flux_transformer()
    biased.proj_out.bias.data[:] += 0.5
    partly = tiny.flux_transformer()
    partly.proj_out.weight.data[8:] *= 2
    adapted = tiny.flux_transformer()
    adapted.register_parameter("adapter", torch.nn.Parameter(torch.zeros(0)))
    static = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=False)
    for pipe, steps, level, message in [
        (tiny.flux(), 9, "model", r"another number of steps \(8, now 9\).*diffaccel calibrate"),
        (tiny.flux(), 8, "block", r"another level of sites \(model, now block\)"),
        (tiny.flux(seed=1), 8, "model", r"another weights"),
        (tiny.flux(transformer=biased), 8, "model", r"another weights"),
        (tiny.flux(transformer=partly), 8, "model", r"another weights"),
        (tiny.flux(transformer=adapted), 8, "model", r"another weights"),
        (tiny.flux(transformer=configured), 8, "model", r"another network config"),
        (scheduled(DDIMScheduler()), 8, "model", r"another scheduler class \(FlowMatchEuler.*now DDIMScheduler\)"),
        (scheduled(static), 8, "model", r"another scheduler config"),
        (tiny.dit(), 8, "model", r"another network class \(FluxTransformer2DModel, now DiTTransformer2DModel\)"),
        (tiny.stable_diffusion(), 8, "model", r"is of transformer, StableDiffusionPipeline has unet"),
    ]:
        with pytest.raises(ValueError, match=message):
            trace.check(pipe, steps, level)


def test_every_weight_counts() -> None:
    """A change of all values of any one weight is noticed, biases and scales too."""
    pipe = tiny.flux()
    trace = record(pipe)
    for parameter in pipe.transformer.parameters():
        parameter.data.add_(0.5)
        with pytest.raises(ValueError, match="another weights"):
            trace.check(pipe, 8, "model")
        parameter.data.sub_(0.5)


def test_questions_without_an_answer_are_refused() -> None:
    (moments, _) = by_leaf(record(tiny.flux())).values()
    with pytest.raises(ValueError, match=r"no moments of steps \[8\]"):
        moments.error([1.0], [0], 8)
    with pytest.raises(ValueError, match=r"2 anchors and 32 dimensions need weights of shape \(2,\) or \(2, 32\)"):
        moments.error([1.0], [1, 0], 2)
    with pytest.raises(ValueError, match="at least one step"):
        moments.power([])
    with pytest.raises(ValueError, match="runs differ"):
        moments.merged(replace(moments, steps=tuple(range(1, 9))))


def wan() -> WanPipeline:
    """A pipeline of two denoisers: one for the noisy steps, one for the rest."""
    torch.manual_seed(0)
    size = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 16, "out_channels": 16, "text_dim": 24}
    networks = [
        tiny.randomize(WanTransformer3DModel(**size, freq_dim=16, ffn_dim=32, num_layers=2, rope_max_seq_len=32), seed)
        for seed in (0, 1)
    ]
    vae = AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = WanPipeline(None, None, vae.eval(), scheduler, *networks, boundary_ratio=0.875)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run_wan(pipe: WanPipeline, **more: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    texts = torch.randn(2, 1, 6, 24, generator=generator)
    more |= {"prompt_embeds": texts[0], "negative_prompt_embeds": texts[1], "generator": generator}
    pipe(height=32, width=32, num_frames=5, num_inference_steps=12, output_type="latent", **more)


def test_two_denoisers_share_the_steps() -> None:
    pipe = wan()
    with recording(pipe, "model", 7) as recorder:
        run_wan(pipe)
    trace = recorder.trace()
    noisy, rest = ([m.steps for leaves in of.values() for m in leaves] for of in trace.networks.values())
    assert list(trace.networks) == ["transformer", "transformer_2"]
    assert noisy[0] + rest[0] == tuple(range(12))
    assert min(len(noisy[0]), len(rest[0])) >= 4
    (moments,) = next(iter(trace.networks["transformer_2"].values()))
    assert moments.samples == 2 * 7
    assert moments.error([1.0], [11], 11).abs().max() == 0
    with pytest.raises(ValueError, match=r"no moments of steps \[0\]: recorded were \d+ to 11"):
        moments.error([1.0], [0], 11)
    trace.check(pipe, 12, "model")


def test_a_branch_that_ends_in_mid_run_is_refused() -> None:
    pipe = wan()

    def switch(pipe: Any, step: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == 9:
            pipe._guidance_scale = 1.0
        return kwargs

    with recording(pipe) as recorder, pytest.raises(RuntimeError, match="guidance branches at different steps"):
        run_wan(pipe, callback_on_step_end=switch)
    assert recorder.runs == 0
