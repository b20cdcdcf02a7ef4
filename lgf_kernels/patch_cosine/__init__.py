"""Patch cosine: the cosine distance of every token from its teachers, of one frame or of several."""
