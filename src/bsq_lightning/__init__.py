"""bsq_lightning: find how many bits every layer of a network needs, in one training run.

The floors, from the ground up: ``ops``, ``scheme`` and ``models``; ``quantizers``; ``network`` and ``optimizer``;
``regularizers``; ``module``, ``callbacks`` and ``data``; and the commands (``train``, ``evaluate``) with ``cli``.
Imports go only downward; everything below ``module`` is ordinary PyTorch and works in a notebook.
"""

__version__ = "0.1.0"
