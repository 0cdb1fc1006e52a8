"""The web page of `dispose-rt page`: a picture and a video in, the animation beside its driving video out.

`jobs` runs the animations and knows nothing of web pages; `fields`, `fragments` and `layout` are what a user sees;
`guard` decides which requests reach Gradio, with `access`, `uploads` and `bounds`; `server` serves it. Gradio is
imported by `layout` and `server` when a page is built, and by nothing else.
"""

from __future__ import annotations

from .server import build_page, check_gradio, serve_page

__all__ = ["build_page", "check_gradio", "serve_page"]
