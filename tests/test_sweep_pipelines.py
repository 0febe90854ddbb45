"""Every pipeline class of diffusers: are its denoisers found, attached to, let go? Is docs/pipelines.md up to date?"""

from __future__ import annotations

from pathlib import Path

import pytest

from diffaccel import accelerate_pipeline
from diffaccel.denoisers import denoisers
from tests.zoo_census import components, pipelines
from tests.zoo_findings import WHOLE, WITHOUT
from tests.zoo_pipelines import assembled, reasons_against
from tests.zoo_table import DOCUMENT, document

# What diffusers and torch say of their own classes.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

BUILDABLE = [name for name in pipelines() if name not in WITHOUT and not reasons_against(name)]


def test_every_pipeline_has_a_denoiser_or_is_listed() -> None:
    assert {name for name, kind in pipelines().items() if not components(kind)} == WITHOUT.keys()


@pytest.mark.parametrize("name", BUILDABLE)
def test_denoisers_are_found_and_attached_to(name: str) -> None:
    pipe = assembled(name)
    expected = components(pipelines()[name]).keys()
    assert denoisers(pipe).keys() == expected
    before = dict(vars(pipe))
    # Toy components of one class are one network, which is accelerated once.
    accelerate_pipeline(pipe, "taylorseer")
    assert set(pipe.acceleration.networks) <= expected
    networks = denoisers(pipe)
    assert {id(networks[part]) for part in pipe.acceleration.networks} == {id(network) for network in networks.values()}
    pipe.acceleration.remove()
    assert vars(pipe) == before


@pytest.mark.parametrize("name", WITHOUT)
def test_pipelines_without_a_denoiser_are_refused(name: str) -> None:
    with pytest.raises(TypeError, match=r"is no pipeline diffaccel can accelerate|Methods for it: dkv"):
        accelerate_pipeline(assembled(name), "taylorseer")


@pytest.mark.parametrize(("name", "where"), WHOLE.items())
def test_pipelines_said_to_be_run_whole_are(name: str, where: str) -> None:
    assert name in pipelines()
    assert f"{name}" in (Path(__file__).parent / where).read_text("utf8")


def test_the_document_is_up_to_date() -> None:
    assert DOCUMENT.read_text("utf8") == document(), "run `python -m tests.zoo_table`, which writes docs/pipelines.md"
