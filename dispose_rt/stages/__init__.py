"""The stages of a run. None of them imports another; the pipeline connects them."""
