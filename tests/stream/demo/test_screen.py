"""A terminal, or none."""

import io
from pathlib import Path

from rich.console import Console

from stream.demo.panel import SlideRow, View
from stream.demo.screen import open_screen, save_panel

FIGURES = {"auc": 0.75, "logloss": 0.5, "calibration": 1.0}
SLIDES = [SlideRow(index, 1000, 9.6e8, FIGURES, FIGURES, "promote", "not worse") for index in range(3)]


def test_without_a_terminal_each_slide_and_note_is_one_plain_line_once() -> None:
    out = io.StringIO()
    with open_screen(Console(file=out, width=80)) as screen:
        screen.show(View("a log", "replaying", slides=SLIDES[:1]))
        screen.show(View("a log", "replaying", slides=SLIDES[:3], notes=["serve died"]))
        screen.show(View("a log", "replaying", slides=SLIDES[:3], notes=["serve died"]))
    lines = out.getvalue().splitlines()
    assert [line.split(":")[0] for line in lines if line.startswith("slide")] == ["slide 0", "slide 1", "slide 2"]
    assert lines.count("! serve died") == 1
    assert sum("replaying" in line for line in lines) == 1  # one every two seconds
    assert "\x1b" not in out.getvalue()


def test_on_a_terminal_a_new_phase_is_drawn_at_once() -> None:
    out = io.StringIO()
    console = Console(file=out, width=100, height=30, force_terminal=True)
    with open_screen(console) as screen:
        screen.show(View("a log", "starting"))
        screen.show(View("a log", "starting", slides=SLIDES))  # too soon to be drawn
        drawn = out.getvalue()
        assert "starting" in drawn
        assert "promote" not in drawn
        screen.show(View("a log", "done", slides=SLIDES))
    assert "promote" in out.getvalue()


def test_a_saved_panel_is_a_picture_that_needs_nothing_from_the_network(tmp_path: Path) -> None:
    path = tmp_path / "images" / "panel.svg"
    save_panel(View("a log", "done", slides=SLIDES), path)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<svg")
    assert "promote" in text
    assert "url(http" not in text.replace('"', "")
