"""The page in a browser: what its tabs compute, how they look, and the server."""
