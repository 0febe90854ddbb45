"""Does the report of an evaluation say what its numbers say, whoever they favour?"""

import base64
import copy
import io
import itertools
import json
import math
import random
import shutil
import subprocess
import sys
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from diffaccel.evaluation import labels, plot
from diffaccel.evaluation.contents import cost_columns, number
from diffaccel.evaluation.gallery import KEPT, magnification
from diffaccel.evaluation.report_html import as_html
from diffaccel.evaluation.report_text import WIDEST, as_text
from diffaccel.evaluation.sentences import duels, headlines, title

GOOD, BAD = "TaylorSeer N=4 O=2", "TaylorSeer N=6 O=1"
VOID = {"meta", "br", "img"}
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


def metric(key: str, label: str, unit: str, better: str, kind: str, about: str, digits: int) -> dict[str, Any]:
    return locals()


METRICS = [
    metric("psnr", "PSNR", "dB", "higher", "pair", "Likeness to the full run's picture.", 1),
    metric("ssim", "SSIM", "", "higher", "pair", "Likeness in structure.", 3),
    metric("fd", "fd_digits", "", "lower", "distribution", "Distance of two sets of features.", 2),
    metric("clip", "CLIP score", "", "higher", "prompt", "Fit of picture and prompt.", 2),
]


def entry(value: float | None, half: float | None, n: int = 64, identical: int = 0) -> dict[str, Any]:
    known = value is not None and half is not None
    low, high = (value - half, value + half) if known else (None, None)
    return {"value": value, "low": low, "high": high, "n": n, "identical": identical}


def candidate(name: str, kind: str, computed: int, speedup: float, values: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = [3.2 / speedup * factor for factor in (0.97, 1.0, 1.04)]
    return {
        "name": name,
        "kind": kind,
        "method": f"{name.split()[0]}(interval=4, order=2)" if kind == "method" else None,
        "steps": computed if kind == "fewer" else 28,
        "computed": computed,
        "bound": 28 / computed,
        "equal": [],
        "time": {
            "seconds": seconds,
            "median": seconds[1],
            "low": seconds[0],
            "high": seconds[2],
            "rounds": 3,
            "speedup": speedup,
            "speedup_low": speedup * (0.97 if kind != "full" else 1),
            "speedup_high": speedup * (1.03 if kind != "full" else 1),
        },
        "cache_bytes": 196_608 if kind == "method" else None,
        "metrics": {key["key"]: value for key, value in zip(METRICS, values, strict=True) if value},
    }


def evaluation() -> dict[str, Any]:
    """Two methods: one that beats fewer steps at equal time, one that loses to them."""
    candidates = [
        candidate("full run", "full", 28, 1.0, [entry(None, None, 64, 64), {}, entry(2.11, 0.2), entry(31.2, 0.3)]),
        candidate(GOOD, "method", 9, 2.73, [entry(47.4, 0.5), entry(0.991, 0.002), entry(2.2, 0.2), entry(31.1, 0.3)]),
        candidate(BAD, "method", 7, 3.55, [entry(34.5, 0.7), entry(0.93, 0.01), entry(4.8, 0.4), entry(30.2, 0.4)]),
        candidate(
            "10 steps", "fewer", 10, 2.7, [entry(43.1, 0.5), entry(0.98, 0.004), entry(2.4, 0.2), entry(31, 0.3)]
        ),
        candidate("9 steps", "fewer", 9, 2.95, [entry(42.0, 0.5), entry(0.97, 0.004), entry(2.5, 0.2), entry(31, 0.3)]),
        candidate("8 steps", "fewer", 8, 3.4, [entry(40.4, 0.5), entry(0.96, 0.01), entry(2.8, 0.2), entry(30.9, 0.3)]),
        candidate("7 steps", "fewer", 7, 3.9, [entry(38.7, 0.5), entry(0.95, 0.01), entry(3.2, 0.2), entry(30.8, 0.3)]),
    ]
    pairs = [
        (GOOD, "10 steps", "time"),
        (GOOD, "9 steps", "steps"),
        (BAD, "8 steps", "time"),
        (BAD, "7 steps", "steps"),
    ]
    by_name = {one["name"]: one for one in candidates}
    gains = []
    for of, over, by in pairs:
        by_name[over]["equal"].append({"to": of, "by": by})
        for key, half in (("psnr", 0.4), ("ssim", 0.003), ("fd", 0.35), ("clip", 0.2)):
            value = by_name[of]["metrics"][key]["value"] - by_name[over]["metrics"][key]["value"]
            ends = {"low": value - half, "high": value + half}
            gains.append({"of": of, "over": over, "by": by, "metric": key, "value": value, **ends})
    return {
        "schema": 1,
        "command": "diffaccel evaluate --method taylorseer --num 64",
        "request": {
            "model": "flux-digits",
            "pipeline": "FluxPipeline",
            "steps": 28,
            "prompts": "bundled",
            "num": 64,
            "seed": 0,
            "batch": 16,
            "height": 32,
            "width": 32,
            "dtype": "float32",
            "device": "cpu",
            "arguments": {"guidance": None},
        },
        "extractor": {"name": "fd_digits", "dimension": 192, "side": 32, "resize": "none", "weights": "0f" * 32},
        "clip_model": {"name": "clip-digits", "weights": "a1" * 32, "dimension": 64},
        "lpips": None,
        "reference": {"name": "bundled", "n": 2048},
        "metrics": METRICS,
        "candidates": candidates,
        "gains": gains,
        "pictures": {"prompts": ["a red 7", "a blue 3"], "names": list(by_name), "files": None},
        "warnings": ["fd_digits from 64 pictures is biased upwards; compare it with nothing but this table."],
        "environment": {"diffaccel": "0.1.0", "torch": "2.13.0", "cpu": {"model": "two cores", "threads": 1}},
    }


def folders() -> dict[str, Any]:
    """Two folders of pictures compared: no pipeline, no time."""
    result = evaluation()
    metrics = result["candidates"][1]["metrics"]
    nothing = dict.fromkeys(["method", "steps", "computed", "bound", "time", "cache_bytes"])
    images = {"name": "out", "kind": "images", "equal": [], "metrics": metrics, **nothing}
    return result | {
        "request": {"images": "out", "reference": "ref", "num": 64},
        "reference": {"name": "ref", "n": 64},
        "candidates": [images],
        "gains": [],
        "pictures": {"prompts": ["a.png", "b.png"], "names": ["out"], "files": None},
    }


def make_identical(result: dict[str, Any], name: str) -> dict[str, Any]:
    """The candidate's pictures are the full run's: infinite PSNR, no gain that is a number."""
    [found] = [one for one in result["candidates"] if one["name"] == name]
    found["metrics"]["psnr"] = entry(None, None, 64, 64)
    for gain in result["gains"]:
        if gain["metric"] == "psnr" and name in (gain["of"], gain["over"]):
            gain.update(value=None, low=None, high=None)
    return result


def noise(seed: int, side: int = 8) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 200, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def drawn(result: Mapping[str, Any], side: int = 8) -> dict[str, list[Image.Image]]:
    """Pictures of all candidates."""
    count = len(result["pictures"]["prompts"])
    names = result["pictures"]["names"]
    return {name: [noise(10 * i + j, side) for j in range(count)] for i, name in enumerate(names)}


class Page(HTMLParser):
    """A page's text, tags and attributes; fails where tags are not closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.images, self.tags = "", [], set[str]()
        self.links: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += f" {data}"


def picture(source: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1])))


# ---- what is said ----


def test_headline_says_the_numbers_and_who_wins_both_ways() -> None:
    first, second = headlines(evaluation())
    assert (first.name, second.name) == (GOOD, BAD)
    assert first.sentence == (
        "2.73x faster (bound 3.11x), PSNR 47.4 dB to the full run; a plain run of equal time (10 steps) reaches "
        "43.1 dB and one of equal computed steps (9 steps) reaches 42.0 dB."
    )
    assert first.duel is not None
    assert second.duel is not None
    assert (first.duel.by, first.duel.ahead) == ("time", "method")
    assert (second.duel.by, second.duel.ahead) == ("time", "fewer")
    assert title(evaluation()) == f"{GOOD} and {BAD} against the full run of 28 steps"


@pytest.mark.parametrize(
    ("better", "value", "low", "high", "ahead"),
    [
        ("higher", 4.3, 3.9, 4.7, "method"),
        ("higher", -4.3, -4.7, -3.9, "fewer"),
        ("higher", 0.3, -0.1, 0.7, "neither"),
        ("lower", 4.3, 3.9, 4.7, "fewer"),
        ("lower", -4.3, -4.7, -3.9, "method"),
        ("lower", -0.3, -0.7, 0.1, "neither"),
        ("higher", 4.3, None, None, "method"),
        ("lower", 4.3, None, None, "fewer"),
        ("higher", 0.0, None, None, "neither"),
        ("higher", None, None, None, "unknown"),
    ],
)
def test_winner(better: str, value: float | None, low: float | None, high: float | None, ahead: str) -> None:
    result = copy.deepcopy(evaluation())
    result["metrics"] = [metric("psnr", "PSNR", "dB", better, "pair", "", 1)]
    gain = {"of": GOOD, "over": "10 steps", "by": "time", "metric": "psnr", "value": value, "low": low, "high": high}
    result["gains"] = [gain]
    [duel] = duels(result)
    assert duel.ahead == ahead
    page = Page(as_html(result, {}, None)).text
    assert ("fewer steps win at equal time" in page) == (ahead == "fewer")
    assert ("ahead of fewer steps at equal time" in page) == (ahead == "method")


@pytest.mark.parametrize(
    ("own", "plain", "ahead"), [(True, False, "method"), (False, True, "fewer"), (True, True, "neither")]
)
def test_identical_pictures_win_though_no_number_says_so(own: bool, plain: bool, ahead: str) -> None:
    result = evaluation()
    for name, is_identical in ((GOOD, own), ("10 steps", plain)):
        if is_identical:
            make_identical(result, name)
    assert (
        next(duel for duel in duels(result) if duel.over == "10 steps" and duel.metric["key"] == "psnr").ahead == ahead
    )
    for said in (as_text(result), Page(as_html(result, {}, None)).text):
        assert "identical" in said


@pytest.mark.parametrize(
    ("speedup", "low", "high", "said"),
    [(2.0, 1.9, 2.1, "2.00x faster"), (1.02, 0.97, 1.05, "No faster (1.02x)"), (0.9, 0.8, 0.95, "Slower, 0.90x")],
)
def test_speed_is_claimed_only_where_every_round_shows_it(speedup: float, low: float, high: float, said: str) -> None:
    result = evaluation()
    result["candidates"][1]["time"].update(speedup=speedup, speedup_low=low, speedup_high=high)
    assert headlines(result)[0].sentence.startswith(said)


def test_numbers_have_the_metrics_digits_and_never_a_minus_zero() -> None:
    psnr = METRICS[0]
    assert number(-0.04, psnr) == "0.0"
    assert number(-0.04, psnr, signed=True) == "+0.0"
    assert number(4.26, psnr, unit=True, signed=True) == "+4.3 dB"


def test_text_names_every_candidate_metric_interval_and_warning() -> None:
    result = evaluation()
    said = as_text(result)
    for one in result["candidates"]:
        assert one["name"] in said
    for heading in ("PSNR dB ↑", "SSIM ↑", "fd_digits ↓", "CLIP score ↑", "n = 64"):
        assert heading in said
    assert "47.4 (46.9 to 47.9)" in said
    assert "2.73x (2.65 to 2.81)" in said
    assert "9 of 28" in said
    assert f"Warning: {result['warnings'][0]}" in said
    rows = [line.split() for line in said.splitlines() if "8 steps, equal time" in line]
    assert [row[-2:] for row in rows] == [["fewer", "steps"]] * 4


def test_tables_of_text_go_on_below_where_they_would_be_too_wide() -> None:
    result = evaluation()
    for i in range(5):
        result["metrics"] = [*result["metrics"], metric(f"m{i}", f"metric {i}", "", "lower", "pair", "", 3)]
        for one in result["candidates"]:
            one["metrics"][f"m{i}"] = entry(100.0 + i, 0.5)
    said = as_text(result)
    tables = [line for line in said.splitlines() if line.startswith(" ") and "─" not in line]
    assert max(map(len, tables)) <= WIDEST + 1
    assert all(f"{100 + i}.000 ({99.5 + i:.3f} to {100.5 + i:.3f})" in said for i in range(5))


def test_folders_have_no_columns_of_time_and_one_sentence() -> None:
    result = folders()
    assert cost_columns(result) == []
    [line] = headlines(result)
    assert line.sentence == "PSNR 47.4 dB to ref, fd_digits 2.20 to ref, CLIP score 31.10."
    assert title(result) == "out against ref"
    page = Page(as_html(result, {name: [noise(0), noise(1)] for name in ("out", "ref")}, None))
    assert "speed-up" not in page.text + as_text(result)
    assert len(page.images) == 2 * 3


def test_json_round_trip_changes_no_word() -> None:
    result = make_identical(evaluation(), BAD)
    again = json.loads(json.dumps(result))
    assert as_text(again) == as_text(result)
    assert as_html(again, drawn(result), None) == as_html(result, drawn(result), None)


# ---- the page ----


def test_page_stands_alone_and_shows_everything_given() -> None:
    result = evaluation()
    pictures = drawn(result)
    page = Page(as_html(result, pictures, plot.draw(result)))
    assert all(link.startswith("data:image/") for link in page.links)
    assert page.tags.isdisjoint({"script", "link", "iframe", "object"})
    for word in [*(one["name"] for one in result["candidates"]), *result["warnings"], "31.10", "30.80 to 31.40"]:
        assert word in page.text
    for word in ["n = 64", "fewer steps ahead", "method ahead", "0f" * 32, "a1" * 32, "2.13.0", "two cores"]:
        assert word in page.text
    assert result["command"] in page.text
    trade_off, *shown = page.images
    assert picture(trade_off["src"]).size == (plot.WIDTHS[3] * plot.DPI, plot.HEIGHT * plot.DPI)
    assert len(shown) == 2 * (len(result["candidates"]) + 2)
    kept = [np.asarray(picture(image["src"])).tobytes() for image in shown]
    assert all(np.asarray(one).tobytes() in kept for some in pictures.values() for one in some)
    assert all((image["width"], image["class"]) == ("128", "pixels") for image in shown)


def test_everything_is_escaped() -> None:
    evil = "<b>&'\"<script>alert(1)</script>"
    result = evaluation()
    result["pictures"]["prompts"] = [evil, "plain"]
    result["warnings"] = [evil]
    result["command"] = evil
    result["metrics"] = [{**METRICS[0], "label": f"PSNR {evil}", "about": evil}, *METRICS[1:]]
    result["environment"] = {evil: evil}
    text = json.dumps(result).replace(GOOD, json.dumps(evil)[1:-1])
    result = json.loads(text)
    source = as_html(result, drawn(result), None)
    assert evil not in source
    page = Page(source)
    assert "script" not in page.tags
    assert page.text.count(evil) >= 10
    assert any(evil in str(image["alt"]) for image in page.images)


def test_differences_are_magnified_alike_and_say_by_how_much() -> None:
    result = evaluation()
    result["pictures"] = {"prompts": ["one"], "names": ["full run", GOOD, BAD], "files": None}
    base = noise(0)
    near, far = (Image.fromarray(np.asarray(base) + np.uint8(shift)) for shift in (2, 8))
    page = Page(as_html(result, {GOOD: [near], BAD: [far], "full run": [base]}, None))
    first, _, near_apart, _, far_apart = (np.asarray(picture(image["src"])) for image in page.images)
    np.testing.assert_array_equal(first, np.asarray(base))
    assert (near_apart == 2 * 16).all()  # 16 x 8 of 255 is the largest power of two below 255
    assert (far_apart == 8 * 16).all()
    assert page.text.count("magnified 16 times") == 2


def test_magnification_ends_at_64_and_at_1() -> None:
    assert magnification([np.full((4, 4, 3), 1e-4, np.float32)]) == 64
    assert magnification([np.zeros((4, 4, 3), np.float32)]) == 64
    assert magnification([np.ones((4, 4, 3), np.float32)]) == 1
    assert magnification([]) == 1


def test_large_pictures_are_reduced_and_say_so() -> None:
    result = evaluation()
    page = Page(as_html(result, drawn(result, 2 * KEPT), None))
    assert f"reduced from {2 * KEPT} x {2 * KEPT} px" in page.text
    assert {picture(image["src"]).size for image in page.images} == {(KEPT, KEPT)}
    assert all("class" not in image for image in page.images)


def test_pictures_of_unequal_size_have_no_difference_and_too_few_are_refused() -> None:
    result = evaluation()
    pictures = drawn(result)
    pictures[GOOD] = [noise(0, 16), noise(1, 16)]
    assert Page(as_html(result, pictures, None)).text.count("sizes differ") == 2
    pictures[GOOD].pop()
    with pytest.raises(ValueError, match=f"{GOOD} has 1 pictures for 2 prompts"):
        as_html(result, pictures, None)


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_page_is_no_wider_than_the_screen(width: int, tmp_path: Path) -> None:
    result = evaluation()
    (tmp_path / "page.html").write_text(as_html(result, drawn(result), plot.draw(result)))
    (tmp_path / "frame.html").write_text(
        f"<iframe id='f' src='page.html' style='border:0;width:{width}px;height:900px'></iframe><script>"
        "f.onload = () => { document.title = 'wide ' + f.contentDocument.documentElement.scrollWidth }</script>"
    )
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += [
        "--disable-background-networking",
        "--disable-component-update",
        "--hide-scrollbars",
        "--allow-file-access-from-files",
    ]
    command = [str(BROWSER), *flags, f"--user-data-dir={tmp_path / 'user'}", "--dump-dom", str(tmp_path / "frame.html")]
    page = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    assert f"<title>wide {width}</title>" in page


# ---- the plot ----


@pytest.mark.parametrize(
    ("better", "best"),
    [("higher", [(1.0, 9.0), (2.0, 8.0), (4.0, 3.0)]), ("lower", [(3.0, 2.0), (4.0, 3.0)])],
)
def test_front_of_known_points(better: str, best: list[tuple[float, float]]) -> None:
    points = [(1.0, 9.0), (1.0, 5.0), (2.0, 8.0), (2.0, 7.0), (3.0, 2.0), (4.0, 3.0)]
    for order in itertools.permutations(points):
        assert plot.front(order, better) == best


def test_plot_has_a_panel_for_the_first_metric_of_each_kind() -> None:
    result = evaluation()
    assert [one["key"] for one in plot.drawable(result)] == ["psnr", "fd", "clip"]
    one = plot.trade_off(result, "ssim")
    [axes] = one.axes
    assert axes.get_ylabel().startswith("SSIM (higher is better")
    assert {text.get_text() for text in axes.texts} == {c["name"] for c in result["candidates"][1:]}
    lines = {line.get_label(): line for line in axes.lines}
    assert [x for x, _ in lines["Pareto front"].get_xydata()] == [2.73, 2.95, 3.4, 3.9]
    assert lines["TaylorSeer"].get_color() != lines["fewer steps, no method"].get_color()
    assert lines["TaylorSeer"].get_marker() != lines["fewer steps, no method"].get_marker()
    falling = plot.trade_off(result, "fd").axes[0]
    assert falling.yaxis_inverted()


def test_intervals_and_ranges_are_drawn() -> None:
    result = evaluation()
    [axes] = plot.trade_off(result, "psnr").axes
    time = result["candidates"][1]["time"]
    ends = {tuple(map(tuple, np.round(line.get_xydata(), 6).tolist())) for line in axes.lines}
    assert ((2.73, 46.9), (2.73, 47.9)) in ends
    assert tuple((round(time[end], 6), 47.4) for end in ("speedup_low", "speedup_high")) in ends


def test_identical_pictures_stand_beyond_the_best_and_say_so() -> None:
    result = make_identical(evaluation(), BAD)
    [axes] = plot.trade_off(result, "psnr").axes
    [name] = [text for text in axes.texts if text.get_text() == f"{BAD} (identical)"]
    assert math.isfinite(name.xy[1])
    assert name.xy[1] > 47.4


@pytest.mark.parametrize("seed", range(5))
def test_names_in_a_crowded_plot_overlap_neither_each_other_nor_points(seed: int) -> None:
    dice = random.Random(seed)
    result = evaluation()
    for i in range(8):
        value = entry(dice.uniform(38, 44), 0.4)
        result["candidates"].append(
            candidate(f"TaylorSeer N={i} O=3", "method", 8, dice.uniform(2.7, 4), [value, {}, {}, {}])
        )
    figure = plot.trade_off(result, "psnr")
    figure.canvas.draw()
    [axes] = figure.axes
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # without the line to its point
    assert len(boxes) == 14
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    points = axes.transData.transform([text.xy for text in axes.texts])
    assert not any(box.contains(*point) for box in boxes for point in points)
    assert all(axes.bbox.contains(*corner) for box in boxes for corner in box.corners())


def test_a_name_goes_to_the_upper_right_unless_that_is_taken() -> None:
    room = (0.0, 0.0, 200.0, 200.0)
    [free] = labels.place([(100, 100)], [(40, 8)], room)
    assert free[0] > 100
    assert free[1] > 100
    [cornered] = labels.place([(195, 195)], [(40, 8)], room)
    assert cornered[2] < 195
    assert cornered[3] < 195


def test_nothing_timed_is_nothing_to_draw() -> None:
    untimed = evaluation()
    for one in untimed["candidates"]:
        one["time"] = None
    for result in (untimed, folders()):
        assert plot.drawable(result) == []
        with pytest.raises(ValueError, match="no candidate has a measured speed-up"):
            plot.draw(result)
    assert headlines(untimed)[0].sentence.startswith("Speed-up at most 3.11x, not measured, PSNR 47.4 dB")
    with pytest.raises(ValueError, match="a value of nonsense"):
        plot.trade_off(evaluation(), "nonsense")


def test_plot_says_what_to_install_where_there_is_no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"diffaccel\[report\]"):
        plot.draw(evaluation())


def test_plotting_leaves_pyplot_alone_and_reporting_needs_no_matplotlib() -> None:
    code = (
        "import sys; from diffaccel.evaluation import plot, report_html, report_text; "
        "assert 'matplotlib' not in sys.modules; "
        "candidate = dict(name='a', kind='method', method=None, metrics=dict(m=dict(value=1.0, n=2)), "
        "time=dict(speedup=2.0)); "
        "metric = dict(key='m', label='M', unit='', better='higher', kind='pair', digits=1); "
        "assert plot.draw(dict(candidates=[candidate], metrics=[metric]))[1:4] == b'PNG'; "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
