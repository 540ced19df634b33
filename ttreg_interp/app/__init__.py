"""The explorer: a local page where an image, a model and an intervention are chosen by hand.

`settings`, `upload` and `look` are plain functions; only `page` knows gradio.
"""
