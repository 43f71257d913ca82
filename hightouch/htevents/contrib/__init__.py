"""Glue for frameworks: a scope for each request or task. Each module is imported by its user.

The package itself imports none of these modules, and depends on none of the frameworks.
"""
