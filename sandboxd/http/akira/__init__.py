"""Akira's API: create, execute, upload, download, snapshots. The manual (clients) says what was chosen where
Akira's documents do not.

routes.py    its paths, and at which of them the native API already answers
schemas.py   its bodies
errors.py    its error body
sandboxes.py commands.py files.py snapshots.py   what the routes do
"""
