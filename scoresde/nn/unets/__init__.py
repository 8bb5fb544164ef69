"""U-Nets: that of ADM and score_sde with their presets, EDM2, and the classifier."""
