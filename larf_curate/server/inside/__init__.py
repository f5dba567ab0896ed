"""What runs inside the virtual environment of the Argilla server.

Nothing here may import the rest of this package or its dependencies: the environment has only what argilla-server
pins. The folder above is appended to the module path, so these modules are ``inside.engine`` and so on there.
"""
