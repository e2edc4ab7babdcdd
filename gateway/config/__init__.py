"""Reads the configuration: text in, checked values out."""
