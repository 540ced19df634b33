"""The glossary of axes: used in annotations, variable names, saved files and plots.

| axis | meaning |
|---|---|
| `batch` | images (or texts) of one forward pass |
| `token` | rows of the residual stream: [CLS], trained registers, test-time registers, patches |
| `query`, `key` | the token axis of attention, as the reader and as the one read |
| `head` | attention heads of one layer |
| `d_model` | the residual stream |
| `d_head` | the subspace of one head |
| `neuron` | hidden units of one MLP, after the nonlinearity |
| `layer` | blocks, counted from 0 |
| `height`, `width` | the patch grid (in patches) or, for `pixels`, the image (in pixels) |
| `channel` | colour channels of `pixels` |
| `output` | what the model returns per image: logits, or an embedding |
"""

AXES = (
    "batch",
    "token",
    "query",
    "key",
    "head",
    "d_model",
    "d_head",
    "neuron",
    "layer",
    "height",
    "width",
    "channel",
    "output",
)
