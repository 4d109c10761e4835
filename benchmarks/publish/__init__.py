"""Writes results into pages, tables and charts."""
