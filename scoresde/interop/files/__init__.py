"""Files of others, read safely: none of their code is executed."""
