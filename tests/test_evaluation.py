"""Does an evaluation draw, time, keep and measure what it says, and go on where it was stopped?"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from diffaccel.evaluation import field as fields
from diffaccel.evaluation import run, timing
from diffaccel.evaluation.candidates import Candidate, accelerations
from diffaccel.evaluation.measure import Measured, distributions, gain, measure, picture_estimate
from diffaccel.evaluation.store import AnotherEvaluationError, Store, gather
from diffaccel.evaluation.subject import Drawn, Subject, Work, latents_of
from diffaccel.evaluation.timing import Clock, guess_equal_steps, plain_at_equal_time
from diffaccel.evaluation.tools import Reference, Tools, check_names
from diffaccel.methods.spelling import parse_method
from diffaccel.methods.taylorseer import TaylorSeer
from diffaccel.metrics import statistics
from diffaccel.metrics.extractor import as_bytes, load_extractor
from diffaccel.metrics.folders import find, read
from diffaccel.metrics.speed import Timing
from diffaccel.pipelines import bundled, image

STEPS = 8
SEER = Candidate("TaylorSeer N=3 O=1", "method", STEPS, TaylorSeer(interval=3, order=1))


@pytest.fixture(scope="module")
def subject() -> Subject:
    """The bundled pipeline with six prompts, on one thread."""
    torch.set_num_threads(1)
    pipe = image.load()
    pipe.set_progress_bar_config(disable=True)
    return Subject(pipe, bundled.prompts()[:6], seed=5, steps=STEPS, arguments=bundled.call_defaults())


# What a method is called


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("taylorseer", ("taylorseer", {})),
        ("taylorseer:interval=5,order=2", ("taylorseer", {"interval": 5, "order": 2})),
        (
            "taylorseer: level=block , last=true,schedule=None",
            ("taylorseer", {"level": "block", "last": True, "schedule": None}),
        ),
        ("other:ridge=1e-3", ("other", {"ridge": 0.001})),
    ],
)
def test_a_method_is_written_as_a_name_and_options(text: str, meant: tuple[str, dict[str, Any]]) -> None:
    assert parse_method(text) == meant


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        (["taylorseer:interval"], ValueError, r"'interval' in 'taylorseer:interval' is no option: write them as"),
        (["taylorseer:interval=4,interval=5"], ValueError, "gives interval twice"),
        (["tailorseer"], ValueError, "did you mean 'taylorseer'"),
        (["taylorseer:intervall=4"], TypeError, "did you mean 'interval'"),
        (["taylorseer:interval=0"], ValueError, "interval must be a whole number of at least 1"),
        (["taylorseer", "taylorseer:interval=6,order=1"], ValueError, "means the same as another method"),
    ],
)
def test_methods_that_cannot_be_meant(texts: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        accelerations(texts, "FluxPipeline", 28)


def test_methods_take_the_preset_of_the_pipeline_and_are_named_by_what_was_stated() -> None:
    flux, deep = accelerations(["taylorseer", "taylorseer:order=2,level=sublayer"], "FluxPipeline", 28)
    assert flux.method == TaylorSeer(interval=6, order=1, warmup=3)
    assert [flux.name, deep.name] == ["TaylorSeer N=6 O=1", "TaylorSeer N=6 O=2 level=sublayer"]
    assert accelerations(["taylorseer"], "DiTPipeline", 28)[0].name == "TaylorSeer N=4 O=4"


def test_folders_differ_for_whatever_makes_other_pictures() -> None:
    same_name = Candidate(SEER.name, "method", STEPS, TaylorSeer(interval=3, order=1, warmup=1))
    many = [SEER, same_name, Candidate.full(8), Candidate.full(9), Candidate.fewer(8), Candidate.fewer(9)]
    assert len({candidate.folder for candidate in many}) == len(many)
    assert SEER.folder == Candidate(SEER.name, "method", STEPS, TaylorSeer(interval=3, order=1)).folder


# What is drawn


def test_pictures_do_not_depend_on_the_chunk_and_start_from_the_seed_of_their_row(subject: Subject) -> None:
    whole, part = subject.draw(Candidate.full(3), slice(0, 4)), subject.draw(Candidate.full(3), slice(2, 4))
    torch.testing.assert_close(part.pictures, whole.pictures[2:], atol=1e-4, rtol=0)
    alone = image.pictures(subject.pipe, [subject.prompts[3]], seeds=5 + 3, steps=3)
    torch.testing.assert_close(alone[0], whole.pictures[3], atol=1e-4, rtol=0)


def test_latents_are_those_the_pipeline_returns_and_the_scheduler_is_left_as_it_was(subject: Subject) -> None:
    before = dict(vars(subject.pipe.scheduler))
    drawn = subject.draw(SEER, slice(0, 2))
    assert vars(subject.pipe.scheduler).keys() - {"_step_index"} <= before.keys() | {"timesteps", "sigmas"}
    assert "step" not in vars(subject.pipe.scheduler)
    assert not hasattr(subject.pipe, "acceleration")
    arguments = subject.arguments | {"negative_prompt": [""] * 2, "num_inference_steps": STEPS}
    generators = [torch.Generator().manual_seed(seed) for seed in subject.seeds[:2]]
    with SEER.applied(subject.pipe) as pipe:
        expected = pipe(prompt=subject.prompts[:2], generator=generators, output_type="latent", **arguments).images
    assert torch.equal(drawn.latents, expected)


def test_a_failing_run_leaves_the_pipeline_as_it_was(subject: Subject) -> None:
    with pytest.raises(RuntimeError, match="stop"), latents_of(subject.pipe), SEER.applied(subject.pipe):
        raise RuntimeError("stop")
    assert "step" not in vars(subject.pipe.scheduler)
    assert not hasattr(subject.pipe, "acceleration")


def test_work_is_what_the_plan_computes(subject: Subject) -> None:
    assert subject.work(Candidate.full(8)) == Work(8, 8, 1, None)
    assert subject.work(Candidate.fewer(4)) == Work(4, 4, 2, None)
    work = subject.work(SEER)  # computes steps 0, 1, 2 and 5 of 8
    assert (work.steps, work.computed, work.bound) == (8, 4, 2)
    assert (work.cache_bytes or 0) > 0
    assert subject.plain_steps(work) == 4
    assert subject.plain_steps(Work(8, 3.1, 8 / 3.1, 0)) == 4, "a plain run gets the step that was begun"


# What is timed


def test_equal_steps_are_read_off_a_line_through_plain_runs() -> None:
    plain = {n: 0.5 + 0.1 * n for n in (4, 10, 28)}
    assert guess_equal_steps(plain, 1.2, most=27) == 7
    assert guess_equal_steps(plain, 1.29, most=27) == 7
    assert guess_equal_steps(plain, 0.1, most=27) == 1
    assert guess_equal_steps(plain, 9.0, most=27) == 27
    assert guess_equal_steps({4: 1.0, 28: 1.0}, 1.0, most=27) == 27


def test_plain_run_of_equal_time_is_the_longest_that_does_not_take_longer() -> None:
    times = {
        name: Timing([1.0, 2 * second], [second, second])
        for name, second in {"full": 1, "method": 0.5, "4 steps": 0.3, "5 steps": 0.5, "6 steps": 0.51}.items()
    }
    plain = {f"{n} steps": n for n in (4, 5, 6)}
    assert plain_at_equal_time(Clock(cpu=True), times, plain, "full", "method", least=4) == "5 steps"
    assert plain_at_equal_time(Clock(cpu=True), times, {"6 steps": 6}, "full", "method", least=4) is None
    assert plain_at_equal_time(Clock(cpu=True), times, plain, "full", "method", least=6) == "6 steps", "it is noise"


def test_speed_up_is_the_median_of_rounds_with_its_range() -> None:
    data = timing.as_data(Clock(cpu=True), Timing([9, 9, 9], [1, 2, 4]), Timing([9, 9, 9], [4, 6, 4]))
    assert (data["speedup"], data["speedup_low"], data["speedup_high"]) == (3, 1, 4)
    assert (data["median"], data["low"], data["high"], data["clock"]) == (2, 1, 4, "processor time")
    assert timing.as_data(Clock(cpu=False), Timing([1, 1], [9, 9]), Timing([2, 2], [9, 9]))["speedup"] == 2


def test_every_method_gets_plain_runs_of_equal_steps_and_equal_time(subject: Subject) -> None:
    field = fields.find_field(subject, [SEER], extra=[2], rows=slice(0, 2), rounds=3, progress=False)
    assert [candidate.kind for candidate in field.candidates[:2]] == ["full", "method"]
    assert {candidate.name for candidate in field.candidates[2:]} == {"2 steps"} | {pair.plain for pair in field.equal}
    assert fields.Equal("4 steps", SEER.name, "steps") in field.equal
    by_time = [pair.plain for pair in field.equal if pair.by == "time"]
    clock = Clock(cpu=True)
    full = field.times["full run, 8 steps"]
    for name in by_time:
        faster = field.times[name].ratio(full, clock.cpu) <= field.times[SEER.name].ratio(full, clock.cpu)
        assert faster or name == "4 steps"
    assert field.work.keys() == {candidate.name for candidate in field.candidates}


# What is kept


def drawn(count: int, seed: int = 0, side: int = 8) -> Drawn:
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.rand(count, 3, side, side, generator=generator).half().float()
    return Drawn(pictures, torch.randn(count, 4, 2, 2, generator=generator))


def test_store_gives_back_what_it_got(tmp_path: Path) -> None:
    store = Store(tmp_path / "run", {"seed": 0}, rows=5, chunk=2)
    assert store.chunks() == [slice(0, 2), slice(2, 4), slice(4, 5)]
    parts = [drawn(rows.stop - rows.start, rows.start) for rows in store.chunks()]
    for rows, part in zip(store.chunks(), parts, strict=True):
        store.save(SEER, rows, part)
    for (_, found), part in zip(store.each(SEER), parts, strict=True):
        assert torch.equal(found.pictures, part.pictures)
        assert torch.equal(found.latents, part.latents)
    assert torch.equal(gather(store, SEER, 3), torch.cat([parts[0].pictures, parts[1].pictures[:1]]))
    assert store.missing(Candidate.full(STEPS)) == store.chunks()


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize("harm", [Path.unlink, damage, lambda path: path.write_bytes(b"")])
def test_half_written_parts_are_drawn_again(tmp_path: Path, harm: Callable[[Path], object]) -> None:
    store = Store(tmp_path, {"seed": 0}, rows=4, chunk=2)
    for rows in store.chunks():
        store.save(SEER, rows, drawn(2))
    harm(next((tmp_path / "parts" / SEER.folder).glob("00002*")))
    assert store.missing(SEER) == [slice(2, 4)]
    with pytest.raises(FileNotFoundError, match="missing or damaged: run the evaluation again"):
        list(store.each(SEER))


def test_what_was_being_written_when_a_run_was_killed_is_cleared_away(tmp_path: Path) -> None:
    store = Store(tmp_path, {"seed": 0}, rows=4, chunk=2)
    store.save(SEER, slice(0, 2), drawn(2))
    leftover = tmp_path / "parts" / SEER.folder / ".00002-00004.safetensors.part"
    leftover.write_bytes(b"half")
    assert Store(tmp_path, {"seed": 0}, rows=4, chunk=2).missing(SEER) == [slice(2, 4)]
    assert not leftover.exists()


def test_a_folder_of_another_evaluation_is_left_alone_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    store = Store(tmp_path, {"seed": 0, "steps": 8}, rows=2, chunk=2)
    store.save(SEER, slice(0, 2), drawn(2))
    with pytest.raises(AnotherEvaluationError, match=r"another steps: give another folder with -o, or --fresh"):
        Store(tmp_path, {"seed": 0, "steps": 9}, rows=2, chunk=2)
    assert store.missing(SEER) == []
    assert Store(tmp_path, {"seed": 0, "steps": 9}, rows=2, chunk=2, fresh=True).missing(SEER) == [slice(0, 2)]


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    for fresh in (False, True):
        with pytest.raises(FileExistsError, match="is not empty and holds no evaluation"):
            Store(tmp_path, {"seed": 0}, rows=2, chunk=2, fresh=fresh)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_saved_pictures_can_be_read_and_paired_again(tmp_path: Path) -> None:
    store = Store(tmp_path, {"seed": 0}, rows=3, chunk=2)
    for rows in store.chunks():
        store.save(SEER, rows, drawn(rows.stop - rows.start, rows.start))
    folder = find(store.save_images(SEER, ["a", "b", "c"], [7, 8, 9]))
    assert [(one.id, one.prompt, one.seed) for one in folder.pictures] == [
        ("00000", "a", 7),
        ("00001", "b", 8),
        ("00002", "c", 9),
    ]
    torch.testing.assert_close(read(folder.files), gather(store, SEER, 3), atol=0.5 / 255 + 1e-3, rtol=0)


def test_a_killed_run_draws_only_what_is_missing_and_ends_with_the_same_numbers(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = Tools(["psnr", "latent", "exact"])
    candidates = [Candidate.full(STEPS), SEER]
    times = {candidate.name: Timing([1.0], [1.0]) for candidate in candidates}
    field = fields.Field(candidates, {c.name: subject.work(c) for c in candidates}, times, [])

    def numbers(folder: Path, stop_after: int | None) -> tuple[Any, int]:
        calls, draw = 0, Subject.draw

        def counted(self: Subject, candidate: Candidate, rows: slice) -> Drawn:
            nonlocal calls
            if calls == stop_after:
                raise KeyboardInterrupt
            calls += 1
            return draw(self, candidate, rows)

        with monkeypatch.context() as patch:
            patch.setattr(Subject, "draw", counted)
            store = Store(folder, {"seed": 5}, rows=6, chunk=2)
            run.generate(subject, store, field, progress=False)
        measured = run.measure_all(subject, store, field, tools, progress=False)
        return run.result(subject, field, tools, measured, progress=False)["candidates"], calls

    expected, calls = numbers(tmp_path / "whole", None)
    assert calls == 6
    with pytest.raises(KeyboardInterrupt):
        numbers(tmp_path / "killed", 4)
    found, calls = numbers(tmp_path / "killed", None)
    assert calls == 2
    assert found == expected
    json.dumps(found, allow_nan=False)


def test_times_are_recalled_for_the_same_methods_only(subject: Subject, tmp_path: Path) -> None:
    store = Store(tmp_path, {"seed": 0}, rows=2, chunk=2)
    candidates = [Candidate.full(STEPS), SEER, Candidate.fewer(4)]
    work = {candidate.name: subject.work(candidate) for candidate in candidates}
    times = {candidate.name: Timing([1.0, 2.0], [0.5, 0.25]) for candidate in candidates}
    field = fields.Field(candidates, work, times, [fields.Equal("4 steps", SEER.name, "steps")])
    fields.remember_field(store, {"rounds": 2}, field)
    assert fields.recalled_field(store, {"rounds": 2}, [SEER], STEPS) == field
    assert fields.recalled_field(store, {"rounds": 3}, [SEER], STEPS) is None


# What is measured


def test_a_run_equals_itself() -> None:
    one = drawn(4)
    values = measure(Tools(["psnr", "latent", "exact"]), [(one, one, None)]).values
    assert picture_estimate("psnr", values["psnr"]) == {
        "value": None,
        "low": None,
        "high": None,
        "n": 4,
        "values": [None] * 4,
        "identical": 4,
    }
    assert picture_estimate("latent", values["latent"])["value"] == 0
    assert picture_estimate("exact", values["exact"])["value"] == 100
    assert gain("psnr", values["psnr"], values["psnr"])["value"] is None


def test_identical_pictures_are_counted_and_left_out_of_the_mean() -> None:
    found = picture_estimate("psnr", torch.tensor([20.0, math.inf, 30.0, 40.0]))
    assert (found["value"], found["identical"], found["n"]) == (30, 1, 4)
    assert found["values"] == [20, None, 30, 40]


def test_measures_of_a_known_difference() -> None:
    full = Drawn(torch.full((2, 3, 8, 8), 0.5), torch.ones(2, 4))
    other = Drawn(full.pictures + torch.tensor([0.1, 0.01]).view(2, 1, 1, 1), full.latents * 1.25)
    values = measure(Tools(["psnr", "latent", "exact"]), [(other, full, None)]).values
    assert values["psnr"].tolist() == pytest.approx([20, 40], abs=1e-4)
    assert values["latent"].tolist() == [0.25, 0.25]
    assert values["exact"].tolist() == [0, 0]
    assert gain("psnr", values["psnr"], values["psnr"] - torch.tensor([1.0, 3.0]))["value"] == pytest.approx(2)
    assert gain("caption", torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 0.0, 1.0]))["value"] == 25


def features_of(tools: Tools, seed: int, count: int = 24) -> Measured:
    return measure(tools, [(drawn(count, seed, side=32), None, None)])


def test_distances_of_a_set_to_itself_and_to_others() -> None:
    extractor = load_extractor("fd_digits")
    tools = Tools(["fid", "precision", "recall"], extractor)
    full, other = features_of(tools, 0), features_of(tools, 1)
    assert distributions(tools, full, full)["fid"]["value"] is None, "the full run is no news about itself"
    assert distributions(tools, other, full)["fid"]["value"] > 0.01
    copy = Measured({}, full.features)
    reference = Reference("some pictures", statistics.of(full.features, extractor.identity))
    given = Tools(tools.names, extractor, reference, resamples=10)
    numbers = distributions(given, other, copy)
    assert numbers["fid"]["value"] == pytest.approx(distributions(tools, other, full)["fid"]["value"], rel=1e-6)
    assert numbers["fid"]["low"] >= 0
    assert numbers["fid_full"]["value"] == pytest.approx(numbers["fid"]["value"], rel=1e-6)
    own = distributions(given, copy, copy)
    assert own["fid"]["value"] == pytest.approx(0, abs=1e-6)
    assert (own["precision"]["value"], own["recall"]["value"], own["fid_full"]["value"]) == (1, 1, None)
    assert [metric.label for metric in given.metrics()] == [
        "fd_digits",
        "fd_digits to full",
        "precision[fd_digits]",
        "recall[fd_digits]",
    ]


def test_few_pictures_and_other_networks_are_warned_of() -> None:
    tools = Tools(["fid"], load_extractor("fd_digits"))
    few, many = tools.warnings(64), tools.warnings(1000)
    assert any("fewer than its 192 features" in line for line in few)
    assert any("from 1000 pictures is biased upwards" in line for line in many)
    assert all(any("is not FID" in line for line in lines) for lines in (few, many))
    assert Tools(["psnr"]).warnings(4) == []


def test_metrics_are_named_in_a_list() -> None:
    assert check_names("PSNR, fid,clip") == ["psnr", "fid", "clip"]
    for text, message in ((",", "names none"), ("psnr,fod", "knows no 'fod': choose from psnr")):
        with pytest.raises(ValueError, match=message):
            check_names(text)


def test_features_do_not_depend_on_the_file_format(tmp_path: Path) -> None:
    pictures = drawn(2, side=32).pictures
    for i, picture in enumerate(image.to_pil(pictures)):
        picture.save(tmp_path / f"{i}.png")
    extractor = load_extractor("fd_digits")
    with Image.open(tmp_path / "0.png") as picture:
        assert picture.size == (32, 32)
    kept = extractor(as_bytes(read(find(tmp_path).files))).pooled
    torch.testing.assert_close(kept, extractor(as_bytes(pictures)).pooled)
