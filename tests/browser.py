"""Chromium without a window for the tests of pages: real events, and what the page then holds."""

import contextlib
import itertools
import shutil
import time

import numpy as np

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
MISSING = None if CHROMIUM and DRIVER else "chromium and chromedriver are not installed"

_POSITION = """
const view = Bokeh.index.find_one(Bokeh.documents[0].get_model_by_name(arguments[0]))
const box = view.canvas_view.events_el.getBoundingClientRect(), frame = view.frame
return [box.left + frame.x_scale.compute(arguments[1]),
        box.top + frame.y_scale.compute(arguments[2])]
"""
_DATA = """
const data = Bokeh.documents[0].get_model_by_name(arguments[0]).data
const pairs = data instanceof Map ? [...data] : Object.entries(data)
return Object.fromEntries(pairs.map(([key, column]) => [key, Array.from(column, (entry) =>
  ArrayBuffer.isView(entry) || entry?.shape ? Array.from(entry.array ?? entry) : entry)]))
"""

_INSIDE = """
const inside = (selector) => Bokeh.index.find_one(
  Bokeh.documents[0].get_model_by_name(arguments[0])).shadow_el.querySelector(selector)
"""
_FOCUSED = """
let element = document.activeElement, name = null
const views = [...Bokeh.index.query((view) => view.model.name != null)]
while (element != null) {
  const found = views.find((view) => view.el === element)
  if (found != null) name = found.model.name
  element = element.shadowRoot?.activeElement
}
return name
"""


class Page:
    """A tab with a page of Bokeh models, which are found by their names."""

    def __init__(self, driver):
        self.driver = driver

    def run(self, code, *arguments):
        """The result of JavaScript."""
        return self.driver.execute_script(code, *arguments)

    def data(self, name):
        """The columns of a source."""
        return self.run(_DATA, name)

    def value(self, name, attribute="value"):
        """An attribute of a model."""
        return self.run(
            "return Bokeh.documents[0].get_model_by_name(arguments[0])[arguments[1]]",
            name,
            attribute,
        )

    def position(self, name, x, y):
        """Where in the window a point of a figure is, in pixels."""
        return np.array(self.run(_POSITION, name, float(x), float(y)))

    def pointer(self, kind, x, y):
        """An event of the mouse: mousePressed, mouseMoved or mouseReleased."""
        event = {"type": kind, "x": float(x), "y": float(y)}
        pressed = {"button": "left", "clickCount": 1} if kind != "mouseMoved" else {"buttons": 1}
        self.driver.execute_cdp_cmd("Input.dispatchMouseEvent", event | pressed)

    def click(self, name, x, y):
        """Press and release the mouse on a point of a figure."""
        at = self.position(name, x, y)
        self.move(name, x, y)
        self.pointer("mousePressed", *at)
        self.pointer("mouseReleased", *at)

    def drag(self, name, *points):
        """Drag the mouse through points of a figure."""
        path = [self.position(name, *point) for point in points]
        self.pointer("mousePressed", *path[0])
        for start, end in itertools.pairwise(path):
            for share in np.linspace(0, 1, 6)[1:]:
                self.pointer("mouseMoved", *(start + share * (end - start)))
        self.pointer("mouseReleased", *path[-1])

    def move(self, name, x, y):
        """Move the mouse, with no button pressed, to a point of a figure."""
        at = self.position(name, x, y)
        event = {"type": "mouseMoved", "x": at[0], "y": at[1], "buttons": 0}
        self.driver.execute_cdp_cmd("Input.dispatchMouseEvent", event)

    def press(self, name):
        """Press a button."""
        self.run(_INSIDE + "return inside('button')", name).click()

    def select(self, name, value):
        """Choose an option."""
        from selenium.webdriver.support.ui import Select

        Select(self.run(_INSIDE + "return inside('select')", name)).select_by_value(value)

    def focused(self):
        """The name of the model that has the focus of the keyboard, None if it has no name."""
        return self.run(_FOCUSED)

    def wait(self, condition, seconds=20):
        """Wait until a condition holds; what it returned."""
        end = time.monotonic() + seconds
        while not (found := condition()):
            if time.monotonic() > end:
                raise TimeoutError(f"the page did not come to it in {seconds} s")
            time.sleep(0.05)
        return found

    def complaints(self):
        """The warnings and errors of the browser's console, but for advice on how to be faster."""
        return [
            entry
            for entry in self.driver.get_log("browser")
            if entry["level"] != "INFO" and entry["source"] != "rendering"
        ]


@contextlib.contextmanager
def opened(url, size=(1440, 900)):
    """The page at an address, rendered."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    width, height = size
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--window-size={width},{height}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(service=webdriver.ChromeService(DRIVER), options=options)
    try:
        page = Page(driver)
        load(page, url)
        yield page
    finally:
        driver.quit()


def load(page, url):
    """Go to an address, and wait for Bokeh."""
    page.driver.get(url)
    ready(page)


def ready(page):
    """Wait for Bokeh."""
    page.wait(lambda: page.run("return window.Bokeh?.documents[0]?.is_idle ?? false"), 60)
