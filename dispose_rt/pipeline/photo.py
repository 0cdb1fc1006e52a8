"""The photo of a run: which part of it the networks see, and the person in it."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np

from ..errors import InputWarning, NoPersonError
from ..settings import LARGEST, Settings
from ..stages import framing, pose
from ..stages.pose.compare import REGIONS
from ..stages.pose.track import PersonFinder
from ..types import F64, U8, Bools, Pose

TRIFLE = 0.02
"""Where the crop leaves out no more than this share of the photo, the whole photo is not looked at."""

MARGIN = 0.15
"""Room for hair, hands and feet around a person's joints, as a share of the longer side of their bounding box."""

SLACK = 0.02
"""A joint may lie this far outside, in sizes of the window, before it counts as cut off: estimates are no truer."""


def frame_photo(
    image: U8, width: int, height: int, settings: Settings, finder: PersonFinder, show: Callable[[U8], None]
) -> tuple[U8, Pose]:
    """Cut the photo to the engines' size and find the person to animate.

    Where that leaves out more than a trifle, the person is looked for in the whole photo as well.

    Args:
        image: uint8 [H, W, 3], RGB, the photo.
        width: width of the engines in pixels.
        height: height of the engines in pixels.
        settings: `crop` and `reference_person` count.
        finder: finds everyone in a picture.
        show: gets the fitted photo, before anyone is looked for in it.

    Returns:
        The fitted photo, uint8 [height, width, 3], and the pose of one person in it.

    Raises:
        NoPersonError: no one is visible, or not the one who was chosen.
        InputError: there are not as many people as `reference_person` says.

    Warns:
        InputWarning: the crop cuts off joints of the person.
    """
    window = framing.Window.centred(image.shape[0], image.shape[1], width, height)
    whole = None
    if window.cut_share > TRIFLE:
        everyone = finder.estimate(framing.scale_whole(image, width, height))
        [whole] = pose.follow_person([everyone], settings.reference_person, "the photo")
        if not whole.visible.any():
            whole = None
    if whole is not None and settings.crop == "person":
        window = window.around(whole.joints[0][whole.visible[0]], MARGIN)
    picture = framing.fit_reference(image, width, height, window)
    show(picture)
    person = _find_person(finder.estimate(picture), window, whole, settings)
    if whole is None:
        if not person.visible.any():
            raise NoPersonError(
                "nobody was found in the reference image; pass a picture that shows one person clearly, from the knees "
                "or feet to the head, upright"
            )
        return picture, person
    _check_crop(person, window, whole, settings)
    return picture, person


def _find_person(everyone: Pose, window: framing.Window, whole: Pose | None, settings: Settings) -> Pose:
    """The person to animate, out of everyone in the fitted photo.

    Args:
        everyone: poses in the fitted photo.
        window: its place in the photo.
        whole: the person in the whole photo, if it was looked at and shows one.
        settings: see `frame_photo`.
    """
    if whole is not None and (settings.crop == "person" or settings.reference_person != LARGEST):
        return pose.find_again(everyone, window.map_points(whole.joints[0]), whole.visible[0])
    [person] = pose.follow_person([everyone], settings.reference_person, "the photo")
    return person


def _check_crop(person: Pose, window: framing.Window, whole: Pose, settings: Settings) -> None:
    """Compare the person of the fitted photo with the one of the whole photo."""
    places, visible = window.map_points(whole.joints[0]), whole.visible[0]
    size, is_centre = f"{window.width} x {window.height} pixels", settings.crop == "centre"
    cut = visible & ((places < -SLACK) | (places > 1 + SLACK)).any(axis=1)
    side = _name_sides(places, cut if cut.any() else visible)
    cure = 'pass crop="person" (--crop person) to move the crop there, or use' if is_centre else "use"
    cure += " engines of the photo's shape"
    if not person.visible.any():
        who = "nobody was" if settings.reference_person == LARGEST else "the chosen person was not"
        raise NoPersonError(
            f"{who} found in the part of the photo that a crop to {size} keeps, but the whole photo shows "
            f"{'a' if who.startswith('nobody') else 'this'} person{side}; {cure}"
        )
    if not cut.any():
        return
    joints = f"{np.count_nonzero(cut)} of {np.count_nonzero(visible)} joints"
    if pose.find_again(person, places, visible).visible.any():
        message = f"the crop of the photo to {size} cuts off the person's {_name_parts(cut)} ({joints}){side}; {cure}"
    else:
        message = (
            f"the crop of the photo to {size} cuts off its most prominent person ({joints}){side}, and another one is "
            f"animated; {cure}"
        )
    warnings.warn(message, InputWarning, stacklevel=2)


def _name_sides(places: F64, cut: Bools) -> str:
    """Where joints lie outside of the window, in words."""
    x, y = places[cut].T
    beyond = {"left": x < 0, "right": x > 1, "top": y < 0, "bottom": y > 1}
    sides = [name for name, is_beyond in beyond.items() if is_beyond.any()]
    return f" at the {' and '.join(sides)} of the photo" if sides else ""


def _name_parts(cut: Bools) -> str:
    """Parts of the body that lose joints, in words."""
    names = [name for name, joints in REGIONS.items() if cut[list(joints)].any()]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
