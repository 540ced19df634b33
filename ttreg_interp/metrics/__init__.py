"""Metrics turn tensors of a run into numbers with intervals; only those of
language models (`massive_activations`, `sinks`, `language`) run one.

| module | what it measures |
|---|---|
| `intervals` | bootstrap intervals, paired tests, spread of random controls, false discovery |
| `norms` | outliers among residual norms, massive activations |
| `attention` | attention received, entropy, mass on a set of keys, sink rate |
| `artifacts` | tokens that draw attention at an ordinary norm |
| `massive_activations` | massive activations of a language model, entry by entry |
| `sinks` | attention sinks of a language model: rate, value drain, residual peak, dormant heads |
| `language` | loss a token, perplexity |
| `similarity` | linear CKA, relative change, cosine, KL of logits |
| `classification` | top-k, zero-shot, nearest neighbours |
| `probes` | linear probes on frozen features |
| `discovery` | LOST and corloc |
| `segmentation` | mIoU, pixel accuracy, binarised attention maps |
| `dense_probes` | segmentation and depth from frozen patch features |
"""
