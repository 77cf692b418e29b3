"""Show the progress of a long call: a bar on a terminal and in a notebook, lines elsewhere."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from html import escape
from importlib.util import find_spec
from typing import Any

ShowProgress = Callable[[int, str], None]
"""Called with the number of completed steps and a description of the present one."""

OFTEN = 0.1  # seconds between two updates of a bar

log = logging.getLogger("aafit")


@contextmanager
def progress(title: str, total: int, verbose: bool = True) -> Iterator[ShowProgress]:
    """Show progress within the block, on stderr.

    A terminal (if rich is installed) and a notebook show a bar. Elsewhere the messages of the logger "aafit" are shown
    as lines; if the program has set up logging, its handlers and levels decide about them in every case.

    Args:
        title: name of the call.
        total: number of its steps.
        verbose: whether to show anything.

    Returns:
        A context manager; its value moves the bar, and does nothing where there is none.

    Example:
        >>> with progress("tune", 3, verbose=False) as show:
        ...     show(1, "epoch 1")
    """
    if not verbose:
        yield lambda done, text: None
    elif _in_notebook():
        with _without_lines():
            yield _rarely(_notebook_bar(title, total), total)
    elif sys.stderr.isatty() and find_spec("rich"):
        with _without_lines(), _terminal_bar(title, total) as bar:
            yield _rarely(bar, total)
    else:
        with _lines():
            yield lambda done, text: None


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    return ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None


def _notebook_bar(title: str, total: int) -> ShowProgress:
    # IPython's own display: a bar of rich would need the package ipywidgets here.
    display: Any = sys.modules["IPython"].display.display
    began = time.perf_counter()

    def content(done: int, text: str) -> dict[str, str]:
        line = f"{title} {time.perf_counter() - began:.0f} s  {text}"
        bar = f'<progress value="{done}" max="{max(total, 1)}" aria-label="{escape(title)}"></progress>'
        return {"text/plain": line, "text/html": f"<div>{bar} {escape(line)}</div>"}

    handle = display(content(0, ""), raw=True, display_id=True)
    return lambda done, text: handle.update(content(done, text), raw=True)


@contextmanager
def _terminal_bar(title: str, total: int) -> Iterator[ShowProgress]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    text_of = TextColumn("{task.fields[text]}", markup=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn(), text_of)
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(title, total=max(total, 1), text="")
        yield lambda done, text: bars.update(task, completed=done, text=text)


def _rarely(bar: ShowProgress, total: int) -> ShowProgress:
    """Return `bar` with at most an update each `OFTEN` seconds, besides the last one."""
    last = 0.0

    def show(done: int, text: str) -> None:
        nonlocal last
        now = time.perf_counter()
        if done >= total or now - last > OFTEN:
            last = now
            bar(done, text)

    return show


@contextmanager
def _lines() -> Iterator[None]:
    """Within the block, write this program's messages to stderr, unless the program has set up logging."""
    if log.hasHandlers():
        yield
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


@contextmanager
def _without_lines() -> Iterator[None]:
    """Within the block, keep this program's messages from handlers that write to a terminal: they break a bar."""
    with ExitStack() as undo:
        for handler in (*log.handlers, *logging.getLogger().handlers):
            stream = getattr(handler, "stream", None)
            shown = stream in (sys.stdout, sys.stderr) if _in_notebook() else getattr(stream, "isatty", bool)()
            if shown:
                handler.addFilter(_is_warning)
                undo.callback(handler.removeFilter, _is_warning)
        yield


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or not record.name.startswith("aafit")
