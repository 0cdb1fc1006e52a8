"""Pictures and videos: what the user hands in becomes uint8 RGB arrays, and such arrays become a video file."""

from __future__ import annotations

from .images import ImageSource, PilImage, read_image
from .metadata import read_metadata
from .outputs import SUFFIXES, check_output_path, protect_inputs
from .videos import DEFAULT_FPS, Video, VideoSource, frame_step, open_video
from .writer import FrameSink, VideoWriter, open_writer, write_video

__all__ = [
    "DEFAULT_FPS",
    "SUFFIXES",
    "FrameSink",
    "ImageSource",
    "PilImage",
    "Video",
    "VideoSource",
    "VideoWriter",
    "check_output_path",
    "frame_step",
    "open_video",
    "open_writer",
    "protect_inputs",
    "read_image",
    "read_metadata",
    "write_video",
]
