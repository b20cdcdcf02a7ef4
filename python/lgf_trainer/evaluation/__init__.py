"""Scores and pictures of videos."""
