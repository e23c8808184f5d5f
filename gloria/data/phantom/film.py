"""Draws a phantom case as a frontal chest film, with the mask of every finding.

Everything is drawn from one body: ``x`` runs from the patient's right (-1, the left edge of the
picture, as radiographs are shown) to the patient's left (1), ``y`` from the neck (-1) down (1).
Shapes are signed depths (above 0 = inside) evaluated at the centres of the pixels, so a mask and
the finding it belongs to come from the same numbers and no resampling can shift one against the
other. Edges are ramps at least one pixel wide, which makes every size a faithful picture of the
same body.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gloria.data.phantom.case import FINDINGS, Finding

Array = NDArray[np.floating]  # float32 throughout; the stubs lose that in arithmetic with floats
Mask = NDArray[np.bool_]

_CARDIOTHORACIC_RATIO = {0: (0.40, 0.515), 1: (0.53, 0.575), 2: (0.575, 0.63), 3: (0.63, 0.70)}
_FLUID = {1: (0.02, 0.06), 2: (0.12, 0.22), 3: (0.32, 0.50)}
_RAISED_DIAPHRAGM = {1: 0.04, 2: 0.08, 3: 0.12}
_ZONES = {"upper": (-0.46, -0.32), "mid": (-0.14, 0.04), "lower": (0.20, 0.32)}
_RIGHT, _LEFT = -1, 1
_Tip = tuple[float, float, float]  # x, y, heading


class Anatomy(NamedTuple):
    """The body before any detail: lengths in units of half the picture, angles in radians."""

    rotation: float
    scale: float
    shift: tuple[float, float]
    wall: float  # half the inner width of the thorax
    diaphragm: tuple[float, float]  # y of the dome, patient's right and left
    heart: float  # cardiothoracic ratio
    heart_y: float
    fluid: tuple[float, float] = (0.0, 0.0)  # height of an effusion over the dome


class Layers(NamedTuple):
    """The anatomy at the pixels of one picture."""

    x: Array
    y: Array
    outward: Array  # distance from the midline
    pixel: float  # width of a pixel in body units
    turn: tuple[float, float]  # column = origin[0] + turn[0] x - turn[1] y,
    origin: tuple[float, float]  # row = origin[1] + turn[1] x + turn[0] y
    wall: Array  # how far outward the lung reaches at this height
    floor: Array  # height of the diaphragm
    lung_depth: Array
    lung: Array
    heart_depth: Array
    mediastinum: Array  # coverage by the heart, the great vessels and the spine


def draw_film(
    rng: np.random.Generator, case: Sequence[Finding], *, size: int, contrast: float
) -> tuple[NDArray[np.uint8], Mask]:
    """Draw a case.

    Every part of the film has its own random stream, spawned from ``rng`` in a fixed order: from a
    fresh generator of the same seed, a film without one of the findings differs by that finding
    and what it displaces, and another size shows the same film (but for the grain).

    Args:
        rng: where all randomness comes from.
        case: the findings to draw.
        size: height and width in pixels.
        contrast: factor on the density that findings add or remove. The heart's size is not a
            density and does not depend on it.

    Returns:
        The film ``(size, size)``, and the masks ``(finding, size, size)`` in the order of
        :data:`~gloria.data.phantom.FINDINGS`: True at the pixels whose centre the finding covers.
    """
    body, vessels, extras, exposure, *own = rng.spawn(4 + len(FINDINGS))
    streams = dict(zip(FINDINGS, own, strict=True))
    anatomy = _deform(_sample_anatomy(body), case, streams)
    layers = _lay_out(anatomy, size)

    changes = np.zeros((size, size), np.float32)
    vessel_strength = np.ones((size, size), np.float32)
    masks = np.zeros((len(FINDINGS), size, size), np.bool_)
    for finding in case:
        draw = _DRAW[finding.name]
        density, strength, mask = draw(streams[finding.name], finding, anatomy, layers)
        changes += contrast * density
        vessel_strength *= strength
        masks[FINDINGS.index(finding.name)] = mask

    density = _draw_chest(vessels, layers, vessel_strength) + changes
    density += _draw_extras(extras, layers)
    return _expose(exposure, density), masks


# ---- The body ------------------------------------------------------------------------------------


def _sample_anatomy(rng: np.random.Generator) -> Anatomy:
    right, left = rng.uniform(0.40, 0.47), rng.uniform(0.47, 0.54)
    return Anatomy(
        rotation=rng.normal(0, 0.035),
        scale=rng.uniform(0.92, 1.1),
        shift=(rng.normal(0, 0.04), rng.normal(0, 0.04)),
        wall=rng.uniform(0.72, 0.82),
        diaphragm=(right, left),
        heart=rng.uniform(*_CARDIOTHORACIC_RATIO[0]),
        heart_y=rng.uniform(0.24, 0.30),
    )


def _deform(
    anatomy: Anatomy, case: Sequence[Finding], streams: dict[str, np.random.Generator]
) -> Anatomy:
    """What findings do to the anatomy itself: a large heart, a raised diaphragm, fluid."""
    for finding in case:
        if finding.name == "cardiomegaly":
            low, high = _CARDIOTHORACIC_RATIO[finding.severity]
            anatomy = anatomy._replace(heart=streams["cardiomegaly"].uniform(low, high))
        if finding.name == "atelectasis":
            right, left = anatomy.diaphragm
            lift = _RAISED_DIAPHRAGM[finding.severity]
            right -= lift * (finding.side != "left")
            left -= lift * (finding.side != "right")
            anatomy = anatomy._replace(diaphragm=(right, left))
        if finding.name == "pleural effusion":
            right, left = streams["pleural effusion"].uniform(*_FLUID[finding.severity], 2).tolist()
            fluid = (right * (finding.side != "left"), left * (finding.side != "right"))
            anatomy = anatomy._replace(fluid=fluid)
    return anatomy


@lru_cache(maxsize=8)
def _pixel_centres(size: int) -> tuple[Array, Array]:
    centres = ((np.arange(size) + 0.5) * 2 / size - 1).astype(np.float32)
    x, y = np.meshgrid(centres, centres)
    x.flags.writeable = y.flags.writeable = False
    return x, y


def _lay_out(anatomy: Anatomy, size: int) -> Layers:
    px, py = _pixel_centres(size)
    dx, dy = px - anatomy.shift[0], py - anatomy.shift[1]
    cos = math.cos(anatomy.rotation) / anatomy.scale
    sin = math.sin(anatomy.rotation) / anatomy.scale
    x, y = cos * dx + sin * dy, cos * dy - sin * dx
    outward = np.abs(x)
    pixel = 2 / (size * anatomy.scale)
    turn = (math.cos(anatomy.rotation) / pixel, math.sin(anatomy.rotation) / pixel)
    origin = ((anatomy.shift[0] + 1) * size / 2 - 0.5, (anatomy.shift[1] + 1) * size / 2 - 0.5)

    wall = _chest_wall(y, anatomy.wall)
    dome = _each_side(x, anatomy.diaphragm)
    floor = dome + 1.7 * np.square(outward - 0.36)
    lung_depth = np.minimum(wall - outward, floor - y)
    heart_depth = np.minimum(_heart_depth(anatomy, x, y), floor + 0.05 - y)
    return Layers(
        x=x,
        y=y,
        outward=outward,
        pixel=pixel,
        turn=turn,
        origin=origin,
        wall=wall,
        floor=floor,
        lung_depth=lung_depth,
        lung=_edge(lung_depth, 0.025, pixel),
        heart_depth=heart_depth,
        mediastinum=_mediastinum(x, y, outward, heart_depth, pixel),
    )


def _chest_wall(y: Array, wall: float, apex: float = -0.80, widest: float = 0.12) -> Array:
    """How far outward the chest cavity reaches at height y; below 0 above the apex."""
    up = np.maximum((widest - y) / (widest - apex), 0)
    reach: Array = wall * (np.sqrt(np.maximum(1 - up * up * np.sqrt(up), 0)) - (up > 1))
    return reach


def _wall_at(y: float, wall: float) -> float:
    return float(_chest_wall(np.full(1, y, np.float32), wall)[0])


def _heart_depth(anatomy: Anatomy, x: Array, y: Array) -> Array:
    """An ellipse sheared towards the apex: its width is exactly ratio x thorax."""
    half_width = anatomy.heart * anatomy.wall
    half_height = 0.20 + 0.36 * half_width
    across = (x - 0.28 * half_width) / half_width
    down = (y - anatomy.heart_y) / half_height - 0.45 * across
    depth: Array = half_width * (1 - np.sqrt(across * across + down * down))
    return depth


def _heart_edge_at(y: float, anatomy: Anatomy, side: int) -> float:
    """How far outward the heart reaches at one height; 0 above and below it."""
    outward = np.linspace(0, 1, 101)
    inside = _heart_depth(anatomy, side * outward, np.full(101, y)) > 0
    return float(np.max(outward * inside))


def _mediastinum(x: Array, y: Array, outward: Array, heart_depth: Array, pixel: float) -> Array:
    column = 0.13 + 0.05 * np.square(y + 0.15) - outward
    aortic_knob = 0.11 - np.hypot(x - 0.08, y + 0.29)
    hilum = 0.20 - np.hypot(x - 0.04, y - 0.02)
    parts = np.maximum(np.maximum(column, aortic_knob), np.maximum(hilum, heart_depth))
    return _edge(parts, 0.035, pixel)


# ---- The healthy chest ---------------------------------------------------------------------------


def _draw_chest(rng: np.random.Generator, layers: Layers, vessel_strength: Array) -> Array:
    y, outward, pixel = layers.y, layers.outward, layers.pixel
    trunk = 0.97 - 0.05 * np.abs(y) - outward
    shoulders = y - (-0.98 + 0.30 * outward)
    body = _edge(np.maximum(np.minimum(trunk, shoulders), 0.21 - outward), 0.03, pixel)
    soft = layers.mediastinum

    density = body * (0.60 + 0.12 * (1 - outward * outward))
    density -= 0.50 * layers.lung * (1 - soft) * body
    density += 0.20 * soft * _edge(y + 1.0, 0.3, pixel)
    abdomen = _edge(y - layers.floor, 0.03, pixel) * _edge(layers.wall - outward, 0.1, pixel)
    density += 0.16 * abdomen
    density += _vertebrae(rng, layers)
    density -= 0.20 * _airways(layers)
    density += 0.11 * _vessels(rng, layers) * layers.lung * (1 - soft) * vessel_strength
    density += _ribs(rng, layers)
    density += 0.12 * _clavicles(rng, layers)
    return density


def _vertebrae(rng: np.random.Generator, layers: Layers) -> Array:
    spacing = rng.uniform(0.12, 0.14)
    disc = np.cos(layers.y * (2 * np.pi / spacing) + rng.uniform(0, 6.28))
    spine: Array = _edge(0.075 - layers.outward, 0.02, layers.pixel) * (0.06 + 0.03 * disc)
    return spine


def _airways(layers: Layers) -> Array:
    trachea = np.minimum(0.035 - np.abs(layers.x), -0.22 - layers.y)
    below = layers.y + 0.25
    bronchi = np.minimum(0.022 - np.abs(layers.outward - 0.9 * below), 0.11 - np.abs(below - 0.1))
    return _edge(np.maximum(trachea, bronchi), 0.02, layers.pixel)


def _vessels(rng: np.random.Generator, layers: Layers) -> Array:
    """Two trees of vessels, five from each hilum, each forking once and running on."""
    segments: list[tuple[float, float, float, float]] = []
    half_widths: list[float] = []

    def grow(x: float, y: float, heading: float, length: float, half_width: float) -> _Tip:
        heading += rng.normal(0, 0.12)
        length *= rng.uniform(0.8, 1.2)
        tip = (x + side * length * math.cos(heading), y + length * math.sin(heading))
        segments.append((x, y, *tip))
        half_widths.append(half_width)
        return (*tip, heading)

    for side in (_RIGHT, _LEFT):
        for heading in (-1.25, -0.62, 0.0, 0.62, 1.25):
            x, y, bent = grow(0.19 * side, 0.02 * -side, heading, 0.20, 0.016)
            for fork in (-0.3, 0.3):
                branch = grow(x, y, bent + fork, 0.18, 0.011)
                grow(*branch, 0.15, 0.007)
    tree = _strokes(layers, segments, half_widths)
    hila = _edge(1 - np.hypot((layers.outward - 0.20) / 0.08, (layers.y + 0.01) / 0.13), 0.8, 0)
    return np.maximum(tree, hila)


def _ribs(rng: np.random.Generator, layers: Layers) -> Array:
    """Nine pairs of ribs: posterior arcs falling outward, anterior arcs rising outward."""
    spacing = rng.uniform(0.135, 0.15)
    top = -0.70 + rng.normal(0, 0.015)
    outward = layers.outward
    posterior = layers.y - (0.75 * np.square(np.maximum(outward - 0.20, 0)) - 0.06 * outward)
    anterior = layers.y - (0.40 * (0.80 - outward) + 0.02)
    cage = _edge(layers.wall + 0.03 - outward, 0.02, layers.pixel)
    back = _arcs(posterior, top, spacing, layers.pixel) * _edge(outward - 0.06, 0.04, 0.02)
    front = _arcs(anterior, top, spacing, layers.pixel) * _edge(outward - 0.36, 0.2, 0)
    return (0.085 * back + 0.045 * front) * cage


def _arcs(height: Array, top: float, spacing: float, pixel: float) -> Array:
    """Nine bands at top, top + spacing, ...; a brighter cortex along their edges."""
    place = (height - top) / spacing
    nearest = np.clip(np.rint(place), 0, 8)
    off_axis = np.abs(place - nearest) * spacing
    inside = _edge(0.026 - off_axis, 0.012, pixel)
    arcs: Array = inside * (0.75 + 0.25 * np.minimum(off_axis / 0.022, 1))
    return arcs


def _clavicles(rng: np.random.Generator, layers: Layers) -> Array:
    segments = []
    for side in (_RIGHT, _LEFT):
        rise = rng.normal(0, 0.02)
        bend = [
            (0.09, -0.50),
            (0.26, -0.56),
            (0.45, -0.66 + rise),
            (0.66, -0.70 + rise),
            (0.82, -0.68),
        ]
        segments += [(side * x0, y0, side * x1, y1) for (x0, y0), (x1, y1) in pairwise(bend)]
    return _strokes(layers, segments, [0.028] * len(segments))


def _draw_extras(rng: np.random.Generator, layers: Layers) -> Array:
    """What is on many films and means nothing: a gastric bubble, wires, a side marker."""
    has_bubble, has_wires, has_marker = rng.random(3) < (0.60, 0.25, 0.15)
    density = np.zeros_like(layers.x)
    x0, y0 = rng.uniform(0.30, 0.42), rng.uniform(0.66, 0.74)
    across, down = rng.uniform(0.10, 0.17), rng.uniform(0.05, 0.08)
    if has_bubble:
        bubble = down * (1 - np.hypot((layers.x - x0) / across, (layers.y - y0) / down))
        bubble = np.minimum(bubble, layers.y - layers.floor - 0.03)
        density -= 0.40 * _edge(bubble, 0.03, layers.pixel)
    if has_wires:
        density += 0.35 * _wires(rng, layers)
    if has_marker:
        density += 0.60 * _marker(layers)
    return density


def _wires(rng: np.random.Generator, layers: Layers) -> Array:
    canvas = np.zeros_like(layers.x)
    for _ in range(rng.integers(1, 4)):
        start, bow, end = rng.uniform((-0.6, -0.5), (0.6, 0.5), (3, 2))
        end[1] += 0.7
        t = np.linspace(0, 1, 9)[:, None]
        curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * bow + t**2 * end
        wire = _strokes(layers, np.hstack([curve[:-1], curve[1:]]).tolist(), [0.006] * 8)
        x0, y0 = start.tolist()
        lead = _edge(0.03 - np.hypot(layers.x - x0, layers.y - y0), 0.01, layers.pixel)
        canvas = np.maximum(canvas, np.maximum(wire, lead))
    return canvas


def _marker(layers: Layers) -> Array:
    """The letter L on the patient's left, beside the shoulder."""
    return _strokes(layers, [(0.86, -0.92, 0.86, -0.80), (0.86, -0.80, 0.93, -0.80)], [0.012] * 2)


# ---- Findings: each gives its density at contrast 1, what is left of the vessels, its mask -------


def _cardiomegaly(
    rng: np.random.Generator, finding: Finding, anatomy: Anatomy, layers: Layers
) -> tuple[Array, Array, Mask]:
    nothing = np.zeros_like(layers.x)  # the heart itself was drawn larger
    return nothing, np.ones_like(layers.x), layers.heart_depth > 0


def _pleural_effusion(
    rng: np.random.Generator, finding: Finding, anatomy: Anatomy, layers: Layers
) -> tuple[Array, Array, Mask]:
    """Fluid up to a meniscus that climbs the chest wall."""
    level = _each_side(layers.x, _base(anatomy))
    climb = rng.uniform(0.20, 0.26) * np.exp((layers.outward - layers.wall) * 7)
    depth = np.minimum(layers.lung_depth, layers.y - (level + 0.05 - climb))
    depth = np.where(_on_side(layers, finding.side), depth, -1)
    fluid = _edge(depth, 0.03, layers.pixel)
    visible = 1 - layers.mediastinum
    return 0.27 * fluid * visible, 1 - fluid, (depth > 0) & (visible > 0.5)


def _consolidation(
    rng: np.random.Generator, finding: Finding, anatomy: Anatomy, layers: Layers
) -> tuple[Array, Array, Mask]:
    """An uneven blob with soft borders; the small ones are the denser."""
    low, high = {1: (0.11, 0.15), 2: (0.15, 0.20), 3: (0.20, 0.26)}[finding.severity]
    radius = rng.uniform(low, high)
    side = _LEFT if finding.side == "left" else _RIGHT
    y0 = rng.uniform(*_ZONES[str(finding.zone)])
    outer = _wall_at(y0, anatomy.wall) - 0.6 * radius
    inner = min(max(0.26, _heart_edge_at(y0, anatomy, side) + 0.3 * radius), outer - 0.02)
    x0 = side * rng.uniform(inner, outer)

    dx, dy = layers.x - x0, (layers.y - y0) / rng.uniform(0.8, 1.2)
    angle = np.arctan2(dy, dx)
    border = radius * np.ones_like(dx)
    for waves in (2, 3, 5):
        border += radius * 0.09 * np.cos(waves * angle + rng.uniform(0, 6.28))
    depth = border - np.hypot(dx, dy)
    blob = _edge(depth, 0.5 * radius, layers.pixel) * layers.lung
    patches = 1 + 0.15 * np.sin(dx * 37 + 2 * np.sin(dy * 29)) * np.sin(dy * 41)
    strength = 0.31 - 0.4 * radius
    mask = (depth > 0) & (layers.lung_depth > 0)
    return strength * blob * patches, 1 - 0.6 * blob, mask


def _atelectasis(
    rng: np.random.Generator, finding: Finding, anatomy: Anatomy, layers: Layers
) -> tuple[Array, Array, Mask]:
    """One to three oblique bands above a raised diaphragm, pointed at both ends."""
    bands = np.zeros_like(layers.x)
    mask = np.zeros(layers.x.shape, np.bool_)
    for side in (_RIGHT, _LEFT):
        tilt = rng.uniform(0.15, 0.45) * (-1 if rng.random() < 0.5 else 1)
        jitter = rng.uniform(-1, 1, (3, 5)).tolist()
        if not _has(finding.side, side):
            continue
        for band in range(finding.severity):
            more = jitter[band]
            x0 = side * ((0.54 if side == _LEFT else 0.48) + 0.05 * more[0])
            y0 = _base(anatomy)[side == _LEFT] - 0.10 - 0.12 * band + 0.02 * more[1]
            angle = tilt + 0.15 * more[2]
            reach = (0.22, 0.20, 0.17)[band] + 0.03 * more[3]
            half_width = 0.029 + 0.003 * finding.severity + 0.004 * more[4]
            along = (layers.x - x0) * math.cos(angle) + (layers.y - y0) * math.sin(angle)
            across = (layers.y - y0) * math.cos(angle) - (layers.x - x0) * math.sin(angle)
            half = half_width * (1 - np.square(np.square(along / reach)))
            bands = np.maximum(bands, _edge(half - np.abs(across), 0.03, layers.pixel))
            mask |= (half > 0) & (np.abs(across) <= np.maximum(half, 0.75 * layers.pixel))
    return 0.28 * bands * layers.lung, 1 - bands, mask & (layers.lung_depth > 0)


def _edema(
    rng: np.random.Generator, finding: Finding, anatomy: Anatomy, layers: Layers
) -> tuple[Array, Array, Mask]:
    """Haze around both hila, fuller vessels, and short Kerley lines at the wall."""
    extent = {1: 0.85, 2: 1.05, 3: 1.25}[finding.severity] * rng.uniform(0.95, 1.05)
    density = {1: 0.10, 2: 0.13, 3: 0.16}[finding.severity]
    across, down = (layers.outward - 0.30) / 0.26, layers.y / 0.40
    depth = extent - np.hypot(across, down)
    haze = _edge(depth, 0.9, 0) * layers.lung * (1 - layers.mediastinum)
    cloud = 1 + 0.12 * np.sin(layers.x * 23 + rng.uniform(0, 6.28)) * np.sin(
        layers.y * 19 + rng.uniform(0, 6.28)
    )
    kerley = []
    for side in (_RIGHT, _LEFT):
        for y0 in rng.uniform(0.02, 0.42, 2 + finding.severity).tolist():
            edge = _wall_at(y0, anatomy.wall)
            kerley.append((side * (edge - 0.10), y0 - 0.01, side * (edge - 0.01), y0 + 0.01))
    lines = _strokes(layers, kerley, [0.005] * len(kerley)) * layers.lung
    mask = (depth > 0) & (layers.lung_depth > 0) & (layers.mediastinum < 0.5)
    return density * haze * cloud + 0.06 * lines, 1 + 0.5 * haze, mask


def _pneumothorax(
    rng: np.random.Generator, finding: Finding, anatomy: Anatomy, layers: Layers
) -> tuple[Array, Array, Mask]:
    """Air over the apex and down the wall: no vessels, darker than lung, edged by the pleura."""
    low, high = {1: (0.14, 0.19), 2: (0.21, 0.29), 3: (0.32, 0.44)}[finding.severity]
    gap = rng.uniform(low, high)

    def pleura(y: Array) -> Array:
        taper = np.clip((0.30 - y) / 1.1, 0, 1)
        surface: Array = _chest_wall(y - gap, anatomy.wall) - 0.40 * gap * taper
        return surface

    surface = pleura(layers.y)
    slope = (pleura(layers.y + 0.01) - pleura(layers.y - 0.01)) / 0.02
    depth = (layers.outward - surface) / np.sqrt(1 + slope * slope)
    here = _on_side(layers, finding.side)
    air_depth = np.where(here, np.minimum(layers.lung_depth, depth), -1)
    visible = 1 - layers.mediastinum
    air = _edge(np.minimum(air_depth, 0.40 - layers.y), 0.015, layers.pixel) * visible
    line = _band(np.abs(depth), 0.008, layers.pixel) * layers.lung * visible
    line *= here & (layers.y < 0.30)
    mask = (air_depth > 0) & (layers.y < 0.40) & (visible > 0.5)
    return 0.10 * line - 0.085 * air, 1 - air, mask


_Draw = Callable[[np.random.Generator, Finding, Anatomy, Layers], tuple[Array, Array, Mask]]
_DRAW: dict[str, _Draw] = {
    "atelectasis": _atelectasis,
    "cardiomegaly": _cardiomegaly,
    "consolidation": _consolidation,
    "edema": _edema,
    "pleural effusion": _pleural_effusion,
    "pneumothorax": _pneumothorax,
}


def _each_side(x: Array, values: tuple[float, float]) -> Array:
    """One value on the patient's right, another on the left."""
    return np.where(x < 0, np.float32(values[0]), np.float32(values[1]))


def _base(anatomy: Anatomy) -> tuple[float, float]:
    """Where the aerated lung ends, patient's right and left: at the dome, or at the fluid on it."""
    (right, left), (right_fluid, left_fluid) = anatomy.diaphragm, anatomy.fluid
    return right - right_fluid, left - left_fluid


def _has(named: str | None, side: int) -> bool:
    return named in ("bilateral", "left" if side == _LEFT else "right")


def _on_side(layers: Layers, named: str | None) -> Mask:
    return (_has(named, _RIGHT) & (layers.x < 0)) | (_has(named, _LEFT) & (layers.x >= 0))


# ---- The film ------------------------------------------------------------------------------------


def _expose(rng: np.random.Generator, density: Array) -> NDArray[np.uint8]:
    """Density to grey: the film's law, blur, gamma, gain and grain."""
    size = len(density)
    sharpness, grain = rng.uniform(0.004, 0.010), rng.uniform(0.012, 0.035)
    gamma, gain = rng.uniform(0.8, 1.3), rng.uniform(0.88, 1.12)
    light = 1 - np.exp(-1.9 * np.maximum(density, 0))
    light = _blur(light, sharpness * size / 2)
    light = gain * light**gamma + grain * rng.standard_normal(density.shape, dtype=np.float32)
    grey: NDArray[np.uint8] = (np.clip(light, 0, 1) * 255).round().astype(np.uint8)
    return grey


def _blur(image: Array, sigma: float) -> Array:
    """Gaussian blur by two passes of a symmetric kernel; edges are repeated."""
    reach = max(1, math.ceil(2.5 * sigma))
    kernel = np.exp(-0.5 * np.square(np.arange(-reach, reach + 1) / sigma))
    kernel = (kernel / kernel.sum()).astype(np.float32)
    for axis in (0, 1):
        padded = np.pad(
            image, [(reach, reach) if a == axis else (0, 0) for a in (0, 1)], mode="edge"
        )
        length = image.shape[axis]
        shifted = (padded.take(range(i, i + length), axis) for i in range(2 * reach + 1))
        image = sum(weight * part for weight, part in zip(kernel, shifted, strict=True))
    return image


# ---- Drawing tools -------------------------------------------------------------------------------


def _edge(depth: Array, softness: float, pixel: float) -> Array:
    """Coverage of a shape by its signed depth: 1/2 on the outline, a ramp of at least a pixel."""
    ramp: Array = depth / max(softness, pixel) + 0.5
    return ramp.clip(0, 1)


def _band(distance: Array, half_width: float | Array, width: float) -> Array:
    """Coverage of a line by the distance from its axis: a box blurred by a box of ``width``.

    A line thinner than a pixel gets fainter instead of wider, so every size shows the same film.
    """
    ramp: Array = (half_width - distance) / width + 0.5
    return ramp.clip(0, np.minimum(1, 2 * half_width / width))


def _strokes(
    layers: Layers, segments: Sequence[Sequence[float]], half_widths: Sequence[float]
) -> Array:
    """Coverage of straight strokes ``(x0, y0, x1, y1)``, each drawn only where it can reach."""
    x0, y0, x1, y1 = np.array(segments, np.float32).T[:, :, None, None]
    half_width = np.array(half_widths, np.float32)[:, None, None]
    pixels = _windows(layers, (x0, y0, x1, y1), float(half_width.max()) + layers.pixel)

    dx, dy = layers.x.take(pixels) - x0, layers.y.take(pixels) - y0
    along_x, along_y = x1 - x0, y1 - y0
    nearest = (dx * along_x + dy * along_y) / (along_x * along_x + along_y * along_y)
    nearest = nearest.clip(0, 1)
    dx, dy = dx - nearest * along_x, dy - nearest * along_y
    coverage = _band(np.sqrt(dx * dx + dy * dy), half_width, layers.pixel)

    canvas = np.zeros(layers.x.size, np.float32)
    np.maximum.at(canvas, pixels.ravel(), coverage.ravel())
    return canvas.reshape(layers.x.shape)


def _windows(layers: Layers, ends: tuple[Array, ...], reach: float) -> NDArray[np.intp]:
    """Flat indices ``(segment, row, column)`` of one square window around each segment.

    The windows are as large as the longest segment needs, and hold every pixel within reach.
    """
    size = len(layers.x)
    x0, y0, x1, y1 = ends
    (along, across), (left, top) = layers.turn, layers.origin
    columns = np.stack([left + along * x - across * y for x, y in ((x0, y0), (x1, y1))])
    rows = np.stack([top + across * x + along * y for x, y in ((x0, y0), (x1, y1))])
    margin = reach / layers.pixel
    longest = max(float(np.ptp(rows, axis=0).max()), float(np.ptp(columns, axis=0).max()))
    width = min(math.ceil(longest + 2 * margin) + 1, size)
    first_row, first_column = (
        np.floor(ends.min(axis=0) - margin).astype(np.intp).clip(0, size - width)
        for ends in (rows, columns)
    )
    steps = np.arange(width)
    pixels: NDArray[np.intp] = (first_row + steps[:, None]) * size + first_column + steps
    return pixels
