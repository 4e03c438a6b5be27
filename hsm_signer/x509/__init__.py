"""Certificates: read, judged, issued."""
