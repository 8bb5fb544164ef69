"""What a network is told of an example: descriptions, embeddings and their absence."""
