"""A model under an intervention, for those who do not use this package: modules, files, folders.

| module | what it makes |
|---|---|
| `bake` | a module of the source's own class, without hooks |
| `export` | `torch.export` programs and ONNX files |
| `pretrained` | folders of transformers models |
"""
