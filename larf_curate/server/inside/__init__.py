"""Code that runs in the virtual environment of the Argilla server.

It must not import the rest of this package or its dependencies, because the environment contains only what
argilla-server pins. The parent folder is appended to ``sys.path`` there, so these modules are imported as
``inside.engine`` and so on.
"""
