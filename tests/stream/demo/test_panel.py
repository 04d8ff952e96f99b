"""What the demo shows, rendered from plain values."""

import io

import pytest
from rich.console import Console, RenderableType

from stream.blocks import Counts
from stream.demo.comparison import Score
from stream.demo.panel import (
    Role,
    SlideRow,
    View,
    answer_table,
    law_lines,
    render,
    slide_line,
    status_line,
    summary_table,
)
from stream.demo.requests import Answer, RankedRow

COUNTS = Counts(
    records=14,
    requests=3,
    impressions=6,
    clicks=4,
    ticks=1,
    clicked=2,
    expired_negative=3,
    pending=1,
    matched=2,
    late=1,
    held=1,
)
GOOD = {"auc": 0.75, "logloss": 0.5, "calibration": 1.01}
UNDEFINED = {"auc": None, "logloss": None, "calibration": None}


def slides(count: int) -> list[SlideRow]:
    return [SlideRow(index, 1000, 9.6e8, GOOD, GOOD, "promote", "not worse") for index in range(count)]


def text_of(renderable: RenderableType, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_laws_stand_in_numbers_with_by_how_much_each_is_broken() -> None:
    assert law_lines(COUNTS) == [
        "✓ 0  impressions  6 = 2 clicked + 3 expired_negative + 1 pending",
        "✓ 0  clicks       4 = 2 matched + 0 repeated + 1 late + 0 orphan + 1 held",
        "✓ 0  records      14 = 3 requests + 6 impressions + 4 clicks + 1 ticks + 0 duplicates + 0 dead letters",
    ]
    assert law_lines(Counts(impressions=7, clicked=5))[0].startswith("✗ 2  impressions")


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("n_slides", [0, 3, 300])
def test_the_panel_fills_its_height_and_no_more_and_the_newest_slides_stay(width: int, n_slides: int) -> None:
    view = View("a log", "replaying", counts=COUNTS, slides=slides(n_slides), notes=["serve died"])
    lines = text_of(render(view, width=width, height=30), width).splitlines()
    assert len(lines) == 30
    assert max(map(len, lines)) == width
    numbers = [line.split()[1] for line in lines if line.split()[1:2] and line.split()[1].isdecimal()]
    assert numbers == [str(index) for index in range(n_slides)][-len(numbers) :] if n_slides else not numbers


@pytest.mark.parametrize("width", [80, 160])
def test_whatever_the_width_each_law_shows_whether_it_holds(width: int) -> None:
    broken = Counts(impressions=7, clicked=5, clicks=5, matched=5, records=12)
    text = text_of(render(View("a log", "replaying", counts=broken), width=width, height=30), width)
    assert "✗ 2  impressions" in text
    assert "✓ 0  clicks" in text
    assert "✓ 0  records" in text


def test_the_panel_tells_roles_priors_and_the_age_of_the_serving_model() -> None:
    view = View(
        "a log",
        "replaying",
        events_per_s=21_000.0,
        watermark_s=965_692_800.0,
        prior_values=12_345,
        prior_as_of_s=965_692_800.0,
        serving="ctr-000003-abc",
        age_event_s=7_200.0,
        age_wall_s=1.25,
        roles=[Role("ledger", "runs"), Role("train", "restarts", deaths=2)],
        notes=["train died and is started again (Killed)"],
    )
    text = text_of(render(view, width=160, height=40))
    for words in (
        "21,000 events/s now",
        "ledger runs  train restarts (died 2×)",
        "2000-08-08 00:00 (watermark of all partitions)",
        "12,345 values known, as of 2000-08-08 00:00",
        "ctr-000003-abc · 2.0 h old in event time, 1.2 s on the clock",
        "! train died and is started again (Killed)",
    ):
        assert words in text


def test_brackets_in_what_others_say_are_no_markup() -> None:
    view = View("[red]a log[/]", "x", notes=["[kafka] is away [/]"])
    text = text_of(render(view, width=120, height=30))
    assert "[red]a log[/]" in text
    assert "[kafka] is away [/]" in text


def test_a_slide_in_one_line_says_what_is_not_defined() -> None:
    line = slide_line(SlideRow(7, 1234, 9.6e8, GOOD, UNDEFINED, "hold", "too few clicks"))
    assert line == (
        "slide 7: 1,234 rows, AUC 0.7500 → –, log loss 0.5000 → –, calibration 1.0100 → – (champion → latest);"
        " hold: too few clicks"
    )


def test_the_status_line_says_when_a_law_is_broken() -> None:
    assert "laws hold" in status_line(View("a log", "replaying", counts=COUNTS))
    assert "LAWS BROKEN by 2" in status_line(
        View("a log", "replaying", counts=Counts(impressions=7, clicked=5, records=7))
    )


def test_an_answer_shows_its_first_places_and_the_ad_that_was_clicked_next() -> None:
    ranked = [
        RankedRow(place, f"ad-{place}", 1.0 / place, {"year": 1990 + place, "genres": ["Drama", "War"]}, place == 42)
        for place in range(1, 101)
    ]
    user = {"user_id": "u", "age": "25", "liked": ["a", "b", "c", "d", "e"]}
    answer = Answer("u", user, "ctr-000003-abc", 0.0123, "ad-42", 42, ranked)
    text = text_of(answer_table(answer))
    assert "user_id u · age 25 · liked a, b, c and 2 more" in text
    assert "100 candidates ranked in 12 ms" in text
    assert "ctr-000003-abc" in text
    lines = [line.split("  ") for line in text.splitlines()]
    places = [parts[0] for line in lines if (parts := [part.strip() for part in line if part.strip()])]
    assert [place for place in places if place.isdecimal() or place == "…"] == ["1", "2", "3", "4", "5", "…", "42"]
    assert "year 2032 · genres Drama, War" in text
    assert "★ clicked next" in text


def test_the_summary_compares_with_the_first_model() -> None:
    scores = {
        "as it was": Score(10, 4, logloss=0.6, auc=0.70, calibration=1.1),
        "champion": Score(10, 4, logloss=0.54, auc=0.75, calibration=None),
    }
    text = text_of(summary_table(scores, n_slides=3))
    assert "10 impressions of the 3 slides after the warm-up" in text
    assert ["as", "it", "was", "0.6000", "0.7000", "1.1000"] in [line.split() for line in text.splitlines()]
    assert ["champion", "0.5400", "-10.00", "%", "0.7500", "+0.0500", "–"] in [
        line.split() for line in text.splitlines()
    ]


def test_what_visitors_do_is_shown_where_there_are_any_and_the_panel_stays_as_high() -> None:
    quiet, busy = View("world", "learning"), View("world", "learning", world="CTR at first: learning 6.00%")
    assert "CTR at first: learning 6.00%" in text_of(render(busy, width=160, height=40))
    assert status_line(busy).endswith("; CTR at first: learning 6.00%")
    heights = [len(text_of(render(view, width=160, height=40)).splitlines()) for view in (quiet, busy)]
    assert heights[0] == heights[1] <= 40
