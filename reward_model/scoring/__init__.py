"""Score conversations and files with Transformers or with a server, and check a server's scores."""
