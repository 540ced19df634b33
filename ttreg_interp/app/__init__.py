"""The explorer: a local page where an image, a model and an intervention are chosen by hand.

Only `page`, `events` and `stage` know gradio; the rest are plain values and functions.
"""
