"""Local Gram Flow and its losses (SAM2VideoX)."""
