"""Metrics turn tensors of a run into numbers with intervals.

`trace`, `compare`, `causal`, `reducers` and those of language models (`massive_activations`, `sinks`,
`language`) run the model themselves.

| module | what it measures |
|---|---|
| `intervals` | bootstrap intervals, paired tests, spread of random controls, false discovery |
| `trace` | norms and attention of one forward pass; what an intervention does to them |
| `compare`, `comparison` | many arms over many images, paired |
| `causal`, `causal_table` | the same with random controls, permutation tests and false discovery rate |
| `reducers` | means, variances, largest values and histograms of any hook point, streamed |
| `norms` | outliers among residual norms, massive entries |
| `attention` | attention received, entropy, mass on a set of keys, sink rate |
| `artifacts` | tokens that draw attention at an ordinary norm |
| `massive_activations` | massive activations of a language model, entry by entry |
| `sinks` | attention sinks of a language model: rate, value drain, residual peak, dormant heads |
| `language` | loss a token, perplexity |
| `similarity`, `cka_interval` | linear CKA, relative change, cosine, KL of logits |
| `classification` | top-k, zero-shot, nearest neighbours |
| `probes` | linear probes on frozen features |
| `discovery` | LOST and corloc |
| `set_scores` | scores of a set of images that are no means over them |
| `segmentation` | mIoU, pixel accuracy, binarised attention maps |
| `dense_probes` | segmentation and depth from frozen patch features |
| `rows` | tables of one row an image, in memory or on disk, for the probes |
"""
