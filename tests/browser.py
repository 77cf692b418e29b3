"""A real browser without a network: Chromium, driven by selenium."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

AXE = (files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8")
VIOLATIONS = """
const done = arguments[arguments.length - 1];
axe.run().then(found => done(found.violations.map(one => `${one.id}, ${one.help}: ${one.nodes[0].html}`)), done);
"""
MORE = (Path(__file__).parent / "accessibility.js").read_text()


@contextmanager
def browser(folder: Path) -> Iterator[webdriver.Chrome]:
    """A browser with a profile of its own in `folder`, which reaches no network.

    The test is skipped where there is no Chromium.
    """
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no browser here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={folder / 'profile'}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield opened
    finally:
        opened.quit()


def show(opened: webdriver.Chrome, width: int, dark: bool = False) -> None:
    """The page at a width in pixels, by day or by night."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


def check_page(opened: webdriver.Chrome) -> None:
    """What holds of every page: it needs nothing else, is silent, fits a telephone, and can be read by all."""
    assert opened.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)") == []
    assert opened.get_log("browser") == []
    opened.execute_script(AXE)
    for width, dark in ((400, False), (1200, True), (1200, False)):
        show(opened, width, dark)
        assert opened.execute_script("return document.documentElement.scrollWidth") <= width
        wrong = opened.execute_async_script(VIOLATIONS) + opened.execute_script(MORE)
        assert not wrong, "\n".join(wrong)
