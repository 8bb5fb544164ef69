"""Our networks written as those of others."""
