"""Transformers: DiT, U-ViT and the set transformer."""
