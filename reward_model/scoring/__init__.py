"""Score conversations with Transformers or with a server, score files, and check reference scores."""
