"""Token relation distances (VideoREPA, MoAlign)."""
