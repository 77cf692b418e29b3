"""Pages of one HTML file that need nothing beside it: what those of a study and of a suite have in common.

Begin with html.py, which fills the templates in templates/; svg.py draws what their script can move.
"""
