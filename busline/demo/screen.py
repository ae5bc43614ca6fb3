"""What the demo shows: moving bars on a terminal, plain lines where nobody watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the result."""

    what: str
    figure: str
    note: str = ""
    good: bool = True


class Screen:
    """Writes to `console`, by default standard output."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._live = self._console.is_terminal

    def say(self, text: str, style: str = "") -> None:
        """A line."""
        self._console.print(escape(text), style=style, soft_wrap=True)

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """Yields a function that moves the bar. Elsewhere than on a terminal one line tells where it stopped."""
        if self._live:
            with self._progress() as progress:
                task = progress.add_task(label, total=total)
                yield lambda done: progress.update(task, completed=done)
            return
        reached = 0

        def move(done: int) -> None:
            nonlocal reached
            reached = done

        yield move
        self.say(f"{label}: {reached:,} of {total:,}")

    def table(self, lines: Sequence[Line]) -> None:
        """The result."""
        if not self._live:
            for line in lines:
                mark = "ok  " if line.good else "LOST"
                self.say(f"{mark} {line.what:<16} {line.figure:<16} {line.note}".rstrip())
            return
        table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
        table.add_column(style="bold")
        table.add_column(justify="right")
        table.add_column(style="dim")
        for line in lines:
            mark = "[green]✓[/]" if line.good else "[bold red]✗[/]"
            table.add_row(f"{mark} {escape(line.what)}", escape(line.figure), escape(line.note))
        self._console.print(table)

    def _progress(self) -> Progress:
        return Progress(
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=40, complete_style="cyan", finished_style="green"),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
        )
