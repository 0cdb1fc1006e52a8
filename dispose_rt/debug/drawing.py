"""Drawings for `debug_pictures`: skeletons over photos, cells of the point pyramid, previews of latents and flow."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from ..pictures import flow_to_color
from ..stages.pose.draw import BODY_COLORS, BONES, LIMBS
from ..types import F32, F64, U8, Bools, Pose

VIEW_PX = 960
"""Longest side of a photo that is drawn over."""
SMALL_VIEW_PX = 640
"""Smaller photos are enlarged by a whole factor as long as they stay below this."""

FAINT_SCORE = 0.3
"""Points of faces and hands below this score are left out, as the networks hardly see them."""

LATENT_COLORS = np.array(
    [[0.298, 0.207, 0.208], [0.187, 0.286, 0.173], [-0.158, 0.189, 0.264], [-0.184, -0.271, -0.473]]
)
"""Rough colours, -1..1, of the four latent channels of Stable Diffusion's VAE: a linear fit that users measured
(K. Turner, "Decoding latents to RGB without upscaling", discuss.huggingface.co, 2022)."""

Color = tuple[int, int, int]
GREEN: Color = (60, 220, 110)
RED: Color = (255, 70, 70)
WHITE: Color = (255, 255, 255)
GREY: Color = (170, 170, 170)
_SHADE: Color = (16, 18, 22)
_PAPER: Color = (250, 250, 250)
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_FAR_PX = 20_000


def fit_view(image: U8) -> U8:
    """Scale a photo so that lines drawn over it can be told apart: large ones down, small ones up."""
    height, width = image.shape[:2]
    longest = max(height, width)
    if longest > VIEW_PX:
        size = (max(1, round(width * VIEW_PX / longest)), max(1, round(height * VIEW_PX / longest)))
        return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    zoom = max(1, SMALL_VIEW_PX // longest)
    size = (width * zoom, height * zoom)
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC), np.uint8)


def dim(image: U8, share: float = 0.45) -> U8:
    """Darken a photo, so that what is drawn over it stands out."""
    return np.asarray(image * share, np.uint8)


def draw_skeleton(picture: U8, pose: Pose, color: Color | None = None) -> None:
    """Draw the first person over a picture, in place: body, hands and face, with a dark edge.

    Args:
        picture: uint8 [H, W, 3], RGB.
        pose: in fractions of the picture; what lies outside is cut off.
        color: of the whole figure; None takes the colours of the pictures that the networks see.
    """
    if not pose.persons:
        return
    unit = max(2, round(max(picture.shape[:2]) / 240))
    joints_px = _place(pose.joints[0], picture)
    limbs = [
        (joints_px[start], joints_px[end], color or _color(number))
        for number, (start, end) in enumerate(LIMBS)
        if pose.visible[0, start] and pose.visible[0, end]
    ]
    for thickness, shade in ((unit + 2, _SHADE), (unit, None)):
        for start_px, end_px, own in limbs:
            cv2.line(picture, start_px, end_px, shade or own, thickness, cv2.LINE_AA)
    _draw_details(picture, pose, max(1, unit // 2), color)
    for joint in np.flatnonzero(pose.visible[0]).tolist():
        cv2.circle(picture, joints_px[joint], unit + 2, _SHADE, -1, cv2.LINE_AA)
        cv2.circle(picture, joints_px[joint], unit + 1, color or _color(joint), -1, cv2.LINE_AA)


def _draw_details(picture: U8, pose: Pose, unit: int, color: Color | None) -> None:
    """Thin hands and face points."""
    for points, scores in zip(pose.hands[:, 0], pose.hand_scores[:, 0], strict=True):
        points_px = _place(points, picture)
        for start, end in BONES:
            if min(scores[start], scores[end]) >= FAINT_SCORE:
                cv2.line(picture, points_px[start], points_px[end], color or GREY, unit, cv2.LINE_AA)
    for point_px, score in zip(_place(pose.faces[0], picture), pose.face_scores[0], strict=True):
        if score >= FAINT_SCORE:
            cv2.circle(picture, point_px, unit, color or WHITE, -1, cv2.LINE_AA)


def _color(index: int) -> Color:
    red, green, blue = BODY_COLORS[index]
    return red, green, blue


def _place(points: F64, picture: U8) -> list[tuple[int, int]]:
    """Fractions to whole pixels that OpenCV can take, however far outside the picture."""
    height, width = picture.shape[:2]
    finite = np.nan_to_num(points * [float(width), float(height)], nan=-_FAR_PX, posinf=_FAR_PX, neginf=-_FAR_PX)
    return [(int(x), int(y)) for x, y in np.clip(finite, -_FAR_PX, _FAR_PX)]


def draw_boxes(picture: U8, boxes_px: F64, frame_size_px: tuple[int, int], color: Color, thickness: int) -> None:
    """Draw boxes [n, 4] xyxy over a picture, in place.

    Args:
        picture: the frame, at whatever scale.
        boxes_px: float64 [n, 4] xyxy, in pixels of the frame.
        frame_size_px: height and width of the frame.
        color: of the lines.
        thickness: of the lines, in pixels of the picture.
    """
    height, width = frame_size_px
    corners = boxes_px.reshape(-1, 2, 2) / [float(width), float(height)]
    for box in corners:
        start_px, end_px = _place(box, picture)
        cv2.rectangle(picture, start_px, end_px, _SHADE, thickness + 2, cv2.LINE_AA)
        cv2.rectangle(picture, start_px, end_px, color, thickness, cv2.LINE_AA)


def draw_banner(picture: U8, text: str, color: Color = RED) -> None:
    """Write a line along the bottom of a picture, and a frame around it, in place."""
    height, width = picture.shape[:2]
    scale = 0.6
    (text_width, _), _ = cv2.getTextSize(text, _FONT, scale, 1)
    scale *= min(1.0, (width - 16) / text_width)
    picture[max(0, height - 34) :] = _SHADE
    cv2.putText(picture, text, (8, height - 12), _FONT, scale, color, 1, cv2.LINE_AA)
    cv2.rectangle(picture, (2, 2), (width - 3, height - 3), color, 4)


def draw_flow(flow: NDArray[np.floating], scale_px: float) -> U8:
    """Colour-code a field like `flow_to_color`; values that are not finite are black."""
    broken = ~np.isfinite(flow).all(axis=0)
    picture = flow_to_color(np.where(broken, 0, flow), scale_px)
    picture[broken] = 0
    return picture


def choose_flow_scale(flows: Sequence[NDArray[np.floating]]) -> float:
    """Choose one round length in pixels for a clip, so that its pictures can be compared.

    Args:
        flows: [2, H, W] each, at least one. The first one's jump from the photo would make all others pale, so the
            others count where there are any.

    Returns:
        What nearly all vectors stay below, above 0.
    """
    fields = [np.nan_to_num(flow.astype(np.float32), posinf=0, neginf=0) for flow in flows[1:] or flows]
    longest = max(float(np.percentile(np.hypot(*field), 99.9)) for field in fields)
    if longest <= 0:
        return 1.0
    step = 10.0 ** (np.floor(np.log10(longest)) - 1) * 5
    return float(np.ceil(longest / step) * step)


def preview_latents(latents: F32) -> list[U8]:
    """Rough pictures of latents, [n, 4, h, w], enlarged; noisy ones are scaled to one contrast; black is not finite."""
    finite = np.isfinite(latents).all(axis=1)
    held = np.where(np.isfinite(latents), latents, 0).astype(np.float64)
    held /= max(1.0, float(held.std()))
    colors = np.einsum("nchw,ck->nhwk", held, LATENT_COLORS)
    pictures = np.asarray(np.clip(127.5 + 127.5 * colors, 0, 255), np.uint8)
    pictures[~finite] = 0
    height, width = pictures.shape[1:3]
    zoom = max(1, round(192 / max(height, width)))
    size = (width * zoom, height * zoom)
    return [np.asarray(cv2.resize(one, size, interpolation=cv2.INTER_NEAREST), np.uint8) for one in pictures]


def lay_out_grid(pictures: Sequence[U8], labels: Sequence[str], columns: int = 6) -> U8:
    """Put pictures of one size side by side, each with its label below."""
    gap_px, label_px = 6, 22
    height, width = pictures[0].shape[:2]
    down = -(-len(pictures) // columns)
    across = -(-len(pictures) // down)
    cell_width = max(width, 72)
    shape = (gap_px + down * (height + label_px + gap_px), gap_px + across * (cell_width + gap_px), 3)
    sheet = np.full(shape, _PAPER[0], np.uint8)
    for number, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        top = gap_px + number // across * (height + label_px + gap_px)
        left = gap_px + number % across * (cell_width + gap_px)
        sheet[top : top + height, left : left + width] = picture
        cv2.putText(sheet, label, (left, top + height + 16), _FONT, 0.42, (40, 40, 40), 1, cv2.LINE_AA)
    return sheet


def draw_cells(reference: U8, occupied: Bools, filled: Bools) -> U8:
    """Draw a level of the point pyramid over the dimmed reference.

    Args:
        reference: uint8 [H, W, 3].
        occupied: bool [rows, columns], cells of this level into which a joint falls.
        filled: bool [rows, columns], cells of this level that carry a feature.

    Returns:
        uint8 picture: green cells carry a feature, red ones lose theirs.
    """
    picture = dim(fit_view(reference), 0.6)
    height, width = picture.shape[:2]
    rows, columns = occupied.shape
    for row in range(rows):
        for column in range(columns):
            top, bottom = round(row * height / rows), round((row + 1) * height / rows)
            left, right = round(column * width / columns), round((column + 1) * width / columns)
            if filled[row, column]:
                _tint(picture[top:bottom, left:right], GREEN)
            elif occupied[row, column]:
                _tint(picture[top:bottom, left:right], RED)
    for row in range(1, rows):
        _tint(picture[round(row * height / rows)], WHITE, 0.25)
    for column in range(1, columns):
        _tint(picture[:, round(column * width / columns)], WHITE, 0.25)
    return picture


def _tint(area: U8, color: Color, share: float = 0.5) -> None:
    area[...] = np.asarray(area * (1 - share) + np.array(color) * share, np.uint8)


def name_joints(picture: U8, pose: Pose, labels: Sequence[str], coincident: Bools) -> U8:
    """Put a picture between two columns of labels, with a line from each to its joint.

    Args:
        picture: uint8 [H, W, 3], at least 480 pixels high for labels that do not touch.
        pose: of its first person, in fractions of the picture.
        labels: one per joint.
        coincident: bool [18], joints that are drawn with a ring and a label in red.

    Returns:
        uint8 [H, W + margins, 3].
    """
    margin, spacing = 200, 25
    height, width = picture.shape[:2]
    canvas = np.full((height, width + 2 * margin, 3), _SHADE, np.uint8)
    canvas[:, margin : margin + width] = picture
    joints_px = [(x + margin, y) for x, y in _place(pose.joints[0], picture)]
    across: list[int] = sorted(np.flatnonzero(pose.visible[0]).tolist(), key=lambda joint: joints_px[joint][0])
    half = len(across) // 2
    for on_left, joints in ((True, across[:half]), (False, across[half:])):
        ordered = sorted(joints, key=lambda joint: joints_px[joint][1])
        lines_px = _spread_lines([joints_px[joint][1] for joint in ordered], spacing, height)
        for joint, line_px in zip(ordered, lines_px, strict=True):
            color = RED if coincident[joint] else WHITE
            (text_width, _), _ = cv2.getTextSize(labels[joint], _FONT, 0.5, 1)
            start = 10 if on_left else margin + width + 14
            edge_px = (start + text_width + 4, line_px) if on_left else (start - 4, line_px)
            cv2.line(canvas, edge_px, joints_px[joint], _color(joint), 1, cv2.LINE_AA)
            cv2.putText(canvas, labels[joint], (start, line_px + 5), _FONT, 0.5, color, 1, cv2.LINE_AA)
    for joint in across:
        cv2.circle(canvas, joints_px[joint], 5, _SHADE, -1, cv2.LINE_AA)
        cv2.circle(canvas, joints_px[joint], 4, _color(joint), -1, cv2.LINE_AA)
        if coincident[joint]:
            cv2.circle(canvas, joints_px[joint], 9, RED, 2, cv2.LINE_AA)
    return canvas


def _spread_lines(wanted_px: Sequence[int], spacing: int, height: int) -> list[int]:
    """Rising heights near the wanted ones that leave room for a line of text each."""
    lines: list[int] = []
    for place in wanted_px:
        lines.append(max(place, spacing, *(line + spacing for line in lines[-1:])))
    limit = height - 12
    for index in range(len(lines) - 1, -1, -1):
        lines[index] = min(lines[index], limit)
        limit = lines[index] - spacing
    return lines
