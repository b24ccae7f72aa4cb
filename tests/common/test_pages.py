"""Pages hold everything they show, and nothing that is put into them is read as HTML."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from jinja2 import UndefinedError
from PIL import Image

from diffusekrona.common.charts import chart, literal, new_chart
from diffusekrona.common.pages import number_columns, picture_uri, render

HOSTILE = '<script>alert("1")</script>&amp;\'{{ 7 * 7 }}'


class Tags(HTMLParser):
    """The tags of a page, and where their pictures come from."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.sources: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs) -> None:
        self.found.append(tag)
        values = dict(attrs)
        self.sources += [values[key] for key in ("src", "srcset", "href") if key in values]
        assert not any(name.startswith("on") for name in values)


def study(**changes) -> str:
    values = {
        "title": "A study", "lead": "What?", "paper": "", "notes": [], "caption": "",
        "scores": (["", "CLIP-I"], [["one", "0.5"]]), "differences": None,
        "differences_caption": "", "charts": [], "spread": None, "spread_caption": "",
        "spread_chart": None, "tolerance": None, "tolerance_caption": "", "best": None,
        "best_caption": "", "grids": [], "yaml": "",
    }  # fmt: skip
    return render("study/page.html", **(values | changes))


@pytest.mark.parametrize("place", ["title", "lead", "paper", "notes", "caption", "scores", "yaml"])
def test_everything_is_escaped(place) -> None:
    value = {"notes": [HOSTILE], "scores": ([HOSTILE], [[HOSTILE], [None]])}.get(place, HOSTILE)
    page = study(**{place: value})
    assert "script" not in Tags(page).found and "<script" not in page
    assert "{{ 7 * 7 }}" in page


def test_pictures_and_charts_are_inside_the_page() -> None:
    figure, axes = new_chart(2, 2)
    axes[0, 0].set_title(literal("a $name$ of $5"))
    page = study(charts=[chart(figure, HOSTILE)])
    tags = Tags(page)
    assert "script" not in tags.found and tags.sources
    assert all(source.startswith("data:image/") for source in tags.sources)
    assert not re.search(r"https?:", page)


def test_a_value_that_the_template_needs_cannot_be_forgotten() -> None:
    with pytest.raises(UndefinedError):
        render("study/page.html", title="", lead="")


def test_columns_of_numbers() -> None:
    rows = [["1", "0.5 [0.4, 0.6]", "a1"], ["2", None, "3"], ["3", "–", "4"], ["4", "±0.1", "5"]]
    assert number_columns((["", "", ""], rows)) == [False, True, False]


def test_pictures_are_made_small_enough_for_a_page() -> None:
    large = Image.effect_noise((900, 600), 80)
    assert len(picture_uri(large, 100)) < 12_000 < len(picture_uri(large))
    assert picture_uri(Image.new("RGBA", (20, 20))).startswith("data:image/png")
    assert large.size == (900, 600)


@pytest.mark.parametrize("name", ["$x$", "a $ b", r"\$5$", "$\\frac$", "100 $"])
def test_a_dollar_sign_is_a_dollar_sign(name) -> None:
    figure, axes = new_chart(1, 1)
    title = axes[0, 0].set_title(literal(name))
    figure.draw_without_rendering()
    assert title._preprocess_math(title.get_text()) == (name, False)
