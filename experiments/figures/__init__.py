"""Pictures, and the report made of them."""
