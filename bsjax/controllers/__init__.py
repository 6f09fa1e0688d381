"""Controllers: how large is the next update, at which learning rate?"""

from bsjax.controllers.protocol import LAG, Controller, Observation

__all__ = ["LAG", "Controller", "Observation"]
