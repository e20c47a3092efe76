"""The page of `explore.serve`: Bokeh's widgets and figures around an `Explorer`."""

import html
import time
from typing import Any

import numpy as np
from bokeh import events, palettes
from bokeh.core.properties import value
from bokeh.layouts import column, row
from bokeh.models import (
    BasicTicker,
    Button,
    ColorBar,
    ColumnDataSource,
    CustomJS,
    Div,
    FactorRange,
    InlineStyleSheet,
    Label,
    Legend,
    LegendItem,
    LinearColorMapper,
    Range1d,
    Select,
    Slider,
    Span,
    Spinner,
    Toggle,
    Whisker,
)
from bokeh.plotting import figure

from tfpvae.explore import Encoded, Explorer, ellipse, stroke

_TEMPLATE = """
{% block preamble %}<link rel="icon" href="data:,">{% endblock %}
{% block postamble %}<style>
  body { --bokeh-base-font: system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
         background: #f4f5f7; height: auto !important; }
</style>{% endblock %}
"""
_CARD = {
    "background": "white",
    "border": "1px solid #dfe1e6",
    "border-radius": "8px",
    "padding": "10px 12px",
}
_TEXT = """
:host { color: #1d2129; }
h1 { font-size: 20px; margin: 0; } h2 { font-size: 14px; margin: 0 0 2px 0; }
p { margin: 2px 0 0 0; color: #4a4f5a; font-size: 12px; }
table { border-collapse: collapse; width: 100%; font-size: 12px; }
td, th { text-align: right; padding: 1px 6px; font-variant-numeric: tabular-nums; }
th { position: sticky; top: 0; background: white; color: #4a4f5a; font-weight: 600; }
.example { color: #b34700; } .drawing { color: #b0107f; }
"""
_EXAMPLE, _DRAWING, _INK, _GREY = "#d95f02", "#e7298a", "#1d2129", "#4a4f5a"
_FONT = "system-ui, Roboto, Arial, sans-serif"
_RIGHT = 510  # pixels of the cards on the right
_PLANE = 400  # pixels of a side
_NEAR = 8  # pixels from a code that still hit it
_PATIENCE = 2.0  # seconds after which what the browser has not confirmed counts as shown
_MAX_CLASSES = 20
_MAX_COLUMNS = 60
_STEPS = 40  # of an arrow key through the range of a unit

# The browser says when it has painted what it was sent: the next answer waits for it.
_SHOWN = """
const answer = () => { shown.data = {serial: sent.data.serial} }
if (document.hidden) answer(); else requestAnimationFrame(() => setTimeout(answer))
"""
_HOVER = "if (toggle.active) pointer.data = {x: [cb_obj.x], y: [cb_obj.y]}"
_KEYS = """
const steps = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowDown: [0, -1], ArrowUp: [0, 1]}
const view = Bokeh.index.find_one(plane)
if (view != null && !view.el.dataset.keys) {
  view.el.dataset.keys = "yes"
  const focused = view.canvas_view.events_el
  focused.tabIndex = 0
  focused.setAttribute("role", "application")
  focused.setAttribute("aria-label", "Latent plane: arrow keys move the code")
  let count = 0
  view.el.addEventListener("keydown", (event) => {
    const step = steps[event.key]
    if (step == null || event.ctrlKey || event.altKey || event.metaKey) return
    event.preventDefault()
    const size = event.shiftKey ? 5 : 1
    keys.data = {x: [size * step[0]], y: [size * step[1]], count: [count++]}
  })
}
"""


class Page:
    """One browser tab: what it shows, and what happens when something in it is moved.

    Answers are computed for the latest of what was asked only, and one at a time: the next when the
    browser has painted the last.

    Args:
      explorer: the model; tabs share it.
      document: Bokeh's document of the tab.
      title: of the page.
    """

    def __init__(self, explorer: Explorer, document: Any, title: str) -> None:
        self.explorer, self.title = explorer, title
        self.z = explorer.start.copy()
        self.seed = 0
        self.axes = tuple(int(d) for d in explorer.order[:2])
        self.example: int | None = None
        self.label = 0
        self._encoded: dict[str, Encoded] = {}
        self._wishes: set[str] = set()
        self._quiet = False
        self._serial = self._confirmed = 0
        self._sent_at = 0.0
        self.histogram: Any = None
        self.marks: dict[str, Any] = {}
        self.sent = ColumnDataSource({"serial": [0]}, name="sent")
        self.shown = ColumnDataSource({"serial": [0]})
        self.sent.js_on_change(
            "data", CustomJS(args={"sent": self.sent, "shown": self.shown}, code=_SHOWN)
        )
        self.shown.on_change("data", self._on_shown)
        parts = [self._left(document), self._middle(), self._right()]
        self._show_code()
        self._show_plane()
        document.title = f"{title} - tfpvae"
        document.template = _TEMPLATE
        document.add_root(column(self._header(), row(*parts, spacing=12), margin=14, spacing=10))

    # What is on the page.

    def _header(self) -> Any:
        text = f"<h1>{html.escape(self.title)}</h1><p>{html.escape(self.explorer.description)}</p>"
        return _div(text, width=1300)

    def _left(self, document: Any) -> Any:
        explorer = self.explorer
        self.hover = Toggle(label="Follow the pointer", width=130, name="hover")
        controls: list[Any] = []
        if explorer.latent_size > 1:
            options = [(str(d), self._unit(d)) for d in map(int, explorer.order)]
            self.selects = [
                Select(value=str(d), options=options, title=title, width=145, name=title)
                for d, title in zip(self.axes, ("across", "up"), strict=True)
            ]
            for select in self.selects:
                select.on_change("value", self._on_axes)
            controls += self.selects
        self.classes: Any = None
        if explorer.num_classes is not None:
            names = [str(k) for k in range(explorer.num_classes)]
            self.classes = Select(value="0", options=names, title="y", width=70, name="y")
            self.classes.on_change("value", self._on_class)
            controls.append(self.classes)
        self.plane = self._plane(document)
        controls.append(column(_div("&nbsp;", width=100, height=14), self.hover))
        line = explorer.latent_size == 1
        hint = (
            "Drag, or focus it and press arrow keys, with shift for larger steps."
            + (" Click a code to see its example." if explorer.codes is not None else "")
            + (" The height means nothing." if line else "")
            + (" Dashed: the prior at 1 and 2 sd." if explorer.prior_normal is not None else "")
        )
        self.hint = _div(f"<p>{hint}</p>", width=_PLANE + 60)
        return _card(
            _div(f"<h2>Latent {'line' if line else 'plane'}</h2>"),
            row(*controls, spacing=6),
            self.plane,
            self.hint,
        )

    def _plane(self, document: Any) -> Any:
        explorer = self.explorer
        plane = figure(
            frame_width=_PLANE,
            frame_height=_PLANE,
            tools="wheel_zoom,reset,save",
            active_scroll="wheel_zoom",
            x_range=Range1d(0, 1),
            y_range=Range1d(0, 1),
            output_backend="canvas",
            name="plane",
        )
        _plain(plane)
        plane.toolbar.logo = None
        plane.toolbar_location = "below"
        plane.grid.grid_line_color = "#eceef1"
        self.rings = ColumnDataSource({"xs": [], "ys": []})
        plane.multi_line(
            "xs", "ys", source=self.rings, color="#8a9099", line_dash="dashed", line_width=1
        )
        self.points = ColumnDataSource({"x": [], "y": []}, name="points")
        if explorer.codes is not None:
            self._draw_codes(plane)
        if explorer.latent_size == 1:
            plane.yaxis.visible = False
            plane.ygrid.visible = False
        self.ellipses = ColumnDataSource({"xs": [], "ys": [], "color": [], "width": []})
        # What moves is on a canvas of its own: the codes are not painted anew.
        over: dict[str, Any] = {"level": "overlay"}
        white: dict[str, Any] = {"color": "white", "line_width": 5, "alpha": 0.8}
        plane.multi_line("xs", "ys", source=self.ellipses, **white, **over)
        plane.multi_line(
            "xs", "ys", source=self.ellipses, color="color", line_width="width", **over
        )
        self.means = ColumnDataSource({"x": [], "y": [], "color": []}, name="means")
        plane.scatter(
            "x",
            "y",
            source=self.means,
            size=9,
            fill_color="color",
            line_color="white",
            marker="square",
            **over,
        )
        self.cursor = ColumnDataSource({"x": [], "y": []}, name="cursor")
        for width, color in ((7, "white"), (3, _INK)):
            plane.scatter(
                "x",
                "y",
                source=self.cursor,
                size=20,
                line_width=width,
                color=color,
                marker="cross",
                **over,
            )
        # Text in a Div would be laid out anew, and the page with it.
        self.position = Label(
            x=6,
            y=_PLANE - 6,
            x_units="screen",
            y_units="screen",
            text="",
            text_baseline="top",
            text_font=_FONT,
            text_font_size="12px",
            text_color=_INK,
            background_fill_color="white",
            background_fill_alpha=0.85,
            level="overlay",
        )
        plane.add_layout(self.position)
        plane.on_event(events.PanStart, self._on_drag)
        plane.on_event(events.Pan, self._on_drag)
        plane.on_event(events.Tap, self._on_tap)
        self.pointer = ColumnDataSource({"x": [0.0], "y": [0.0]})
        self.pointer.on_change("data", self._on_pointer)
        moved = CustomJS(args={"toggle": self.hover, "pointer": self.pointer}, code=_HOVER)
        plane.js_on_event(events.MouseMove, moved)
        self.keys = ColumnDataSource({"x": [0.0], "y": [0.0], "count": [-1]})
        self.keys.on_change("data", self._on_keys)
        # What no glyph uses has to be reached from the document all the same.
        plane.tags = [self.sent, self.shown, self.pointer, self.keys]
        listening = CustomJS(args={"plane": plane, "keys": self.keys}, code=_KEYS)
        document.js_on_event(events.DocumentReady, listening)
        return plane

    def _draw_codes(self, plane: Any) -> None:
        explorer = self.explorer
        labels, num = explorer.labels, len(explorer.codes)
        style = {"size": 7 if num < 500 else 5, "alpha": 0.75, "line_color": None}
        blank = {"x": np.zeros(num), "y": np.zeros(num)}
        if labels is not None and labels.dtype.kind == "f":
            mapper = LinearColorMapper(
                palettes.Viridis256, low=float(np.nanmin(labels)), high=float(np.nanmax(labels))
            )
            self.points.data = {**blank, "label": labels}
            color = {"field": "label", "transform": mapper}
            plane.scatter("x", "y", source=self.points, fill_color=color, **style)
            bar = ColorBar(color_mapper=mapper, width=10, ticker=BasicTicker(), padding=4)
            plane.add_layout(bar, "right")
            return
        if labels is None:
            plane.scatter("x", "y", source=self.points, fill_color="#5b7ea8", **style)
            return
        names, classes = np.unique(labels, return_inverse=True)
        colours = _class_colours(len(names))
        self.points.data = {**blank, "color": [colours[k] for k in classes]}
        plane.scatter("x", "y", source=self.points, fill_color="color", **style)
        if len(names) <= _MAX_CLASSES:
            keys = [
                LegendItem(label=_short(str(name)), renderers=[_key(plane, colour)])
                for name, colour in zip(names, colours, strict=True)
            ]
            legend = Legend(
                items=keys,
                border_line_color=None,
                padding=2,
                spacing=1,
                margin=4,
                label_text_font=_FONT,
                label_text_font_size="11px",
                label_standoff=2,
                glyph_width=14,
            )
            plane.add_layout(legend, "right")

    def _middle(self) -> Any:
        explorer = self.explorer
        self.sliders = {}
        for d in map(int, explorer.order):
            low, high = (float(v) for v in explorer.limits[d])
            slider = Slider(
                start=round(low, 2),
                end=round(high, 2),
                value=float(np.clip(self.z[d], low, high)),
                step=0.01,
                title=self._unit(d),
                width=180,
                name=f"z{d}",
            )
            slider.on_change("value", lambda attr, old, new, d=d: self._on_slider(d, new))
            self.sliders[d] = slider
        reset = Button(label="Reset", width=88, name="reset")
        again = Button(label="New draw", width=88, name="new draw")
        reset.on_click(lambda: self._move(explorer.start))
        again.on_click(self._on_new_draw)
        box = column(
            *self.sliders.values(),
            height=min(54 * explorer.latent_size + 6, 330),
            width=214,
            styles={"overflow-y": "auto", "overflow-x": "hidden"},
            name="sliders",
        )
        sorted_by = ""
        if explorer.codes is not None and explorer.latent_size > 1:
            sorted_by = (
                "KL, in nats" if explorer.kl_by_unit is not None else "variance of the codes"
            )
            sorted_by = f"<p>sorted by {sorted_by}</p>"
        self.table = _div("", width=208, height=230, name="table")
        self.table.styles = {"overflow-y": "auto"}
        return _card(
            _div(f"<h2>Latent units</h2>{sorted_by}", width=208),
            row(reset, again, spacing=8),
            box,
            self.table,
            width=240,
        )

    def _right(self) -> Any:
        explorer = self.explorer
        images = explorer.image_shape is not None
        kind: Any = _Pictures if images else _Columns
        self.code_view = kind(
            explorer, ("mean", "standard deviation", "one draw"), (150, 150, 150), "code"
        )
        below = []
        if explorer.codes is not None:
            self.chosen = Spinner(
                low=0,
                high=len(explorer.codes) - 1,
                step=1,
                width=86,
                name="chosen",
                placeholder="number",
            )
            self.chosen.on_change("value", self._on_chosen)
            self.example_view = kind(explorer, ("x", "reconstruction"), (90, 90), "example")
            self.example_text = _div(_NO_EXAMPLE, width=196 if images else 470, height=54)
            self.example_view.figure.visible = images  # Of a table it is high, and empty still.
            title = _div("<h2 class='example'>An example</h2>", width=100)
            items = row(title, self.chosen), self.example_view.figure, self.example_text
            size: Any = {"width": 220, "height": 286} if images else {"width": _RIGHT}
            below.append(_card(*items, **size))
        if images:
            self.canvas = np.zeros(explorer.image_shape[:2])
            self.pen: Any = None
            sides = 146, 96
            self.drawing_view = _Pictures(
                explorer, ("draw here", "reconstruction"), sides, "drawing"
            )
            drawn = self.drawing_view.figure
            drawn.on_event(events.PanStart, self._on_pen_down)
            drawn.on_event(events.Pan, self._on_pen)
            drawn.on_event(events.PanEnd, self._on_pen_up)
            drawn.on_event(events.Tap, self._on_pen_down)
            clear = Button(label="Clear", width=70, name="clear")
            clear.on_click(self._on_clear)
            self.drawing_text = _div(_NO_DRAWING, width=254, height=34)
            self.drawing_view.show([self._drawn(), None])
            title = _div("<h2 class='drawing'>A drawing</h2>", width=175)
            below.append(_card(row(title, clear), drawn, self.drawing_text, width=280, height=286))
        top = _card(_div("<h2>p(x|z) at this z</h2>"), self.code_view.figure, width=_RIGHT)
        parts = [top, row(*below, spacing=10) if images else column(*below, spacing=10)]
        if explorer.elbo is not None:
            parts.append(self._elbo_card())
        return column(*parts, spacing=10)

    def _elbo_card(self) -> Any:
        elbo = self.explorer.elbo
        low, high = np.quantile(elbo, 0.005), elbo.max()
        counts, edges = np.histogram(elbo, bins=50, range=(low, high))
        self.histogram = figure(
            width=480,
            height=96,
            tools="",
            toolbar_location=None,
            x_range=Range1d(low - 0.03 * (high - low), high + 0.03 * (high - low)),
            y_range=Range1d(0, 1.08 * counts.max()),
            name="elbo",
        )
        _plain(self.histogram)
        self.histogram.yaxis.visible = False
        self.histogram.grid.visible = False
        self.histogram.quad(
            top=counts,
            bottom=0,
            left=edges[:-1],
            right=edges[1:],
            color="#a9b4c2",
            line_color="white",
        )
        for name, colour in (("example", _EXAMPLE), ("drawing", _DRAWING)):
            mark = Span(
                location=0, dimension="height", line_color=colour, line_width=3, visible=False
            )
            self.histogram.add_layout(mark)
            self.marks[name] = mark
        title = _div("<h2>ELBO of the data, in nats</h2>", width=300)
        return _card(title, self.histogram, width=_RIGHT)

    # What happens.

    def _on_drag(self, event: Any) -> None:
        self._move_in_plane(event.x, event.y)

    def _on_pointer(self, attr: str, old: Any, new: Any) -> None:
        self._move_in_plane(new["x"][0], new["y"][0])

    def _on_keys(self, attr: str, old: Any, new: Any) -> None:
        x, y = self._projected(self.z)
        ranges = self.plane.x_range, self.plane.y_range
        across, up = (abs(r.end - r.start) / _STEPS for r in ranges)
        self._move_in_plane(x + across * new["x"][0], y + up * new["y"][0])

    def _on_tap(self, event: Any) -> None:
        hit = self._nearest(event.x, event.y)
        if hit is None:
            self._move_in_plane(event.x, event.y)
        else:
            self._choose(hit)

    def _on_slider(self, unit: int, value: float) -> None:
        if not self._quiet:
            self._move(np.where(np.arange(len(self.z)) == unit, value, self.z))

    def _on_axes(self, attr: str, old: Any, new: Any) -> None:
        self.axes = tuple(int(select.value) for select in self.selects)
        self._show_plane()

    def _on_class(self, attr: str, old: Any, new: Any) -> None:
        self.label = int(new)
        if not self._quiet:
            self._ask("code", "drawing")

    def _on_new_draw(self) -> None:
        self.seed += 1
        self._ask("code")

    def _on_chosen(self, attr: str, old: Any, new: Any) -> None:
        if not self._quiet and new is not None:
            self._choose(int(np.clip(new, 0, len(self.explorer.codes) - 1)))

    def _on_pen_down(self, event: Any) -> None:
        self.pen = self.drawing_view.pixel(event)
        self._ink(self.pen, self.pen)

    def _on_pen(self, event: Any) -> None:
        start, self.pen = self.pen, self.drawing_view.pixel(event)
        self._ink(self.pen if start is None else start, self.pen)

    def _on_pen_up(self, event: Any) -> None:
        self.pen = None

    def _on_clear(self) -> None:
        self.canvas = np.zeros_like(self.canvas)
        self._ask("drawing")

    def _on_shown(self, attr: str, old: Any, new: Any) -> None:
        self._confirmed = int(new["serial"][0])
        self._answer()

    # What follows from it.

    def _move_in_plane(self, x: float, y: float) -> None:
        if x is None or y is None:
            return
        z = self.z.copy()
        z[self.axes[0]] = x
        if len(self.axes) > 1:
            z[self.axes[1]] = y
        self._move(z)

    def _move(self, z: np.ndarray) -> None:
        self.z = np.asarray(z, float).copy()
        self._ask("code")

    def _choose(self, index: int) -> None:
        self.example = index
        self._quiet, quiet = True, self._quiet
        self.chosen.value = index
        if self.classes is not None:
            y = self.explorer.condition(index)
            self.label = int(y if np.ndim(y) == 0 else np.argmax(y))
            self.classes.value = str(self.label)
        self._quiet = quiet
        self._ask("example", "code")

    def _ink(self, start: Any, end: Any) -> None:
        width = max(1.0, self.canvas.shape[0] / 14)
        self.canvas = stroke(self.canvas, start, end, width)
        self._ask("drawing")

    def _ask(self, *wishes: str) -> None:
        self._wishes.update(wishes)
        self._answer()

    def _answer(self) -> None:
        """Compute and send what was asked last, unless the browser is still busy with the last."""
        waiting = self._serial != self._confirmed and time.monotonic() - self._sent_at < _PATIENCE
        if waiting or not self._wishes:
            return
        wishes, self._wishes = self._wishes, set()
        if "example" in wishes:
            self._show_example()
        if "code" in wishes:
            self._show_code()
        if "drawing" in wishes:
            self._show_drawing()
        self._serial, self._sent_at = self._serial + 1, time.monotonic()
        self.sent.data = {"serial": [self._serial], "z": [self.z.tolist()]}

    # What it then shows.

    def _show_code(self) -> None:
        found = self.explorer.decode(self.z, self._condition(), self.seed)
        self.code_view.decoded(found)
        x, y = self._projected(self.z)
        self.cursor.data = {"x": [x], "y": [y]}
        shown = ", ".join(f"{self._name(d)} = {_rounded(self.z[d])}" for d in self.axes)
        self.position.text = shown
        self._quiet, quiet = True, self._quiet
        for d, slider in self.sliders.items():
            value = round(float(np.clip(self.z[d], slider.start, slider.end)), 2)
            if abs(slider.value - value) > 0.005:
                slider.value = value
        self._quiet = quiet

    def _show_example(self) -> None:
        explorer, index = self.explorer, self.example
        if index is None:
            return
        found = explorer.encode(explorer.x[index], explorer.condition(index))
        self.z = found.loc.copy()
        self._encoded["example"] = found
        self.example_view.example(found)
        self.example_view.figure.visible = True
        title = f"row {explorer.indices[index]}"
        if explorer.labels is not None:
            label = explorer.labels[index]
            title += ", label " + (
                f"{label:.4g}" if explorer.labels.dtype.kind == "f" else str(label)
            )
        self.example_text.text = f"<p>{html.escape(title)}<br>{self._elbo_text(found)}</p>"
        self._show_posteriors("example")

    def _show_drawing(self) -> None:
        if not self.canvas.any():
            self._encoded.pop("drawing", None)
            self.drawing_view.show([self._drawn(), None])
            self.drawing_text.text = _NO_DRAWING
            self._show_posteriors("example")
            return
        found = self.explorer.encode(self.explorer.drawing(self.canvas), self._condition(None))
        self._encoded["drawing"] = found
        self.drawing_view.show([self._drawn(), self.explorer.images(found.reconstruction.mean)])
        self.drawing_text.text = f"<p>{self._elbo_text(found)}</p>"
        self._show_posteriors("drawing")

    def _show_plane(self) -> None:
        """Everything in the plane, after another choice of the units that span it."""
        explorer = self.explorer
        ranges = self.plane.x_range, self.plane.y_range
        limits = [explorer.limits[d] for d in self.axes]
        if len(limits) == 1:
            limits.append(np.array([-3.0, 3.0]))
        for shown, (low, high) in zip(ranges, limits, strict=True):
            shown.update(start=float(low), end=float(high))
            shown.reset_start, shown.reset_end = float(low), float(high)
        for axis, d in zip((self.plane.xaxis, self.plane.yaxis), self.axes, strict=False):
            axis.axis_label = self._name(d)
        if explorer.codes is not None:
            x, y = self._projected(explorer.codes)
            self.points.data = {**self.points.data, "x": x, "y": y}
        if explorer.prior_normal is not None:
            loc, sd = explorer.prior_normal
            rings = [self._ring(loc, np.diag(sd**2), s) for s in (1, 2)]
            self.rings.data = {"xs": [r[:, 0] for r in rings], "ys": [r[:, 1] for r in rings]}
        x, y = self._projected(self.z)
        self.cursor.data = {"x": [x], "y": [y]}
        self._show_posteriors()

    def _show_posteriors(self, latest: str | None = None) -> None:
        """The posteriors of example and drawing in the plane, and the numbers of the latest."""
        colours = {"example": _EXAMPLE, "drawing": _DRAWING}
        rings: dict[str, list[Any]] = {"xs": [], "ys": [], "color": [], "width": []}
        means: dict[str, list[Any]] = {"x": [], "y": [], "color": []}
        for name, found in self._encoded.items():
            for num_sd, width in ((1, 2.5), (2, 1.5)):
                points = self._ring(found.loc, found.covariance, num_sd)
                ring = points[:, 0], points[:, 1], colours[name], width
                for key, entry in zip(rings, ring, strict=True):
                    rings[key].append(entry)
            x, y = self._projected(found.loc)
            for key, entry in zip(means, (x, y, colours[name]), strict=True):
                means[key].append(entry)
        self.ellipses.data, self.means.data = rings, means
        for name, mark in self.marks.items():
            found_elbo = self._encoded[name].elbo if name in self._encoded else None
            mark.update(visible=found_elbo is not None, location=found_elbo or 0.0)
            if found_elbo is not None and self.histogram is not None:
                shown = self.histogram.x_range
                margin = 0.03 * (self.explorer.elbo.max() - found_elbo)
                shown.start = min(shown.start, found_elbo - margin)
        if latest is not None:
            self.table.text = self._posterior_table(latest)

    def _posterior_table(self, name: str) -> str:
        found = self._encoded.get(name)
        if found is None:
            return ""
        kl = found.kl_by_unit
        heads = "".join(
            f"<th>{h}</th>" for h in ("unit", "mean", "sd", *(["KL"] * (kl is not None)))
        )
        rows = []
        for d in self.explorer.order:
            cells = [str(d), _rounded(found.loc[d]), _rounded(found.sd[d])]
            cells += [] if kl is None else [_rounded(kl[d])]
            rows.append("<tr>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
        total = "" if found.kl is None else f", KL {found.kl:.2f} nats"
        return (
            f"<h2 class='{name}'>q(z|x) of the {name}</h2><p>{total.strip(', ')}</p>"
            f"<table><tr>{heads}</tr>{''.join(rows)}</table>"
        )

    def _elbo_text(self, found: Encoded) -> str:
        if found.elbo is None:
            return "no ELBO: without densities"
        text = f"ELBO {found.elbo:.1f} nats"
        if self.explorer.elbo is not None:
            share = np.mean(self.explorer.elbo > found.elbo)
            text += f", lower than that of {share:.0%} of the data"
        return text

    def _condition(self, example: Any = "chosen") -> Any:
        """The y that z goes with: the chosen label, or that of the chosen example."""
        if self.explorer.is_conditional and self.explorer.num_classes is None:
            return self.explorer.condition(self.example)
        return self.explorer.condition(label=self.label)

    def _drawn(self) -> np.ndarray:
        shape = self.explorer.image_shape
        return (
            np.broadcast_to(self.canvas[..., None], shape) * np.ptp(self.explorer.scale)
            + (self.explorer.scale[0])
        )

    def _projected(self, z: np.ndarray) -> tuple[Any, Any]:
        """Codes `[..., D]` in the plane; along a line the second coordinate only spreads them."""
        x = z[..., self.axes[0]]
        if len(self.axes) > 1:
            return x, z[..., self.axes[1]]
        if z.ndim == 1:
            return x, 0.0
        return x, np.random.default_rng(0).uniform(-2.0, 2.0, len(z))

    def _ring(self, loc: np.ndarray, covariance: np.ndarray, num_sd: float) -> np.ndarray:
        units = list(self.axes)
        if len(units) > 1:
            return ellipse(loc[units], covariance[np.ix_(units, units)], num_sd)
        flat = np.diag([covariance[units[0], units[0]], (0.35 / num_sd) ** 2])
        return ellipse([loc[units[0]], 0.0], flat, num_sd)

    def _nearest(self, x: float, y: float) -> int | None:
        """The code under the pointer."""
        if self.explorer.codes is None:
            return None
        points = self._projected(self.explorer.codes)
        ranges = self.plane.x_range, self.plane.y_range
        pixels = [
            (p - at) / abs(r.end - r.start) * _PLANE
            for p, at, r in zip(points, (x, y), ranges, strict=True)
        ]
        distance = np.hypot(*pixels)
        hit = int(distance.argmin())
        return hit if distance[hit] <= _NEAR else None

    def _name(self, unit: int) -> str:
        return f"z[{unit}]"

    def _unit(self, unit: int) -> str:
        by_unit = self.explorer.kl_by_unit
        return self._name(unit) + ("" if by_unit is None else f" (KL {_rounded(by_unit[unit])})")


_NO_EXAMPLE = "<p>Click a code in the plane, or choose a number.</p>"
_NO_DRAWING = "<p>Draw with the mouse: its posterior is shown in the plane.</p>"


class _Pictures:
    """Images side by side, with titles above and notes below."""

    def __init__(
        self, explorer: Explorer, titles: tuple[str, ...], sides: tuple[int, ...], name: str
    ) -> None:
        self.explorer = explorer
        height, width, _ = explorer.image_shape
        # Positions are pixels of the screen, from the lower left of the first image.
        scales = [side / max(height, width) for side in sides]
        self.widths, self.heights = ([s * size for s in scales] for size in (width, height))
        self.left = [sum(self.widths[:k]) + 14 * k for k in range(len(sides))]
        total, top = self.left[-1] + self.widths[-1], max(self.heights)
        bottom = 22 if len(sides) == 3 else 4  # Room for the notes.
        self.figure = figure(
            width=round(total) + 2,
            height=round(top) + 20 + bottom,
            sizing_mode="fixed",  # Or a card stretches it.
            x_range=Range1d(-1, total + 1),
            y_range=Range1d(-bottom, top + 20),
            tools="",
            toolbar_location=None,
            min_border=0,
            name=name,
        )
        _plain(self.figure)
        self.figure.axis.visible = False
        self.figure.grid.visible = False
        self.figure.outline_line_color = None
        centres = [left + width / 2 for left, width in zip(self.left, self.widths, strict=True)]
        self.figure.rect(
            centres,
            [height / 2 for height in self.heights],
            self.widths,
            self.heights,
            fill_color="#eceef1",
            line_color="#c9cdd3",
        )
        self.source = ColumnDataSource(
            {key: [] for key in ("image", "x", "width", "height")}, name=f"{name} images"
        )
        self.figure.image_rgba("image", x="x", y=0, dw="width", dh="height", source=self.source)
        style = {"text_align": "center", "text_font_size": "12px", "text_font": value(_FONT)}
        self.figure.text(
            centres,
            [height + 3 for height in self.heights],
            text=list(titles),
            text_baseline="bottom",
            text_color=_INK,
            **style,
        )
        self.notes = ColumnDataSource({"x": centres, "text": [""] * len(sides)})
        self.figure.text(
            "x", -4, "text", text_baseline="top", text_color=_GREY, source=self.notes, **style
        )

    def decoded(self, found: Any) -> None:
        images = [found.mean, found.sd, found.draw]
        self.show([None if v is None else self.explorer.images(v) for v in images], sd=1)
        note = "" if found.sd is None else f"0 to {np.max(found.sd):.3g}"
        self.notes.data = {**self.notes.data, "text": ["", note, ""]}

    def example(self, found: Encoded) -> None:
        images = [found.x, found.reconstruction.mean]
        self.show([self.explorer.images(v) for v in images])

    def show(self, images: list[Any], sd: int | None = None) -> None:
        """Show images `[H, W, C]`, or none; that of number `sd` in other colours."""
        there = [k for k, image in enumerate(images) if image is not None]
        pixels = [
            _pixels(images[k], (0.0, float(np.max(images[k]))), palettes.Inferno256)
            if k == sd
            else _pixels(images[k], self.explorer.scale, palettes.Greys256)
            for k in there
        ]
        self.source.data = {
            "image": pixels,
            "x": [self.left[k] for k in there],
            "width": [self.widths[k] for k in there],
            "height": [self.heights[k] for k in there],
        }

    def pixel(self, event: Any) -> tuple[float, float]:
        """Where in the first image an event is: in its pixels, from its left and its top."""
        height, width, _ = self.explorer.image_shape
        return event.x * width / self.widths[0], height - event.y * height / self.heights[0]


class _Columns:
    """Columns of a table as rows: mean, standard deviation and a draw, or an example."""

    def __init__(
        self, explorer: Explorer, titles: tuple[str, ...], sides: tuple[int, ...], name: str
    ) -> None:
        self.explorer = explorer
        self.names = [str(n) for n in explorer.names[:_MAX_COLUMNS]]
        num = len(self.names)
        unique = (
            self.names
            if len(set(self.names)) == num
            else [f"{k} {n}" for k, n in enumerate(self.names)]
        )
        self.names = unique
        self.figure = figure(
            width=480,
            height=64 + max(17 * num, 60),
            x_range=Range1d(-4, 4),
            y_range=FactorRange(*unique[::-1]),
            tools="",
            toolbar_location=None,
            name=name,
        )
        _plain(self.figure)
        self.figure.xaxis.axis_label = (
            "standard deviations of the data from its mean"
            if explorer.x is not None
            else "standard deviations from the mean of draws"
        )
        self.figure.ygrid.grid_line_color = "#eceef1"
        self.figure.xgrid.grid_line_color = "#eceef1"
        empty: dict[str, list[Any]] = {k: [] for k in ("y", "mean", "low", "high", "other", "text")}
        self.source = ColumnDataSource(empty, name=f"{name} images")
        whisker = Whisker(
            base="y",
            upper="high",
            lower="low",
            source=self.source,
            dimension="width",
            line_color="#5b7ea8",
            line_width=2,
            level="annotation",
        )
        whisker.upper_head.size = whisker.lower_head.size = 6
        whisker.upper_head.line_color = whisker.lower_head.line_color = "#5b7ea8"
        self.figure.add_layout(whisker)
        self.figure.scatter("mean", "y", source=self.source, size=8, color="#27527f")
        other = {"marker": "x", "line_color": _EXAMPLE, "line_width": 2, "size": 8}
        self.figure.scatter("other", "y", source=self.source, **other)
        self.figure.text(
            3.95,
            "y",
            text="text",
            source=self.source,
            text_align="right",
            text_color="#4a4f5a",
            text_baseline="middle",
            text_font_size="11px",
        )
        what = "draw" if len(titles) == 3 else "x"
        self.figure.title.text = f"dot: mean, bar: 1 sd, cross: {what}"
        self.figure.title.text_font = _FONT
        self.figure.title.text_font_size = "11px"
        self.figure.title.text_font_style = "normal"

    def decoded(self, found: Any) -> None:
        self._show(found.mean, found.sd, found.draw)

    def example(self, found: Encoded) -> None:
        self._show(found.reconstruction.mean, found.reconstruction.sd, found.x)

    def _show(self, mean: Any, sd: Any, other: Any) -> None:
        num = len(self.names)
        centre, spread = (v[:num] for v in (self.explorer.centre, self.explorer.spread))
        mean, other = (np.ravel(v)[:num].astype(float) for v in (mean, other))
        width = np.zeros(num) if sd is None else np.ravel(sd)[:num].astype(float)
        places = [(v - centre) / spread for v in (mean, mean - width, mean + width, other)]
        text = [
            f"{m:.3g}" + ("" if sd is None else f" ± {s:.2g}")
            for m, s in zip(mean, width, strict=True)
        ]
        named = dict(zip(("mean", "low", "high", "other"), places, strict=True))
        self.source.data = {"y": self.names, **named, "text": text}


def _pixels(image: np.ndarray, scale: tuple[float, float], palette: Any) -> np.ndarray:
    """An image `[H, W, C]` as Bokeh draws it: uint32 `[H, W]`, from the bottom up."""
    low, high = scale
    levels = (np.nan_to_num(image, nan=low) - low) / (high - low if high > low else 1.0)
    levels = np.clip(255 * levels, 0, 255).round().astype(np.uint8)
    colours = levels if levels.shape[-1] == 3 else _lookup(palette)[levels[..., 0]]
    opaque = np.full((*image.shape[:2], 1), 255, np.uint8)
    return np.concatenate([colours, opaque], axis=-1)[::-1].copy().view(np.uint32)[..., 0]


def _lookup(palette: Any) -> np.ndarray:
    return np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in palette], np.uint8)


def _class_colours(num: int) -> list[str]:
    if num <= 10:
        return list(palettes.Category10[10][:num])
    if num <= 20:
        return list(palettes.Category20[20][:num])
    places = np.linspace(0, 255, num).astype(int)
    return [palettes.Viridis256[i] for i in places]


def _rounded(value: float) -> str:
    return f"{round(float(value), 2) + 0.0:.2f}"  # No -0.00.


def _short(name: str, length: int = 14) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _key(shown: Any, colour: str) -> Any:
    """A point that is nowhere, for a legend."""
    return shown.scatter([np.nan], [np.nan], color=colour, size=9)


def _plain(shown: Any) -> None:
    """A figure in the fonts and colours of the page."""
    shown.axis.axis_label_text_font = shown.axis.major_label_text_font = _FONT
    shown.axis.axis_label_text_font_style = "normal"
    shown.axis.axis_label_text_font_size = "12px"
    shown.axis.minor_tick_line_color = None
    shown.axis.axis_line_color = shown.axis.major_tick_line_color = "#8a9099"
    shown.outline_line_color = "#c9cdd3"


def _card(*parts: Any, **size: int) -> Any:
    return column(*parts, styles=_CARD, spacing=4, **size)


def _div(text: str, **kwargs: Any) -> Any:
    return Div(text=text, stylesheets=[InlineStyleSheet(css=_TEXT)], margin=0, **kwargs)
