"""A whole network as one native plan: captured, lowered to steps, run in one call."""

from dynkern.engine.compiled import Compiled, Description, compile

__all__ = ["Compiled", "Description", "compile"]
