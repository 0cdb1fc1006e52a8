"""Styles of the page, in Gradio's own colours, which fit light and dark; and its one script."""

from __future__ import annotations

FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
MONOSPACE_FONTS = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
"""Fonts of the visitor's system; none is fetched."""

PLAY_BOTH = """\
() => {
  for (const video of document.querySelectorAll("#driving video, #result video")) {
    video.currentTime = 0;
    video.play();
  }
}"""

CSS = """\
.gradio-container { max-width: 1320px !important; margin: 0 auto !important; }
.dr-header h1 { font-size: 1.6rem; font-weight: 650; margin: 0; }
.dr-header p { color: var(--body-text-color-subdued); margin: 0.1rem 0 0; }
.dr-title { font-size: 0.95rem; font-weight: 600; margin: 0; white-space: nowrap; }
.dr-form .block label { height: 100%; display: flex; flex-direction: column; }
.dr-form .block label .input-container, .dr-form .block label input { margin-top: auto; }
/* trimming would fetch a program from another server */
button[aria-label="Trim video to selection"], button[aria-label="Reset video to initial value"] {
  display: none !important;
}
.dr-consent { margin: 0; color: var(--body-text-color); font-weight: 500; }
.dr-idle { margin: 0; color: var(--body-text-color-subdued); }
.dr-headline { margin: 0; font-weight: 600; }
.dr-message {
  margin: 0.5rem 0 0; padding: 0.6rem 0.8rem; white-space: pre-wrap; overflow-wrap: anywhere;
  border-left: 4px solid #dc2626; border-radius: 4px; background: rgba(220, 38, 38, 0.1);
}
/* Gradio's line with the place in the queue, above the words instead of across them */
#status [data-testid="status-tracker"]:not(.hide) {
  position: static !important; overflow: visible; align-items: flex-start; padding: 0.4rem 0.75rem 0 !important;
}
#status .progress-text { position: static; padding: 0; font-size: 0.85rem; transform: none; }
#status .pending { opacity: 1; }
.dr-stages { list-style: none; margin: 0.75rem 0 0; padding: 0; display: grid; gap: 0.45rem; }
.dr-stages li {
  display: grid; grid-template-columns: 10.5rem 1fr 10.5rem; align-items: center; gap: 0.75rem; margin: 0;
}
.dr-todo { opacity: 0.55; }
.dr-now .dr-stage { font-weight: 600; }
.dr-bar { height: 8px; border-radius: 4px; overflow: hidden; background: var(--border-color-primary); }
.dr-bar > span { display: block; height: 100%; border-radius: 4px; background: var(--color-accent); }
.dr-over .dr-bar > span { background: #16a34a; }
.dr-failed .dr-now .dr-bar > span, .dr-cancelled .dr-now .dr-bar > span { background: #9ca3af; }
.dr-unknown > span { opacity: 0.35; }
.dr-numbers {
  font-variant-numeric: tabular-nums; font-size: 0.85rem; color: var(--body-text-color-subdued); text-align: right;
}
.dr-notices { margin: 0.75rem 0 0; padding: 0.6rem 0.8rem 0.6rem 1.6rem; overflow-wrap: anywhere; border-radius: 4px;
  border-left: 4px solid #d97706; background: rgba(217, 119, 6, 0.12); }
.dr-footer { display: flex; flex-wrap: wrap; gap: 0.25rem 1.25rem; padding-top: 0.75rem; font-size: 0.85rem;
  color: var(--body-text-color-subdued); border-top: 1px solid var(--border-color-primary); }
.dr-footer code { overflow-wrap: anywhere; }
@media (max-width: 640px) {
  .dr-stages li { grid-template-columns: 1fr auto; gap: 0.15rem 0.5rem; }
  .dr-bar { grid-column: 1 / -1; grid-row: 2; }
}
"""

THEME = {
    "body_background_fill": "*neutral_50",
    "block_border_width": "1px",
    "block_border_width_dark": "1px",
    "block_title_background_fill": "transparent",
    "block_title_background_fill_dark": "transparent",
    "block_title_text_color": "*body_text_color",
    "block_title_text_color_dark": "*body_text_color",
    "block_title_padding": "0",
}
