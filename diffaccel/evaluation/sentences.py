"""Sentences drawn from an evaluation's numbers: what was compared, what each method gained, and who won."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffaccel.evaluation.contents import (
    NO_NUMBER,
    Ahead,
    Cell,
    Duel,
    Headline,
    Result,
    candidates_of,
    estimate,
    full_run,
    identical,
    interval,
    number,
)


def title(result: Result) -> str:
    """What was compared with what."""
    full = full_run(result)
    if full is None:
        names = [candidate["name"] for candidate in result["candidates"]]
        return f"{_listed(names)} against {_reference(result)}"
    names = [candidate["name"] for candidate in candidates_of(result, "method")]
    compared = names or [candidate["name"] for candidate in candidates_of(result, "fewer")]
    who = _listed(compared) if len(compared) <= 3 else f"{len(compared)} accelerations"
    steps = f" of {full['steps']} steps" if full.get("steps") else ""
    return f"{who} against the full run{steps}" if compared else f"The full run{steps}"


def subtitle(result: Result) -> str:
    """Model, number of pictures, size, device, as far as they are known."""
    request = result["request"]
    size = f"{request['width']} x {request['height']} px" if request.get("width") and request.get("height") else ""
    parts = [
        request.get("model"),
        f"{request['num']} pictures" if request.get("num") else "",
        f"seed {request['seed']}" if request.get("seed") is not None else "",
        size,
        request.get("dtype"),
        request.get("device"),
    ]
    return ", ".join(str(part) for part in parts if part)


def headline_metrics(result: Result) -> list[Mapping[str, Any]]:
    """The metrics that headlines speak of: the first of pairs of pictures, of distributions, of prompts.

    Of distributions that is the distance to the full run, where there is one: it tells candidates apart long before the
    distance to real pictures does.
    """
    first = {metric["kind"]: metric for metric in reversed(result["metrics"])}
    first |= {metric["kind"]: metric for metric in result["metrics"] if metric["key"] == "fid_full"}
    return [first[kind] for kind in ("pair", "distribution", "prompt") if kind in first]


def headlines(result: Result) -> list[Headline]:
    """A sentence a method; where there is none, a sentence for whatever was compared."""
    metrics, found = headline_metrics(result), duels(result)
    lines = []
    for candidate in candidates_of(result, "method", "images") or candidates_of(result, "fewer"):
        told = metrics if candidate["kind"] == "images" else metrics[:1]
        parts = [_pace(candidate), *(_quality(candidate, metric, result) for metric in told)]
        sentence = ", ".join(part for part in parts if part)
        fought = _one_each([duel for duel in found if duel.of == candidate["name"] and duel.metric in metrics[:1]])
        if fought:
            sentence += f"; a plain run {' and one '.join(_plain(duel, result) for duel in fought)}"
        if sentence:
            lines.append(Headline(candidate["name"], f"{sentence[0].upper()}{sentence[1:]}.", next(iter(fought), None)))
    return lines


def duels(result: Result) -> list[Duel]:
    """The gains over fewer steps with a winner each, equal time first."""
    metrics = {metric["key"]: metric for metric in result["metrics"]}
    entries = {candidate["name"]: candidate["metrics"] for candidate in result["candidates"]}
    found = []
    for gain in result["gains"]:
        metric = metrics[gain["metric"]]
        sides = [entries.get(gain[side], {}).get(metric["key"]) for side in ("of", "over")]
        found.append(
            Duel(
                gain["of"],
                gain["over"],
                gain["by"],
                metric,
                _difference(gain, metric, *sides),
                _ahead(gain, metric, *sides),
            )
        )
    order = {name: place for place, name in enumerate(entries)}
    return sorted(found, key=lambda duel: (order.get(duel.of, len(order)), duel.by != "time"))


def verdict(duel: Duel) -> str:
    """A duel in a few words: "ahead of fewer steps at equal time"."""
    words = {
        "method": "ahead of fewer steps",
        "fewer": "fewer steps win",
        "neither": "no clear difference to fewer steps",
        "unknown": "not comparable to fewer steps",
    }
    return f"{words[duel.ahead]} at {duel.equal}"


def _ahead(
    gain: Mapping[str, Any],
    metric: Mapping[str, Any],
    own: Mapping[str, Any] | None,
    plain: Mapping[str, Any] | None,
) -> Ahead:
    if gain["value"] is None:
        sides = identical(own), identical(plain)
        if not any(sides):
            return "unknown"
        return "neither" if all(sides) else ("method" if sides[0] else "fewer")
    low, high = gain.get("low"), gain.get("high")
    low, high = (gain["value"], gain["value"]) if low is None or high is None else (low, high)
    if low <= 0 <= high:
        return "neither"
    return "method" if (low > 0) == (metric["better"] == "higher") else "fewer"


def _difference(
    gain: Mapping[str, Any],
    metric: Mapping[str, Any],
    own: Mapping[str, Any] | None,
    plain: Mapping[str, Any] | None,
) -> Cell:
    if gain["value"] is not None:
        return Cell(number(gain["value"], metric, unit=True, signed=True), interval(gain, metric, signed=True))
    if identical(own):
        return Cell("both identical" if identical(plain) else "identical to the full run")
    return Cell("the plain run is identical" if identical(plain) else NO_NUMBER)


def _one_each(found: list[Duel]) -> list[Duel]:
    """The first duel by time and the first by steps; one of them if both are against the same run."""
    first = {duel.by: duel for duel in reversed(found)}
    return list({first[by].over: first[by] for by in ("steps", "time") if by in first}.values())[::-1]


def _pace(candidate: Mapping[str, Any]) -> str:
    time, bound = candidate.get("time"), candidate.get("bound")
    if time is None or time.get("speedup") is None:
        return f"speed-up at most {bound:.2f}x, not measured" if bound else ""
    factor = f"{time['speedup']:.2f}x"
    low, high = time.get("speedup_low"), time.get("speedup_high")
    low, high = low or time["speedup"], high or time["speedup"]
    words = f"{factor} faster" if low > 1 else f"slower, {factor} the speed" if high < 1 else f"no faster ({factor})"
    return f"{words} (bound {bound:.2f}x)" if bound else words


def _quality(candidate: Mapping[str, Any], metric: Mapping[str, Any], result: Result) -> str:
    entry, full = candidate["metrics"].get(metric["key"]), full_run(result)
    if entry is None:
        return ""
    to = "the full run" if full else _reference(result)
    if identical(entry):
        return f"pictures identical to {to}"
    value = f"{metric['label']} {estimate(entry, metric, unit=True).text}"
    if metric["kind"] == "pair" or (metric["kind"] == "distribution" and full is None):
        return f"{value} to {to}"
    whole = estimate(full["metrics"].get(metric["key"]), metric, unit=True).text if full else ""
    return f"{value} (the full run: {whole})" if whole else value


def _plain(duel: Duel, result: Result) -> str:
    entries = {candidate["name"]: candidate["metrics"] for candidate in result["candidates"]}
    value = estimate(entries.get(duel.over, {}).get(duel.metric["key"]), duel.metric, unit=True).text
    reaches = "is identical" if value == "identical" else f"reaches {value}" if value else "was not measured"
    return f"of {duel.equal} ({duel.over}) {reaches}"


def _reference(result: Result) -> str:
    return str((result.get("reference") or {}).get("name") or "the reference")


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "nothing"
