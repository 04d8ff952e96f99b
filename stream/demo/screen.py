"""Where the demo is seen: a live panel on a terminal, plain lines where there is none.

Owns how often something is drawn or printed. Must not know what is shown.
"""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.live import Live

from stream.demo.panel import FIXED_LINES, View, render, slide_line, status_line

LINE_S = 2.0  # how often a line comes where there is no terminal
FRAME_S = 0.5  # how often the panel is drawn: it shares the cores with what it shows
PICTURE_COLUMNS, PICTURE_SLIDES = 150, 16


class Screen(Protocol):
    """Where the demo shows what it does."""

    def show(self, view: View) -> None:
        """Show how things stand, not more often than is good."""


@contextmanager
def open_screen(console: Console) -> Iterator[Screen]:
    """Give a live panel on a terminal, else plain lines."""
    if not console.is_terminal:
        yield _Lines(console)
        return
    with Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:
        yield _LivePanel(live)


class _LivePanel:
    def __init__(self, live: Live) -> None:
        self._live = live
        self._drawn_s = 0.0
        self._phase = ""

    def show(self, view: View) -> None:
        now_s = time.monotonic()
        if view.phase != self._phase or now_s - self._drawn_s >= FRAME_S:
            self._drawn_s, self._phase = now_s, view.phase
            size = self._live.console.size
            self._live.update(render(view, width=size.width, height=size.height - 1), refresh=True)


class _Lines:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._told_s = 0.0
        self._n_slides = self._n_notes = 0

    def show(self, view: View) -> None:
        for note in view.notes[self._n_notes :]:
            self._say(f"! {note}")
        for slide in view.slides[self._n_slides :]:
            self._say(slide_line(slide))
        self._n_notes, self._n_slides = len(view.notes), len(view.slides)
        if time.monotonic() - self._told_s >= LINE_S:
            self._told_s = time.monotonic()
            self._say(status_line(view))

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def save_panel(view: View, path: Path) -> None:
    """Write the panel as an SVG picture; it names no font on the network."""
    console = Console(record=True, width=PICTURE_COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(render(view, width=PICTURE_COLUMNS, height=FIXED_LINES + PICTURE_SLIDES))
    without_fonts = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(console.export_svg(title="freshrank demo", code_format=without_fonts), encoding="utf-8")
