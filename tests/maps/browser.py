"""A headless Chromium and what a user does in it with a page."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

webdriver = pytest.importorskip("selenium.webdriver")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
needs_chromium = pytest.mark.skipif(BROWSER is None or DRIVER is None, reason="no Chromium with its driver here")
# A machine whose cores are shared and that has no GPU draws slowly.
PATIENCE = 60


def start(profile: Path) -> Any:
    """A headless Chromium that asks nobody anything of its own accord, and draws WebGL without a GPU."""
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (
        *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"),
        *("disable-component-update", "disable-sync", "use-angle=swiftshader", "enable-unsafe-swiftshader"),
        *("window-size=1300,850", f"user-data-dir={profile}"),
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))


class Page:
    """What a user does with a page, and what there is to see then."""

    def __init__(self, browser: Any, path: Path, address: str | None = None) -> None:
        self.browser = browser
        for log in ("browser", "performance"):
            browser.get_log(log)
        browser.get(address or path.as_uri())
        self.wait("document.getElementById('plot').dataset.level !== undefined")

    def run(self, script: str, *arguments: object) -> Any:
        return self.browser.execute_script(script, *arguments)

    def wait(self, expression: str) -> None:
        """Until an expression is true."""
        end = time.monotonic() + PATIENCE
        while not self.run(f"return {expression}"):
            assert time.monotonic() < end, f"{expression} did not come true; {self.errors()}"
            time.sleep(0.02)

    def find(self, css: str) -> Any:
        return self.browser.find_element("css selector", css)

    def texts(self, css: str) -> list[str]:
        return [
            str(text)
            for text in self.run("return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", css)
        ]

    def to_level(self, name: str, key: str) -> None:
        """Move the slider by a key."""
        self.find("#level").send_keys(key)
        self.wait(f"document.getElementById('plot').dataset.level === '{name}'")

    def drawn(self) -> np.ndarray:
        """(n, 2) what plotly draws now, in the order of the proteins."""
        values = self.run(
            """const plot = document.getElementById("plot");
            const places = proteinMap.grouped(proteinMap.columns[0]).map((one) => one.members);
            const found = Array(proteinMap.count);
            places.forEach((members, trace) => members.forEach((i, at) =>
              (found[i] = [plot.data[trace].x[at], plot.data[trace].y[at]])));
            return found.flat();"""
        )
        return np.array(values).reshape(-1, 2)

    def point_at(self, protein: int) -> None:
        """Move the pointer to where a protein is drawn at the level in sight."""
        x, y = self.run(
            """const plot = document.getElementById("plot"), box = plot.getBoundingClientRect();
            const level = proteinMap.levels.find((one) => one.name === plot.dataset.level);
            const { xaxis, yaxis } = plot._fullLayout;
            return [box.left + xaxis._offset + xaxis.l2p(level.x[arguments[0]]),
                    box.top + yaxis._offset + yaxis.l2p(level.y[arguments[0]])];""",
            protein,
        )
        chain = webdriver.ActionChains(self.browser)
        # Twice: plotly looks for what is near when the pointer moves.
        chain.w3c_actions.pointer_action.move_to_location(round(x) + 1, round(y))
        chain.w3c_actions.pointer_action.move_to_location(round(x), round(y))
        chain.perform()

    def click(self) -> None:
        webdriver.ActionChains(self.browser).click().perform()

    def search(self, text: str) -> None:
        field = self.find("#search")
        field.clear()
        field.send_keys(text)
        self.wait("document.getElementById('found').textContent !== ''")

    def errors(self) -> list[str]:
        """What the console complains of; that a machine without a GPU draws slowly is none of the page's doing."""
        entries = self.browser.get_log("browser")
        return [entry["message"] for entry in entries if "GPU stall due to ReadPixels" not in entry["message"]]

    def requests(self) -> list[str]:
        """Addresses that were asked for since the page was opened."""
        messages = [json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")]
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]
