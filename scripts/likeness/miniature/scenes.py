"""Who is drawn and how: identities, scenes, and what is true of a scene in the words of the caption grammar.

Axes: N people or scenes, D identity parameters. Lengths in face units: half of the nominal face height.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from likeness.captions.facts import BACKGROUND_COLOURS, Facts

IDENTITY_FIELDS = (
    "skin_red",
    "skin_green",
    "skin_blue",
    "hair_red",
    "hair_green",
    "hair_blue",
    "eye_red",
    "eye_green",
    "eye_blue",
    "face_width",  # face units, 0.70..0.88
    "face_height",  # face units, 0.92..1.08
    "eye_spacing",  # middle of the face to an eye, as a share of the face's width, 0.42..0.54
    "eye_size",  # radius of the iris, face units, 0.085..0.125
    "mouth_width",  # half of it, as a share of the face's width, 0.28..0.50
    "hair_length",  # 0 above the ears .. 1 over the shoulders
    "glasses",  # 0 or 1
    "beard",  # 0 or 1
)
SKIN, HAIR, EYES = slice(0, 3), slice(3, 6), slice(6, 9)
BACKGROUND_NAMES = tuple(BACKGROUND_COLOURS)
PATTERNS = ("plain", "gradient", "stripes", "discs")
CLOSE_ABOVE, HALF_ABOVE = 0.33, 0.14
TURNED_BEYOND_DEG = 12.0
DIM_BELOW = 0.65
SIDE_LIGHT_BEYOND = 0.25

_SKIN_TONES = np.array(
    [[0.98, 0.85, 0.76], [0.93, 0.74, 0.60], [0.78, 0.56, 0.41], [0.55, 0.36, 0.25], [0.36, 0.23, 0.17]]
)
_HAIR_TONES = np.array(
    [
        [0.07, 0.06, 0.07],
        [0.25, 0.15, 0.09],
        [0.46, 0.27, 0.13],
        [0.64, 0.24, 0.10],
        [0.90, 0.72, 0.32],
        [0.90, 0.87, 0.80],
        [0.55, 0.55, 0.57],
        [0.16, 0.42, 0.72],
        [0.82, 0.30, 0.52],
        [0.14, 0.50, 0.42],
    ]
)
_EYE_TONES = np.array(
    [[0.30, 0.17, 0.08], [0.15, 0.40, 0.78], [0.16, 0.50, 0.26], [0.42, 0.45, 0.48], [0.10, 0.08, 0.08]]
)


@dataclass(frozen=True)
class Scene:
    """All that varies between pictures of one person; every field has the axis N first.

    yaw_deg: -35..35, positive turns the nose to the viewer's right. roll_deg: positive is clockwise for the viewer.
    light_direction: -1 from the viewer's left .. 1 from the right; light_strength 0..1; brightness 0.3..1.2;
    light_temperature: -1 cool .. 1 warm. background: index in BACKGROUND_NAMES; background_rgb, clothes_rgb: (N, 3),
    0..1. pattern: index in PATTERNS. smile: -1..1. centre_x, centre_y: the face's centre over width, over height.
    scale: nominal face height over the picture's height, 0.1..0.7.
    """

    yaw_deg: NDArray
    roll_deg: NDArray
    light_direction: NDArray
    light_strength: NDArray
    brightness: NDArray
    light_temperature: NDArray
    background: NDArray
    background_rgb: NDArray
    pattern: NDArray
    clothes_rgb: NDArray
    smile: NDArray
    centre_x: NDArray
    centre_y: NDArray
    scale: NDArray

    def __len__(self) -> int:
        return len(self.yaw_deg)

    def take(self, indices: ArrayLike) -> Scene:
        """Return the scenes at these positions, in this order; an integer array, a list or a slice."""
        chosen = np.arange(len(self))[indices if isinstance(indices, slice) else np.atleast_1d(indices)]
        return Scene(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})

    def change(self, **values: ArrayLike) -> Scene:
        """Return a copy with some fields set, one value for all or one a scene; unknown names raise TypeError."""
        shapes = {name: getattr(self, name, np.empty(len(self))).shape for name in values}
        return replace(
            self, **{name: np.broadcast_to(np.asarray(v), shapes[name]).copy() for name, v in values.items()}
        )

    def with_background(self, names: str | list[str]) -> Scene:
        """Return a copy before the named colours (keys of BACKGROUND_COLOURS), without jitter and pattern."""
        wanted = [names] * len(self) if isinstance(names, str) else names
        indices = np.array([BACKGROUND_NAMES.index(name) for name in wanted])
        colours = np.array([BACKGROUND_COLOURS[name] for name in wanted])
        return self.change(background=indices, background_rgb=colours, pattern=0)


def sample_identities(n: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw n people; (n, D) float32 in the order of IDENTITY_FIELDS."""
    tone = rng.uniform(0, len(_SKIN_TONES) - 1.001, n)
    below = tone.astype(int)
    share = (tone - below)[:, None]
    skin = _SKIN_TONES[below] * (1 - share) + _SKIN_TONES[below + 1] * share + rng.uniform(-0.03, 0.03, (n, 3))
    hair = _HAIR_TONES[rng.integers(len(_HAIR_TONES), size=n)] + rng.uniform(-0.05, 0.05, (n, 3))
    eyes = _EYE_TONES[rng.integers(len(_EYE_TONES), size=n)] + rng.uniform(-0.04, 0.04, (n, 3))
    low = np.array([0.70, 0.92, 0.42, 0.085, 0.28, 0.0])
    high = np.array([0.88, 1.08, 0.54, 0.125, 0.50, 1.0])
    shape = rng.uniform(low, high, (n, len(low)))
    extras = rng.uniform(size=(n, 2)) < 0.3
    return np.concatenate(
        [np.clip(skin, 0, 1), np.clip(hair, 0.02, 1), np.clip(eyes, 0.02, 1), shape, extras], 1
    ).astype(np.float32)


def sample_scenes(n: int, rng: np.random.Generator, framing: str = "close") -> Scene:
    """Draw n scenes of one framing (close, half or full): any pose, light and background; far from the thresholds of `facts_of`."""
    low, high = {"close": (0.48, 0.64), "half": (0.17, 0.29), "full": (0.105, 0.13)}[framing]
    scale = rng.uniform(low, high, n)
    top = {"close": rng.uniform(0.42, 0.50, n), "half": rng.uniform(0.22, 0.30, n), "full": rng.uniform(0.15, 0.20, n)}[
        framing
    ]
    pose = rng.choice([-1, 0, 0, 1], n)
    light = rng.choice([0, 0, 1, 2, 3], n)  # even, from the left, from the right, dim
    background = rng.integers(len(BACKGROUND_NAMES), size=n)
    colours = np.array(list(BACKGROUND_COLOURS.values()))[background]
    return Scene(
        yaw_deg=np.where(pose == 0, rng.uniform(-7, 7, n), pose * rng.uniform(17, 28, n)),
        roll_deg=rng.uniform(-5, 5, n),
        light_direction=np.select(
            [light == 1, light == 2], [-rng.uniform(0.8, 1, n), rng.uniform(0.8, 1, n)], rng.uniform(-0.2, 0.2, n)
        ),
        light_strength=np.where((light == 1) | (light == 2), rng.uniform(0.6, 0.95, n), rng.uniform(0.0, 0.5, n)),
        brightness=np.where(light == 3, rng.uniform(0.42, 0.50, n), rng.uniform(0.92, 1.06, n)),
        light_temperature=rng.uniform(-0.5, 0.5, n),
        background=background,
        background_rgb=np.clip(colours + rng.uniform(-0.03, 0.03, (n, 3)), 0, 1),
        pattern=rng.choice(len(PATTERNS), n, p=[0.55, 0.25, 0.1, 0.1]),
        clothes_rgb=rng.uniform(0.08, 0.95, (n, 3)),
        smile=np.where(rng.uniform(size=n) < 0.5, rng.uniform(-0.2, 0.1, n), rng.uniform(0.6, 1.0, n)),
        centre_x=rng.uniform(0.47, 0.53, n),
        centre_y=top,
        scale=scale,
    )


def facts_of(scene: Scene, i: int) -> Facts:
    """Say what is true of scene i, in the words of the caption grammar; poses and light as the viewer sees them."""
    scale, yaw_deg = float(scene.scale[i]), float(scene.yaw_deg[i])
    side = float(scene.light_direction[i] * scene.light_strength[i])
    pose = "front" if abs(yaw_deg) <= TURNED_BEYOND_DEG else ("left" if yaw_deg < 0 else "right")
    light = "even" if abs(side) <= SIDE_LIGHT_BEYOND else ("left" if side < 0 else "right")
    return Facts(
        framing="close" if scale > CLOSE_ABOVE else "half" if scale >= HALF_ABOVE else "full",
        pose=pose,
        light="dim" if scene.brightness[i] < DIM_BELOW else light,
        background=BACKGROUND_NAMES[int(scene.background[i])],
    )
