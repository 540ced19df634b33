"""Other ways to run interventions than hook points: nnsight, on any module, here or on a server.

A backend is imported when it is used: `from ttreg_interp.backends.nnsight import TracedViT`.
"""
